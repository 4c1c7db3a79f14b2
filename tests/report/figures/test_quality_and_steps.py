"""Quality and cost against evaluations: the best so far, its mean and error over seeds."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from prunesearch.report.figures import quality, steps
from prunesearch.report.figures.figure import SEARCHED_ON
from prunesearch.report.figures.groups import comparable, groups_of
from prunesearch.report.figures.progress import Course, mean_course
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import style_of
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.study_data import StudyData, TrialData, read_studies
from tests.support.synthetic_studies import SyntheticStudy, write_study

NAMES = ("pso-0", "pso-1", "woa-0", "more", "front")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyData]:
    path = tmp_path_factory.mktemp("studies") / "study.db"
    write_study(path, SyntheticStudy("pso-0", trials=20))
    write_study(path, SyntheticStudy("pso-1", seed=1, trials=16))
    write_study(path, SyntheticStudy("woa-0", "woa", trials=20))
    write_study(path, SyntheticStudy("more", drop=5, trials=8))
    write_study(path, SyntheticStudy("front", "nsga2", trials=8, pareto=True))
    found = read_studies(f"sqlite:///{path}", NAMES)
    return {study.name: study for study in found}


def report(*studies: StudyData, measured: Measurement | None = None) -> ReportData:
    found = {} if measured is None else {studies[0].name: (measured,)}
    return ReportData(studies, datetime(2026, 11, 27, tzinfo=UTC), found)


def with_values(study: StudyData, *values: float | None) -> StudyData:
    """The study with these values; None is a partial subset."""
    trials = []
    for number, value in enumerate(values):
        state, found = ("pruned", ()) if value is None else ("complete", (value,))
        base = study.trials[number]
        trials.append(replace(base, state=state, values=found))  # type: ignore[arg-type]
    return replace(study, trials=tuple(trials))


def test_groups_differ_in_more_than_the_seed(studies: dict[str, StudyData]) -> None:
    found = groups_of([studies[name] for name in ("pso-0", "woa-0", "pso-1")])
    assert [(group.label, len(group.studies)) for group in found] == [("pso", 2), ("woa", 1)]
    assert [group.style for group in found] == [style_of("pso"), style_of("woa")]
    # Groups of one algorithm are told apart by what differs.
    found = groups_of([studies["pso-0"], studies["more"]])
    assert [group.label for group in found] == ["pso (drop 3)", "pso (drop 5)"]
    parts = comparable([studies[name] for name in ("pso-0", "more", "woa-0")])
    assert [(part.title, len(part.studies)) for part in parts] == [
        ("removing 3 blocks", 2), ("removing 5 blocks", 1),
    ]  # fmt: skip
    assert comparable([studies["pso-0"]])[0].title == ""


def test_labels_of_groups_are_cut_unless_they_would_be_equal(
    studies: dict[str, StudyData],
) -> None:
    settings = ("first:1,last:1", "first:1,last:2", "first:1,last:2", "none at all")
    found = []
    for place, protect in enumerate(settings):
        identity = {**studies["pso-0"].identity, "protect": protect, "seed": place}
        found.append(replace(studies["pso-0"], identity=identity))
    groups = groups_of(found)
    assert [(group.label, len(group.studies)) for group in groups] == [
        ("pso (protect first:1,last:1)", 1), ("pso (protect first:1,last:2)", 2),
        ("pso (protect none at all)", 1),
    ]  # fmt: skip
    # A long value is cut if its beginning tells it from the others.
    identity = {**studies["pso-0"].identity, "protect": "another long value"}
    groups = groups_of([found[0], replace(found[0], identity=identity)])
    assert [group.label for group in groups] == [
        "pso (protect first:1,last)", "pso (protect another long)",
    ]  # fmt: skip


def test_the_best_so_far_ignores_partial_subsets_and_nan(studies: dict[str, StudyData]) -> None:
    study = with_values(studies["pso-0"], None, 3.0, math.nan, 2.0, 4.0, 1.0)
    course = Course.of(study)
    assert course.best.tolist() == [-1, 1, 1, 3, 3, 5]
    assert course.improvements == [1, 3, 5]
    assert course.finished == [1, 3, 4, 5]
    values = [math.nan if not trial.values else trial.values[0] for trial in course.trials]
    np.testing.assert_array_equal(course.of_best(values), [math.nan, 3, 3, 2, 2, 1])
    # Where more is better, the largest value is the best.
    more = Course.of(replace(study, maximize=(True,), more_is_better=True))
    assert more.improvements == [1, 4]


def test_the_mean_has_the_error_over_studies_and_ends_with_the_shortest() -> None:
    one, two = np.array([4.0, 2.0, 2.0, 2.0]), np.array([6.0, 4.0, 4.0, 4.0, 0.0])
    mean = mean_course([one, two])
    # The position in the middle changes nothing, so it is left out.
    assert mean.x == [1, 2, 4]
    assert mean.mean == [5.0, 3.0, 3.0]
    # Values that differ by 2 have the standard deviation sqrt(2), so the error of their mean is 1.
    assert mean.error == pytest.approx([1.0, 1.0, 1.0])
    alone = mean_course([one])
    assert (alone.x, alone.mean) == ([1, 2, 4], [4.0, 2.0, 2.0])
    assert all(map(math.isnan, alone.error))


def test_quality_shows_the_best_so_far_all_candidates_and_the_worst(
    studies: dict[str, StudyData],
) -> None:
    pair = [studies["pso-0"], studies["pso-1"]]
    figure = quality.figure(report(*pair, studies["woa-0"]))
    assert figure is not None
    assert figure.badges == (SEARCHED_ON,)
    (panel,) = figure.panels
    assert panel.y_label == "KL to dense (nats/token)"
    # The values span much, and a logarithmic axis has no place for the dense model's 0.
    assert panel.log_y
    assert not panel.rules
    lines = {series.name: series for series in panel.series if series.kind == "step"}
    assert list(lines) == ["pso", "woa"]
    # The mean of two studies, with its error, to where both have got.
    line = lines["pso"]
    assert line.low is not None
    assert line.x[-1] == 16
    bests = []
    for study in pair:
        bests.append(min(trial.values[0] for trial in study.trials[:16]))
    assert line.y[-1] == pytest.approx(sum(bests) / 2)
    assert line.y[-1] - line.low[-1] == pytest.approx(abs(bests[0] - bests[1]) / 2)
    # One study: the error of its best score.
    alone = lines["woa"]
    assert alone.low is not None
    assert alone.y[-1] - alone.low[-1] == pytest.approx(0.004)
    clouds = [series for series in panel.series if series.emphasis == "faint"]
    assert [len(cloud.x) for cloud in clouds] == [36, 20]
    marks = [series for series in panel.series if series.emphasis == "strong"]
    values = [trial.values[0] for study in pair for trial in study.trials]
    assert [marks[0].y[0], marks[1].y[0]] == [min(values), max(values)]
    assert figure.table is not None
    assert len(figure.table.rows) == 56


def test_wide_values_have_a_logarithmic_axis(studies: dict[str, StudyData]) -> None:
    wide = replace(with_values(studies["pso-0"], 0.1, 9.0, 40.0), dense={})
    figure = quality.figure(report(wide))
    assert figure is not None
    assert figure.panels[0].log_y
    zero = replace(with_values(studies["pso-0"], 0.0, 9.0, 40.0), dense={})
    figure = quality.figure(report(zero))
    assert figure is not None
    assert not figure.panels[0].log_y


def test_fronts_and_unfinished_studies_have_no_best(studies: dict[str, StudyData]) -> None:
    empty = replace(studies["pso-0"], trials=())
    assert quality.figure(report(studies["front"], empty)) is None
    assert steps.figure(report(studies["front"], empty)) is None


def test_steps_show_size_and_latency_of_the_best_so_far(studies: dict[str, StudyData]) -> None:
    study = studies["pso-0"]
    best = study.best()
    assert best is not None
    measured = Measurement(
        best.dropped, "winner", "text", "digest", "held out", "kl", 0.2, None, 10,
        prefill_ms=40.0, latency_runs=5, machine="a CPU",
    )  # fmt: skip
    figure = steps.figure(report(study, measured=measured))
    assert figure is not None
    size, predicted, latency = figure.panels
    assert [panel.y_label for panel in figure.panels] == [
        "size of the weights (GiB)", "predicted latency (ms)", "measured latency (ms)",
    ]  # fmt: skip
    # Nine of twelve blocks of 2 ms, and 9 ms for the rest.
    assert set(predicted.series[0].y) == {27.0}
    assert predicted.rules[0].value == 33.0
    assert predicted.y_range == pytest.approx((0, 33.0 * 1.08))
    assert size.series[0].y[0] == pytest.approx(2 * (28_311_552 + 9 * 3_540_096) / 2**30)
    (point,) = latency.series
    first = min(trial.number for trial in study.trials if trial.dropped == best.dropped)
    assert (list(point.x), list(point.y)) == ([first + 1], [40.0])
    assert "median of 5 runs on a CPU" in (point.labels or [""])[0]
    assert "all candidates cost the same" in figure.caption
    assert figure.table is not None
    winners = [row for row in figure.table.rows if row[6] is not None]
    assert {(row[7], row[9]) for row in winners} == {(5, best.dropped)}
    # Newer studies know the size of the dense model.
    assert size.rules == ()
    newer = steps.figure(report(replace(study, dense_costs={"bytes": 2**30}), measured=measured))
    assert newer is not None
    assert [rule.value for rule in newer.panels[0].rules] == [1.0]


def test_costs_that_differ_little_do_not_begin_at_zero(studies: dict[str, StudyData]) -> None:
    def of_size(trial: TrialData, size: int) -> TrialData:
        return replace(trial, attributes={**trial.attributes, "bytes": size})

    study = studies["pso-0"]
    trials = tuple(of_size(trial, 950 + trial.number) for trial in study.trials)
    figure = steps.figure(report(replace(study, trials=trials)))
    assert figure is not None
    assert figure.panels[0].y_range is None
    # Sizes that are nearly equal are drawn as equal ones.
    trials = tuple(of_size(trial, 10**8 + trial.number) for trial in study.trials)
    figure = steps.figure(report(replace(study, trials=trials)))
    assert figure is not None
    assert figure.panels[0].y_range is not None
    assert "all candidates cost the same" in figure.caption
    trials = tuple(of_size(trial, 100 + 90 * trial.number) for trial in study.trials)
    figure = steps.figure(report(replace(study, trials=trials)))
    assert figure is not None
    assert figure.panels[0].y_range is not None
