"""The comparison of studies and baselines, and the selection bias."""

import math
from dataclasses import replace

import pytest

from prunesearch.analysis.intervals import half_width
from prunesearch.analysis.paired import paired_test
from prunesearch.analysis.selection_bias import expected_bias, true_spread
from prunesearch.config.recipe import Recipe
from prunesearch.report.figures import comparison, selection_bias
from prunesearch.report.figures.figure import HELD_OUT, SEARCHED_ON, Cell, Figure
from prunesearch.report.figures.groups import comparable
from prunesearch.report.figures.pooled import pooled
from prunesearch.report.page.sentences import summary_of
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.study_data import StudyData
from tests.support.study_values import measurement, report_data, study_data, trial_data

DENSE = (1.0, 2.0, 3.0, 4.0)
GOOD = (1.5, 2.5, 3.25, 4.5)
BAD = (2.0, 3.5, 4.0, 6.0)
STUDY = study_data("a", [trial_data(0, "0,1", 0.5, kl=0.5), trial_data(1, "0,2", 0.9, kl=0.9)])


def compared(*studies: StudyData, **measured: tuple[Measurement, ...]) -> Figure:
    found = comparison.figure(report_data(*studies, measurements=measured))
    assert found is not None
    return found


def rows_of(figure: Figure) -> dict[object, dict[str, Cell]]:
    assert figure.table is not None
    found: dict[object, dict[str, Cell]] = {}
    for row in figure.table.rows:
        cells = dict(zip(figure.table.head, row, strict=True))
        found[cells["what"], cells["badge"]] = cells
    return found


def test_each_model_is_compared_with_the_winner_on_the_same_documents() -> None:
    found = compared(
        STUDY,
        a=(
            measurement("dense", 2.5, *DENSE, candidate="none"),
            measurement("winner", 2.9, *GOOD, candidate="0,1"),
            measurement("baseline:magnitude", 3.9, *BAD, candidate="1,2"),
            measurement("baseline:last", 2.9, *GOOD, candidate="0,1"),
        ),
    )
    rows = rows_of(found)
    worse = rows["magnitude pruning", HELD_OUT]
    test = paired_test(GOOD, BAD)
    assert worse["compared with"] == "pruned"
    assert worse["difference of losses"] == test.difference == pytest.approx(0.9375)
    assert worse["p"] == test.p == 0.125  # of 16 flips of signs the two with all signs equal
    assert worse["p (Holm)"] == 0.25  # two comparisons
    assert rows["dense", HELD_OUT]["difference of losses"] == pytest.approx(-0.4375)
    # The winner is not compared with itself, nor with an equal candidate.
    assert rows["pruned", HELD_OUT]["p"] is None
    assert rows["last pruning", HELD_OUT]["p"] is None
    assert found.badges == (SEARCHED_ON, HELD_OUT)
    points = found.panels[1].series[0]
    assert points.low is not None
    assert points.low[0] == pytest.approx(2.5 - half_width(4) * 0.01)  # of four documents


def test_measurements_of_other_documents_are_not_paired() -> None:
    found = compared(
        STUDY,
        a=(
            measurement("winner", 2.9, *GOOD),
            measurement("dense", 2.5, *DENSE[:3], candidate="none"),
            measurement("healed", 2.0, *GOOD, data_content="other documents"),
        ),
    )
    assert all(row["p"] is None for row in rows_of(found).values())


def test_random_baselines_are_a_mean_with_an_error_over_candidates() -> None:
    found = compared(
        STUDY,
        a=(
            measurement("winner", 2.9, *GOOD),
            measurement("baseline:random", 4.0, *BAD, candidate="1,3"),
            measurement("baseline:random", 6.0, *(2 + loss for loss in BAD), candidate="2,3"),
        ),
    )
    row = rows_of(found)["random, mean of 2", HELD_OUT]
    assert (row["value"], row["standard error"]) == (5.0, 1.0)
    assert row["difference of losses"] == pytest.approx(0.9375 + 1.0)


def titles_and_entries(figure: Figure) -> list[tuple[str, list[str]]]:
    """The titles of the panels on fresh data, and the names of what they compare."""
    found = []
    for panel in figure.panels:
        title, is_fresh, _ = panel.title.partition(f" ({HELD_OUT})")
        if is_fresh:
            found.append((title, [series.name for series in panel.series]))
    return found


