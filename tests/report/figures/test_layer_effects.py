"""Effects of layers and pairs."""

import itertools
import math

import numpy as np
import pytest

from prunesearch.report.figures.layer_effects import effects_figure, pairs_figure
from prunesearch.studies.study_data import StudyData
from tests.support.study_values import report_data, study_data, trial_data

COST = (4.0, 1.0, 0.0, 2.0, 0.5, 0.25, 3.0, 0.125)
EXTRA = 2.0  # of dropping layers 1 and 2 together


def searched(name: str, *, more_is_better: bool = False, pair: bool = False) -> StudyData:
    """A study of all triples of eight layers, whose losses are sums."""
    trials = []
    for number, units in enumerate(itertools.combinations(range(8), 3)):
        loss = sum(COST[unit] for unit in units)
        if pair and {1, 2} <= set(units):
            loss += EXTRA
        value = -loss if more_is_better else loss
        trials.append(trial_data(number, ",".join(map(str, units)), value))
    return study_data(name, trials, n_layers=8, maximize=(more_is_better,))


@pytest.mark.parametrize("more_is_better", [False, True])
def test_effects_of_a_sum_are_its_terms_above_their_mean(more_is_better: bool) -> None:
    found = effects_figure(report_data(searched("a", more_is_better=more_is_better)))
    assert found is not None and found.table is not None
    (panel,) = found.panels
    (series,) = panel.series
    expected = np.array(COST) - np.mean(COST)
    assert list(series.y) == pytest.approx(expected.tolist(), abs=0.05)
    assert series.low is not None and series.high is not None
    assert series.low[0] < series.y[0] < series.high[0]
    change = "fall" if more_is_better else "rise"
    assert panel.y_label == f"{change} of KL to dense (nats/token)"
    assert "56 candidates" in found.caption
    row = found.table.rows[0]
    assert row[:2] == ("a", "0")
    # The ends of the interval are 1.96 standard deviations away.
    assert row[5] - row[2] == pytest.approx(1.96 * row[3], rel=1e-4)  # type: ignore[operator]


def test_the_same_candidate_of_two_studies_counts_once() -> None:
    found = effects_figure(report_data(searched("a"), searched("b")))
    assert found is not None
    assert "56 candidates" in found.caption


def test_a_pair_that_costs_more_together_stands_out() -> None:
    found = pairs_figure(report_data(searched("a", pair=True)))
    assert found is not None and found.table is not None
    heatmap = found.panels[0].heatmap
    assert heatmap is not None
    assert heatmap.z[1][2] == heatmap.z[2][1]
    assert math.isnan(heatmap.z[3][3])
    assert heatmap.diverging
    assert found.table.rows[0][1:3] == ("1", "2")
    assert found.table.rows[0][7] == 6
    assert float(found.table.rows[0][3]) > 0.5  # type: ignore[arg-type]


def test_too_few_candidates_have_no_effects() -> None:
    few = report_data(study_data("a", [trial_data(0, "0,1", 1.0), trial_data(1, "0,2", 2.0)]))
    assert effects_figure(few) is None
    assert pairs_figure(few) is None


def test_dropped_sublayers_and_widths_are_fitted_apart() -> None:
    units = ("0a", "0m", "1a", "1m")
    kinds = []
    for name, sizes, text in (
        ("m-drop", (1, 1, 1, 1), "{0}a"),
        ("m-wide", (2, 8, 2, 8), "{0}:8/1"),
    ):
        trials = [trial_data(n, text.format(n % 2), float(n % 2)) for n in range(8)]
        trials += [trial_data(8 + n, f"{n}m", 2.0 + n) for n in range(2)]
        trials += [trial_data(10, "0", 3.0)]
        kinds.append(study_data(name, trials, units=units, unit_sizes=sizes))
    found = effects_figure(report_data(*kinds))
    assert found is not None and found.table is not None
    # The groups have equal descriptions, so they are named by their studies.
    assert [row[0] for row in found.table.rows] == ["m-drop"] * 4 + ["m-wide"] * 4
