"""Quality against size and latency."""

from dataclasses import replace

import pytest

from prunesearch.config.recipe import Recipe
from prunesearch.report.figures.candidate_panels import attained
from prunesearch.report.figures.figure import HELD_OUT, SEARCHED_ON
from prunesearch.report.figures.pareto import figure
from tests.support.study_values import measurement, report_data, study_data, trial_data

GIB = 2**30
# Quality, size and latency of candidates; the last one is dominated.
POINTS = [(0.0, 4, 40.0), (1.0, 2, 30.0), (3.0, 1, 10.0), (2.0, 3, 20.0)]
TRIALS = [
    trial_data(n, str(n), loss, float(size * GIB), bytes=size * GIB, latency_ms=latency, kl=loss)
    for n, (loss, size, latency) in enumerate(POINTS)
]


def test_the_front_is_what_is_reached_with_at_most_a_size() -> None:
    study = study_data("a", TRIALS, maximize=(False, False))
    found = figure(report_data(study))
    assert found is not None and found.table is not None
    size, latency, volume = found.panels
    candidates, front = size.series
    assert (list(candidates.x), candidates.emphasis) == ([4.0, 2.0, 1.0, 3.0], "faint")
    assert (list(front.x), list(front.y), front.kind) == ([1.0, 2.0, 4.0], [3.0, 1.0, 0.0], "step")
    assert (size.x_label, latency.x_label) == (
        "size (GiB)",
        "latency of a prefill, predicted (ms)",
    )
    assert list(latency.series[1].x) == [10.0, 20.0, 30.0, 40.0]
    assert size.rules[0].value == 0.0  # KL of the dense model
    # The box is 3 nats by 3 GiB. A point on its border adds nothing; (1, 2) adds 2/3 of each side.
    (history,) = volume.series
    assert list(history.x) == [1.0, 2.0, 4.0]
    assert list(history.y) == pytest.approx([0.0, 4 / 9, 4 / 9])
    # The front comes first in the table.
    assert [row[1] for row in found.table.rows] == ["trial 0", "trial 1", "trial 2", "trial 3"]
    assert found.badges == (SEARCHED_ON,)


def test_more_may_be_better() -> None:
    trials = [trial_data(0, "0", 0.5, bytes=GIB), trial_data(1, "1", 0.9, bytes=2 * GIB)]
    study = study_data("a", trials, maximize=(True,))
    points = [(2.0, trials[1]), (1.0, trials[0]), (3.0, trials[0])]
    assert [cost for cost, _ in attained(study, points)] == [1.0, 2.0]


def test_the_best_of_several_amounts_is_a_line_with_errors_over_seeds() -> None:
    studies = []
    for seed, (drop, best, size) in enumerate(
        [("1", 1.0, 2), ("1", 2.0, 2), ("2", 5.0, 1), ("2", 5.0, 1)]
    ):
        trials = [trial_data(0, "0", best, bytes=size * GIB), trial_data(1, "1", 9.0, bytes=GIB)]
        studies.append(study_data(f"s{seed}", trials, drop=drop))
    found = figure(report_data(*studies))
    assert found is not None
    line = found.panels[0].series[-1]
    assert (line.name, line.kind) == ("pso: best", "line")
    assert (list(line.x), list(line.y)) == ([1.0, 2.0], [5.0, 1.5])
    # Student's t of one degree of freedom times a standard error of 0.5.
    assert line.low is not None
    assert list(line.low) == pytest.approx([5.0, 1.5 - 12.706 * 0.5], abs=1e-3)
    # The legend names the line only.
    assert [series.in_legend for series in found.panels[0].series] == [False] * 8 + [True]


