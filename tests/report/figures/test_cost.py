"""Cost of the searches."""

import math

import pytest

from prunesearch.report.figures.cost import figure
from prunesearch.report.figures.figure import Figure
from tests.support.study_values import report_data, study_data, trial_data


def cost_of(*trials: object, sampler: str = "pso") -> Figure:
    found = figure(report_data(study_data("a", list(trials), sampler=sampler)))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_only_what_was_computed_costs_time() -> None:
    found = cost_of(
        trial_data(0, "0,1", 3.0, cache="computed", seconds=2.0),
        trial_data(1, "0,2", 2.0, cache="computed", seconds=4.0),
        trial_data(2, "0,3", 1.0, cache="hit", seconds=0.0, saved_seconds=7.0),
        trial_data(3, "1,3", state="fail"),
    )
    assert found.table is not None
    row = dict(zip(found.table.head, found.table.rows[0], strict=True))
    assert row == {
        "study": "a",
        "finished trials": 3,
        "failed": 1,
        "computed": 2,
        "scoring (s)": 6.0,
        "saved by the cache (s)": 7.0,
        "first start to last end (s)": 4.0,
        "mean evaluation (s)": 3.0,
        "standard error (s)": 1.0,
    }
    time, mean = found.panels
    assert list(time.series[0].y) == [6.0]
    assert time.y_label == "time (s)"
    # The interval of 95 % of a mean of two values.
    (points,) = mean.series
    assert points.low is not None
    assert points.low[0] == pytest.approx(3.0 - 12.706, abs=1e-3)
    assert found.badges == ()


def test_a_single_evaluation_has_no_error() -> None:
    found = cost_of(trial_data(0, "0,1", 3.0, cache="computed", seconds=2.0))
    (points,) = found.panels[1].series
    assert points.low is not None
    assert math.isnan(points.low[0])
    assert found.table is not None
    assert found.table.rows[0][-1] is None


def test_replies_of_a_language_model_have_tokens_and_a_price() -> None:
    replies = {"calls": 2, "replayed": 1, "prompt_tokens": 100, "completion_tokens": 30}
    found = cost_of(
        trial_data(0, "0,1", 3.0, llm={"source": "model", "replies": {**replies, "cost": 0.25}}),
        trial_data(1, "0,2", 2.0, llm={"source": "model", "replies": {**replies, "cost": 0.5}}),
        trial_data(2, "0,3", 1.0, llm={"source": "fallback"}),
    )
    assert found.table is not None
    row = dict(zip(found.table.head, found.table.rows[0], strict=True))
    assert (row["replies"], row["recorded before"]) == (4, 2)
    assert (row["tokens read"], row["tokens written"], row["price"]) == (200, 60, 0.75)
    read, written = found.panels[2].series
    assert (list(read.y), list(written.y)) == ([200.0], [60.0])


def test_nothing_is_shown_without_a_finished_trial() -> None:
    study = study_data("a", [trial_data(0, "0,1", state="running")])
    assert figure(report_data(study)) is None
