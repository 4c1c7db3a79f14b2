"""Generated text."""

from prunesearch.report.figures.figure import GeneratedText
from prunesearch.report.figures.texts import figure
from tests.support.study_values import measurement, report_data, study_data, trial_data

TRIAL = trial_data(0, "0,1", 1.0)


def test_models_write_after_the_same_prompts_in_a_fixed_order() -> None:
    study = study_data("a", [TRIAL])
    found = figure(
        report_data(
            study,
            measurements={
                "a": (
                    measurement("healed", 1.0, texts=(("Once", "upon a"),)),
                    measurement("winner", 1.0, texts=(("Once", "<b>x"), ("The", "sea"))),
                    measurement("dense", 1.0, candidate="none", texts=(("Once", "upon"),)),
                    measurement("baseline:magnitude", 1.0, texts=(("Once", "the the"),)),
                )
            },
        )
    )
    assert found is not None and found.table is not None
    assert found.texts == (
        GeneratedText(
            "Once",
            (
                ("dense", "upon"),
                ("pruned", "<b>x"),
                ("healed", "upon a"),
                ("magnitude pruning", "the the"),
            ),
        ),
        GeneratedText("The", (("pruned", "sea"),)),
    )
    assert found.table.rows[1] == ("Once", "pruned", "<b>x")
    assert found.panels == ()


def test_the_winners_of_several_studies_are_named_and_the_dense_model_is_shown_once() -> None:
    texts = (("Once", "upon"),)
    measured = {}
    for name in ("m-pso", "m-woa"):
        measured[name] = (
            measurement("dense", 1.0, candidate="none", texts=texts),
            measurement("winner", 1.0, texts=texts),
        )
    studies = [study_data(name, [TRIAL], sampler=name[2:]) for name in measured]
    found = figure(report_data(*studies, measurements=measured))
    assert found is not None
    assert [name for name, _ in found.texts[0].texts] == ["dense", "pruned (pso)", "pruned (woa)"]


def test_nothing_is_shown_without_texts() -> None:
    measured = {"a": (measurement("winner", 1.0),)}
    assert figure(report_data(study_data("a", [TRIAL]), measurements=measured)) is None