def of_budget(candidate: str, params: int, baseline: str) -> tuple[Measurement, ...]:
    """Measurements of a winner, the dense model and a baseline."""
    return (
        measurement("dense", 2.5, *DENSE, candidate="none"),
        measurement("winner", 2.9, *GOOD, candidate=candidate, params=params),
        measurement("baseline:magnitude", 3.9, *BAD, candidate=baseline, params=params),
    )


def test_studies_of_different_budgets_are_compared_apart() -> None:
    trials = [trial_data(0, "0,1", 0.5)]
    less, more = study_data("pso-drop1", trials, drop="1"), study_data("pso-drop2", trials)
    measured = {"pso-drop1": of_budget("0", 90, "1"), "pso-drop2": of_budget("0,1", 80, "1,2")}
    found = comparison.figure(report_data(less, more, measurements=measured))
    assert found is not None
    data = "builtin-held-out"
    assert titles_and_entries(found) == [
        (f"{data}, removing 1 block", ["dense", "pruned (drop1)", "magnitude pruning"]),
        (f"{data}, removing 2 blocks", ["dense", "pruned (drop2)", "magnitude pruning"]),
    ]
    # Each is tested against the winner of its own budget.
    assert found.table is not None
    columns = [found.table.head.index(name) for name in ("what", "compared with")]
    tests = {tuple(row[place] for place in columns) for row in found.table.rows}
    assert ("dense", "pruned (drop1)") in tests and ("dense", "pruned (drop2)") in tests


def test_the_winners_decide_the_budget_where_the_amount_is_not_fixed() -> None:
    fixed = study_data("a", [trial_data(0, "0,1", 0.5, params=1000)])
    front = study_data(
        "b", [trial_data(0, "0", 0.5, 2.0)], drop="pareto", sampler="nsga2", maximize=(False,) * 2
    )
    data = "builtin-held-out"
    apart = [
        f"{data}, removing 2 blocks", f"{data}, removing any number of blocks, 1,010 parameters kept",
    ]  # fmt: skip
    for params, titles in ((1004, [data]), (1010, apart)):
        measured = {"a": of_budget("0,1", 1000, "1,2"), "b": of_budget("0,2", params, "1,2")}
        found = comparison.figure(report_data(fixed, front, measurements=measured))
        assert found is not None
        assert [title for title, _ in titles_and_entries(found)] == titles


def test_kl_and_top_k_kl_are_compared_apart() -> None:
    full = study_data("a-full", [trial_data(0, "0,1", 0.5, kl=0.5)])
    recipe = Recipe(model="tiny", search=full.recipe.search, objective={"kl_top": 512})
    top = replace(full, name="a-top", recipe=recipe)
    perplexity = measurement("dense", 9.0, candidate="none", metric="perplexity")
    measured = {name: (*of_budget("0,1", 9, "1,2"), perplexity) for name in ("a-full", "a-top")}
    found = comparison.figure(report_data(full, top, measurements=measured))
    assert found is not None
    assert titles_and_entries(found) == [
        ("builtin-held-out, default settings", ["dense", "pruned (full)", "magnitude pruning"]),
        # The setting does not change the perplexity.
        ("builtin-held-out", ["dense"]),
        ("builtin-held-out, kl_top 512", ["dense", "pruned (top)", "magnitude pruning"]),
    ]
    # The values that were searched for are not compared either.
    assert [panel.title for panel in found.panels[:2]] == [
        "default settings: best of each study (searched on)", "kl_top 512: best of each study (searched on)",
    ]  # fmt: skip


def test_sums_with_other_weights_are_compared_apart() -> None:
    studies = []
    for name, size in (("one", 1.0), ("five", 5.0)):
        objective = {"score_weights": {"size": size}}
        recipe = Recipe(model="tiny", search=STUDY.recipe.search, objective=objective)
        studies.append(replace(STUDY, name=name, recipe=recipe))
    assert [together.title for together in comparable(studies)] == [
        "quality=1, size=1, latency=0",
        "quality=1, size=5, latency=0",
    ]
    assert len(pooled(studies)) == 2


def test_checkpoints_of_different_candidates_are_not_averaged() -> None:
    found = compared(
        STUDY,
        a=(
            measurement("exported", 2.9, *GOOD, candidate="0,1"),
            measurement("exported", 3.9, *BAD, candidate="0,2"),
        ),
    )
    assert titles_and_entries(found) == [
        ("builtin-held-out", ["exported, without 0,1", "exported, without 0,2"])
    ]


