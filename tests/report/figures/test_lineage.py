"""The lineage of the best candidates."""

import pytest

from prunesearch.report.figures.figure import SEARCHED_ON
from prunesearch.report.figures.lineage import figure
from tests.support.study_values import report_data, study_data, trial_data


def test_each_step_has_its_value_and_what_it_changed() -> None:
    study = study_data(
        "a",
        [
            trial_data(0, "0,1", 3.0),
            trial_data(1, "2,3", 9.0),
            trial_data(2, "0,2", 2.0, parents=(0,)),
            trial_data(3, "0,3", 1.0, parents=(2,)),
        ],
    )
    found = figure(report_data(study))
    assert found is not None and found.table is not None
    assert found.table.rows == (
        ("a", 0, 3.0, None, None, None, None, "0,1", SEARCHED_ON),
        ("a", 2, 2.0, 0, "parent", "2", "1", "0,2", SEARCHED_ON),
        ("a", 3, 1.0, 2, "parent", "3", "2", "0,3", SEARCHED_ON),
    )
    values, steps = found.panels
    (line,) = values.series
    assert (list(line.x), list(line.y)) == ([0.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert line.labels == ["trial 0: drops 0,1", "trial 2: +2 \u22121", "trial 3: +3 \u22122"]
    assert steps.heatmap is not None
    assert steps.heatmap.y == ["trial 0", "trial 2", "trial 3"]
    assert steps.heatmap.z == [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert found.badges == (SEARCHED_ON,)


def test_a_candidate_without_ancestors_has_no_map() -> None:
    study = study_data("a", [trial_data(0, "0,1", 3.0)], sampler="random")
    found = figure(report_data(study))
    assert found is not None
    assert len(found.panels) == 1
    assert figure(report_data(study_data("a", []))) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_lineage_of_a_pareto_study_is_that_of_the_knee(sign: float) -> None:
    points = [(0.0, 10.0), (0.1, 2.0), (0.5, 1.0), (1.0, 0.0), (0.9, 9.0)]
    trials = [trial_data(n, "0", sign * loss, size) for n, (loss, size) in enumerate(points)]
    study = study_data("a", trials, maximize=(sign < 0, False))
    knee = study.winner()
    assert knee is not None
    assert knee.number == 1


def test_partial_subsets_have_the_value_of_their_metric() -> None:
    study = study_data(
        "a",
        [trial_data(0, "1", state="pruned", kl=0.5), trial_data(1, "0,1", 1.0)],
        sampler="greedy",
    )
    found = figure(report_data(study))
    assert found is not None
    assert list(found.panels[0].series[0].y) == [0.5, 1.0]
