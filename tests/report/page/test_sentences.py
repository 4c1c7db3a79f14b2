"""What a report says in sentences."""

from dataclasses import replace

import pytest

from prunesearch.config.recipe import Recipe
from prunesearch.report.page.sentences import notes_of, summary_of
from prunesearch.studies.study_data import StudyData
from tests.support.study_values import measurement, report_data, study_data, trial_data


@pytest.mark.parametrize(("asked", "is_finished"), [(3, True), (4, False)])
def test_failed_evaluations_count_among_those_that_were_asked_for(
    asked: int, is_finished: bool
) -> None:
    trials = [
        trial_data(0, "0,1", 0.5), trial_data(1, "0,2", state="pruned"),
        trial_data(2, "0,3", state="fail"),
    ]  # fmt: skip
    study = replace(study_data("a", trials), asked=asked)
    measured = {"a": (measurement("winner", 0.5),)}
    notes = notes_of(report_data(study, measurements=measured))
    failed = "In study a 1 evaluation failed. It is left out."
    if is_finished:
        assert notes == (failed,)
    else:
        assert notes[0].startswith("Study a is half-finished: 2 of 4 evaluations are done")
        assert notes[1:] == (failed,)


def seeds(sampler: str, count: int, value: float, trials: int = 2) -> list[StudyData]:
    """Studies of one algorithm, which differ in the seed."""
    found = []
    for seed in range(count):
        scored = [trial_data(n, f"{n % 3},3", value + n + seed / 8) for n in range(trials)]
        found.append(study_data(f"{sampler}-{seed}", scored, sampler=sampler, seed=seed))
    return found


def said(*studies: StudyData) -> str:
    return " ".join(sentence.text for sentence in summary_of(report_data(*studies)))


def test_few_common_seeds_are_too_few_for_a_test() -> None:
    text = said(*seeds("pso", 8, 1.0), *seeds("woa", 3, 2.0))
    assert "3 values of each are too few for a test to show a difference" in text


def test_unequal_budgets_are_said() -> None:
    assert "More evaluations find" not in said(*seeds("pso", 2, 1.0), *seeds("woa", 2, 2.0))
    text = said(*seeds("pso", 2, 1.0, trials=9), *seeds("woa", 2, 2.0))
    assert "These searches had 2 to 9 evaluations. More evaluations find better" in text


def test_the_error_of_a_weighted_value_is_that_of_its_metric_times_the_weight() -> None:
    study = study_data("a", [trial_data(0, "0,1", 0.9, kl_stderr=0.01)])
    assert "0.9 ± 0.01" in said(study)
    recipe = Recipe(model="tiny", objective={"score_weights": {"quality": 3}}, search={"drop": "2"})
    weighted = replace(study, recipe=recipe, value_names=("weighted kl",))
    assert "0.9 ± 0.03" in said(weighted)


def test_a_metric_without_values_of_items_has_no_number_of_them() -> None:
    study = study_data("a", [trial_data(0, "0,1", 0.5)])
    measured = {"a": (measurement("winner", 0.6),)}
    text = " ".join(s.text for s in summary_of(report_data(study, measurements=measured)))
    assert "On builtin-held-out the winner of study a has" in text


def test_default_settings_are_named_beside_others() -> None:
    plain = study_data("a", [trial_data(0, "0,1", 0.5)])
    recipe = Recipe(model="tiny", objective={"kl_top": 512}, search={"drop": "2"})
    text = said(plain, replace(plain, name="b", recipe=recipe))
    assert "Default settings: the best candidate" in text
    assert "Of all candidates" not in text