def test_algorithms_are_compared_by_the_seeds_that_they_share() -> None:
    studies = []
    for sampler, values in (("pso", (1.0, 2.0, 3.0)), ("woa", (1.5, 2.25, 3.75))):
        for seed, value in enumerate(values):
            trials = [trial_data(0, "0,1", value), trial_data(1, "0,2", 9.0)]
            studies.append(study_data(f"{sampler}-{seed}", trials, sampler=sampler, seed=seed))
    rows = rows_of(compared(*studies))
    pso = rows["pso, mean of 3 studies", SEARCHED_ON]
    woa = rows["woa, mean of 3 studies", SEARCHED_ON]
    assert (pso["value"], pso["n"], pso["p"]) == (2.0, 3, None)
    assert pso["standard error"] == pytest.approx(1 / 3**0.5)
    assert woa["difference of losses"] == pytest.approx(0.5)
    assert woa["p"] == 0.25


def test_a_study_alone_has_the_error_of_its_search() -> None:
    trials = [trial_data(0, "0,1", 0.5, kl=0.5, kl_stderr=0.1), trial_data(1, "0,2", 0.9)]
    found = compared(study_data("a", trials))
    row = rows_of(found)["pso", SEARCHED_ON]
    assert (row["value"], row["standard error"], row["dropped"]) == (0.5, 0.1, "0,1")
    assert "--score" in found.caption
    # Without an error there is no interval of length 0.
    assert compared(STUDY).panels[0].series[0].low is None


def test_the_bias_is_that_of_losses_above_the_dense_model() -> None:
    search = {"badge": "searched on", "data_content": "search data"}
    measured = (
        measurement("dense", 2.5, *DENSE, candidate="none", **search),
        measurement("winner", 2.9375, *GOOD, candidate="0,1", **search),
        measurement("dense", 10.0, 9.0, 11.0, candidate="none"),
        measurement("winner", 11.0, 9.5, 12.5, candidate="0,1"),
    )
    found = selection_bias.figure(report_data(STUDY, measurements={"a": measured}))
    assert found is not None and found.table is not None
    row = dict(zip(found.table.head, found.table.rows[0], strict=True))
    assert row["loss on search data"] == pytest.approx(0.4375)
    assert row["loss on fresh data"] == pytest.approx(1.0)
    assert row["bias"] == pytest.approx(0.5625)
    errors = paired_test(DENSE, GOOD).stderr, 0.5
    assert row["standard error"] == pytest.approx(errors[0])
    assert row["standard error of the bias"] == pytest.approx((errors[0] ** 2 + 0.25) ** 0.5)
    noise = errors[0] / 2**0.5
    assert row["expected bias"] == pytest.approx(
        expected_bias(2, noise, true_spread([0.5, 0.9], noise))
    )
    losses, biases = found.panels
    assert [series.name for series in losses.series] == [
        "search data (searched on)",
        "fresh data (held out)",
    ]
    assert list(biases.series[0].y) == pytest.approx([0.5625])
    assert found.badges == (SEARCHED_ON, HELD_OUT)


def test_the_bias_of_an_algorithm_is_a_mean_over_its_studies() -> None:
    measured = {}
    studies = []
    for name, fresh in (("a", 0.7), ("b", 0.9)):
        studies.append(study_data(name, [trial_data(0, "0,1", 0.5, kl=0.5)]))
        measured[name] = (measurement("winner", fresh),)
    found = selection_bias.figure(report_data(*studies, measurements=measured))
    assert found is not None and found.table is not None
    (mean,) = found.panels[1].series
    assert list(mean.y) == pytest.approx([0.3])
    assert mean.low is not None
    assert mean.low[0] == pytest.approx(0.3 - 12.706 * 0.1, abs=1e-3)
    # A trial without an error has a bias without one.
    assert found.table.rows[0][8] is None


def test_an_accuracy_lost_is_a_loss() -> None:
    trial = trial_data(0, "0,1", 0.75, acc=0.75)
    study = study_data("a", [trial], maximize=(True,), value_names=("acc",), dense={"acc": 1.0})
    measured = (
        measurement("dense", 0.875, candidate="none", metric="acc"),
        measurement("winner", 0.5, metric="acc"),
    )
    found = selection_bias.figure(report_data(study, measurements={"a": measured}))
    assert found is not None and found.table is not None
    row = dict(zip(found.table.head, found.table.rows[0], strict=True))
    assert (row["loss on search data"], row["loss on fresh data"]) == (0.25, 0.375)
    assert row["bias"] == 0.125


