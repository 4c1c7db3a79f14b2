"""Whose evaluations the studies reused."""

from prunesearch.report.figures.cache_reuse import figure
from tests.support.study_values import report_data, study_data, trial_data


def test_hits_are_told_apart_by_the_study_that_scored_them() -> None:
    first = study_data(
        "model-a",
        [
            trial_data(0, "0,1", 3.0, cache="computed", seconds=2.0),
            trial_data(1, "0,2", 2.0, cache="computed", seconds=4.0),
            trial_data(2, "0,2", 2.0, cache="hit", saved_seconds=4.0),
        ],
    )
    second = study_data(
        "model-b",
        [
            # Found in the first study, scored before the report's studies, and computed.
            trial_data(0, "0,1", 3.0, started=50.0, cache="hit", saved_seconds=2.0),
            trial_data(1, "2,3", 3.0, started=51.0, cache="hit", saved_seconds=9.0),
            trial_data(2, "1,3", 3.0, started=52.0, cache="computed", seconds=1.0),
        ],
    )
    found = figure(report_data(first, second))
    assert found is not None and found.table is not None
    assert found.table.rows == (
        ("model-a", "computed", 2, 6.0, None),
        ("model-a", "reused: this study", 1, None, 4.0),
        ("model-b", "computed", 1, 1.0, None),
        ("model-b", "reused: model-a", 1, None, 2.0),
        ("model-b", "reused: not in this report", 1, None, 9.0),
    )
    candidates, time = found.panels
    bars = {series.name: list(series.y) for series in candidates.series}
    assert bars == {
        "computed": [2.0, 1.0],
        "reused of a": [0.0, 1.0],
        "reused of this study": [1.0, 0.0],
        "reused, scored elsewhere": [0.0, 1.0],
    }
    assert candidates.bars == "stacked"
    assert sum(sum(series.y) for series in time.series) == 22.0
    assert "Of 6 candidates 3 were found in the cache, which saved 15 s" in found.caption


def test_a_study_that_scored_a_candidate_later_is_not_its_origin() -> None:
    early = study_data("a", [trial_data(0, "0,1", 1.0, cache="hit", saved_seconds=1.0)])
    late = study_data("b", [trial_data(0, "0,1", 1.0, started=99.0, cache="computed", seconds=1.0)])
    found = figure(report_data(early, late))
    assert found is not None and found.table is not None
    assert found.table.rows[0][:3] == ("a", "computed", 0)
    assert found.table.rows[1][1] == "reused: not in this report"


def test_studies_on_other_data_share_nothing() -> None:
    scored = trial_data(0, "0,1", 1.0, cache="computed", seconds=1.0)
    again = trial_data(0, "0,1", 1.0, started=9.0, cache="hit", saved_seconds=1.0)
    found = figure(
        report_data(study_data("a", [scored]), study_data("b", [again], data_content="other"))
    )
    assert found is not None and found.table is not None
    assert ("b", "reused: not in this report", 1, None, 1.0) in found.table.rows


def test_a_report_of_many_studies_names_the_six_that_were_reused_most() -> None:
    candidates = [f"{first},{second}" for first in range(4) for second in range(first + 1, 12)]
    studies = []
    for index, dropped in enumerate(candidates[:9]):
        scored = trial_data(0, dropped, 1.0, cache="computed", seconds=1.0)
        studies.append(study_data(f"s{index}", [scored], n_layers=12))
    hits = []
    for number, dropped in enumerate(candidates[:9]):
        hits.append(trial_data(number, dropped, 1.0, started=99.0, cache="hit", saved_seconds=1.0))
    studies.append(study_data("last", hits, n_layers=12))
    found = figure(report_data(*studies))
    assert found is not None
    bars = {series.name: sum(series.y) for series in found.panels[0].series}
    assert len(bars) == 8
    assert bars["reused of other studies"] == 3.0
    assert sum(bars.values()) == 18.0


def test_studies_without_a_cache_show_nothing() -> None:
    assert figure(report_data(study_data("a", [trial_data(0, "0,1", 1.0)]))) is None