def test_measured_models_are_beside_the_candidates_or_on_fresh_data() -> None:
    study = study_data("a", [trial_data(0, "0,1", 1.0, bytes=GIB), trial_data(1, "2,3", 2.0)])
    sizes = {"dense": 4, "winner": 1, "healed": 1, "baseline:magnitude": 2}
    measured = []
    for role, size in sizes.items():
        measured.append(measurement(role, 1.0, bytes=size * GIB, prefill_ms=size * 10.0))
        measured.append(
            measurement(
                role, 3.0, bytes=size * GIB, badge="searched on", data_content="search data"
            )
        )
    found = figure(report_data(study, measurements={"a": tuple(measured)}))
    assert found is not None and found.table is not None
    search, fresh, latency = found.panels
    # On the search data the dense model and the baseline stand beside the candidates.
    assert [series.name for series in search.series[2:]] == ["dense", "magnitude pruning"]
    assert fresh.title == "builtin-held-out (held out)"
    assert {series.name: list(series.x) for series in fresh.series} == {
        "dense": [4.0],
        "pruned": [1.0],
        "healed": [1.0],
        "magnitude pruning": [2.0],
    }
    assert fresh.series[0].low is not None
    assert fresh.series[0].low[0] == pytest.approx(1.0 - 0.0196)
    assert latency.x_label == "latency of a prefill, measured (ms)"
    assert list(latency.series[0].x) == [40.0]
    assert found.badges == (SEARCHED_ON, HELD_OUT)
    assert {row[-1] for row in found.table.rows[:8]} == {SEARCHED_ON, HELD_OUT}


def test_hypervolumes_of_different_values_have_panels_of_their_own() -> None:
    size = study_data("m-size", TRIALS, maximize=(False, False))
    timed = [
        trial_data(n, str(n), loss, latency, bytes=amount * GIB, latency_ms=latency, kl=loss)
        for n, (loss, amount, latency) in enumerate(POINTS)
    ]
    latency = study_data("m-time", timed, maximize=(False, False), value_names=("kl", "latency_ms"))
    found = figure(report_data(size, latency))
    alone = figure(report_data(latency))
    assert found is not None and alone is not None
    volumes = [panel for panel in found.panels if "hypervolume" in panel.title]
    assert [panel.title for panel in volumes] == [
        "hypervolume of kl and bytes", "hypervolume of kl and latency_ms",
    ]  # fmt: skip
    # The box is that of studies with the same values.
    assert volumes[1].series[0].y == alone.panels[-1].series[0].y
    assert alone.panels[-1].title == "hypervolume"


def test_kl_and_top_k_kl_have_panels_of_their_own() -> None:
    full = study_data("a-full", [trial_data(0, "0,1", 1.0, bytes=GIB)])
    recipe = Recipe(model="tiny", search=full.recipe.search, objective={"kl_top": 512})
    top = replace(full, name="a-top", recipe=recipe)
    measured = {}
    for name, value in (("a-full", 2.0), ("a-top", 3.0)):
        search = {"badge": "searched on", "data_content": "search data"}
        measured[name] = (
            measurement("baseline:last", value, candidate="2,3", bytes=2 * GIB, **search),
            measurement("winner", value, bytes=GIB),
            measurement("baseline:last", value, candidate="2,3", bytes=2 * GIB),
        )
    found = figure(report_data(full, top, measurements=measured))
    assert found is not None
    labels = [panel.y_label for panel in found.panels]
    assert labels == ["KL to dense (nats/token)"] * 3 + ["KL to dense (nats/token): kl_top 512"]
    # The baselines stand beside the candidates that were scored with the same setting.
    baselines = [list(panel.series[-1].y) for panel in found.panels]
    assert baselines == [[2.0], [3.0], [2.0], [3.0]]


def test_candidates_of_one_size_have_no_panel() -> None:
    trials = [trial_data(n, str(n), 1.0 + n, bytes=GIB) for n in range(3)]
    assert figure(report_data(study_data("a", trials))) is None
    # A search over widths meets its target within a few kilobytes, too few for a front.
    trials = [trial_data(n, str(n), 1.0 + n, bytes=GIB + 4096 * n) for n in range(3)]
    assert figure(report_data(study_data("a", trials))) is None


def test_long_studies_are_thinned_and_wide_values_are_logarithmic() -> None:
    trials = [
        trial_data(n, str(n % 80), 1.0 + n % 977, bytes=GIB * (1 + n % 7)) for n in range(3000)
    ]
    found = figure(report_data(study_data("a", trials, n_layers=80)))
    assert found is not None and found.table is not None
    assert found.panels[0].log_y
    assert len(found.panels[0].series[0].x) == 2000
    assert "Of 3,000 points" in found.caption
    assert len(found.table.rows) == 3000
