"""Figures of a noisy study show the recommended trial, whose value need not be the best."""

from dataclasses import replace

from prunesearch.report.figures import agreement, steps
from prunesearch.studies.recommendation import Recommendation, ScoredFinalist
from prunesearch.studies.study_data import StudyData
from tests.support.study_values import measurement, report_data, study_data, trial_data

TRIALS = [
    trial_data(0, "0,2", 0.6, bytes=100, latency_ms=1.0),
    trial_data(1, "0,1", 0.5, bytes=100, latency_ms=1.0),
    trial_data(2, "0,2", 0.6, bytes=100, latency_ms=1.0),
]
FINALISTS = ScoredFinalist(2, "0,2", 0.6, 0.6, 0.1), ScoredFinalist(1, "0,1", 0.5, 0.7, 0.1)


def noisy(name: str, sampler: str = "pso") -> StudyData:
    """A study with trial 2 as the best one, whose candidate trial 0 proposed before."""
    made = Recommendation(3, 10, chosen=2, naive=1, finalists=FINALISTS)
    return replace(study_data(name, TRIALS, sampler=sampler), recommendation=made)


def test_algorithms_agree_on_what_the_recommended_trials_drop() -> None:
    other = study_data("m-b", [trial_data(0, "0,3", 0.9)], sampler="woa")
    found = agreement.figure(report_data(noisy("m-a"), other))
    assert found is not None and found.table is not None
    assert found.table.rows[0][1:4] == ("0", "2", "3")
    assert found.panels[0].heatmap is not None
    assert found.panels[0].heatmap.z[0] == [100, 0, 100, 0]


def test_the_lineage_is_that_of_the_recommended_trial() -> None:
    shown = noisy("a").winner()
    assert shown is not None
    assert shown.number == 2


def test_a_measured_latency_stands_where_the_winner_was_found() -> None:
    winner = measurement("winner", 1.0, candidate="0,2", prefill_ms=40.0, latency_runs=5)
    unknown = replace(winner, candidate="1,2")
    found = steps.figure(report_data(noisy("a"), measurements={"a": (winner,)}))
    assert found is not None
    (latency,) = [panel for panel in found.panels if panel.y_label.startswith("measured")]
    # The first trial proposed the candidate. The best value is that of the second.
    assert (list(latency.series[0].x), list(latency.series[0].y)) == ([1], [40.0])
    # A candidate that no trial proposed has no place.
    found = steps.figure(report_data(noisy("a"), measurements={"a": (unknown,)}))
    assert found is not None
    assert not any(panel.y_label.startswith("measured") for panel in found.panels)