def test_a_perplexity_is_shown_by_the_cross_entropy_of_its_documents() -> None:
    search = {"badge": "searched on", "data_content": "search data"}
    trials = [
        trial_data(0, "0,1", math.e**3.5, perplexity=math.e**3.5),
        trial_data(1, "0,2", math.e**4, perplexity=math.e**4),
    ]
    study = study_data("a", trials, value_names=("perplexity",), dense={"perplexity": math.e**2.5})

    def made(role: str, loss: float, *losses: float, **given: object) -> Measurement:
        value = math.exp(loss)
        facts = {"metric": "perplexity", "stderr": 0.2 * value, **given}
        return measurement(role, value, *losses, **facts)  # type: ignore[arg-type]

    fresh = made("dense", 2.5, *DENSE, candidate="none"), made("winner", 2.9375, *GOOD)
    again = (
        made("dense", 2.5, *DENSE, candidate="none", **search),
        made("winner", 2.9375, *GOOD, **search),
    )
    found = selection_bias.figure(report_data(study, measurements={"a": (*fresh, *again)}))
    assert found is not None and found.table is not None
    row = dict(zip(found.table.head, found.table.rows[0], strict=True))
    assert row["loss on search data"] == pytest.approx(0.4375)
    assert row["loss on fresh data"] == pytest.approx(0.4375)
    assert row["standard error"] == pytest.approx(paired_test(DENSE, GOOD).stderr)
    noise = paired_test(DENSE, GOOD).stderr / 2**0.5
    spread = true_spread([3.5, 4.0], noise)
    assert row["expected bias"] == pytest.approx(expected_bias(2, noise, spread))
    assert found.panels[0].y_label == "above the dense model, cross-entropy (nats/token)"
    # Without losses of documents, the errors are those of the logarithm.
    alone = (made("winner", 2.9375),)
    found = selection_bias.figure(report_data(study, measurements={"a": alone}))
    assert found is not None and found.table is not None
    row = dict(zip(found.table.head, found.table.rows[0], strict=True))
    assert (row["loss on search data"], row["loss on fresh data"]) == pytest.approx((1.0, 2.9375))
    assert row["standard error (fresh)"] == pytest.approx(0.2)


def test_a_winner_that_was_not_measured_has_no_bias() -> None:
    assert selection_bias.figure(report_data(STUDY)) is None
    # A measurement of something else does not count.
    measured = {"a": (measurement("healed", 0.5),)}
    assert selection_bias.figure(report_data(STUDY, measurements=measured)) is None


def test_the_summary_says_what_the_tests_show() -> None:
    dense = [1.0 + document / 10 for document in range(12)]
    good = [loss + 0.2 for loss in dense]
    # One baseline is worse on every document, and one on every second.
    bad = [loss + 0.3 for loss in good]
    alike = [loss + (0.1 if place % 2 else -0.1) for place, loss in enumerate(good)]
    made = (
        measurement("dense", 1.5, *dense, candidate="none"),
        measurement("winner", 1.7, *good, candidate="0,1"),
        measurement("baseline:magnitude", 2.0, *bad, candidate="1,2"),
        measurement("baseline:last", 1.7, *alike, candidate="2,3"),
    )
    texts = [found.text for found in summary_of(report_data(STUDY, measurements={"a": made}))]
    assert texts[-1] == (
        f"On {made[0].data}, pruned is better than magnitude pruning; pruned is worse than dense; "
        "no difference of pruned from last pruning is shown (paired tests, corrected p < 0.05)."
    )


def test_one_study_of_each_algorithm_shows_no_order() -> None:
    other = study_data("b", [trial_data(0, "0,3", 0.7, kl=0.7)], sampler="woa")
    texts = [found.text for found in summary_of(report_data(STUDY, other))]
    assert any("does not show which algorithm is better" in text for text in texts)
    # Two seeds of each are compared, and are too few for a difference.
    seeds = []
    for seed in (0, 1):
        for name, value in (("pso", 0.5), ("woa", 0.7)):
            trials = [trial_data(0, "0,1", value + seed / 100, kl=value)]
            seeds.append(study_data(f"{name}-{seed}", trials, sampler=name, seed=seed))
    texts = [found.text for found in summary_of(report_data(*seeds))]
    assert any("over the same seeds, 2 values of each are too few" in text for text in texts)


def test_values_of_bad_baselines_are_on_a_logarithmic_axis() -> None:
    made = (measurement("winner", 30.0), measurement("baseline:last", 3e9, candidate="2,3"))
    assert [panel.log_y for panel in compared(STUDY, a=made).panels] == [False, True]
