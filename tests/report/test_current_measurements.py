"""Which measurements hold for the present trials of a study."""

from dataclasses import replace
from pathlib import Path

import optuna

from prunesearch.report.current_measurements import current
from prunesearch.report.figures import compared
from prunesearch.report.reading import read_report
from prunesearch.studies import measurements
from prunesearch.studies.recommendation import Recommendation, ScoredFinalist
from prunesearch.studies.study_data import StudyData, TrialData
from tests.support.study_values import measurement, study_data, trial_data
from tests.support.synthetic_studies import SyntheticStudy, write_study


def study_of(*trials: TrialData) -> StudyData:
    return study_data("a", trials)


def test_a_report_leaves_out_a_superseded_winner(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    write_study(tmp_path / "study.db", SyntheticStudy("s", trials=12))
    (study,) = read_report(storage, ["s"]).studies
    best, worst = study.ranked()[0], study.ranked()[-1]
    opened = optuna.load_study(study_name="s", storage=storage)
    # The worst candidate was the winner of the first trials.
    for place, trial in enumerate((worst, best)):
        made = measurement("winner", float(place), candidate=trial.dropped, made=float(place))
        measurements.add(opened, made)
    report = read_report(storage, ["s"])
    assert [made.candidate for made in report.measurements["s"]] == [best.dropped]
    (comparison,) = compared.measured(report.measurements, report.studies, {"s": "pso"})
    assert [(row.entry.name, row.entry.value) for row in comparison.rows] == [("pruned", 1.0)]


def test_the_winner_of_noisy_trials_is_the_recommended_one() -> None:
    finalists = (
        ScoredFinalist(1, "0,2", 0.6, 0.6, 0.1), ScoredFinalist(0, "0,1", 0.5, 0.7, 0.1),
    )  # fmt: skip
    trials = trial_data(0, "0,1", 0.5, kl=0.5), trial_data(1, "0,2", 0.6, kl=0.6)
    measured = (
        measurement("winner", 1.0, candidate="0,1"),
        measurement("winner", 1.0, candidate="0,2"),
        measurement("naive-best", 1.0, candidate="0,1"),
        measurement("naive-best", 1.0, candidate="0,3"),
    )
    noisy = replace(study_of(*trials), recommendation=Recommendation(2, 10, 1, 0, finalists))
    assert current(noisy, measured) == measured[1:3]
    # Without a recommendation the best value decides, and the naive best is the winner.
    assert current(study_of(*trials), measured) == measured[:1]


def test_the_naive_best_has_the_best_metric_where_size_counts_too() -> None:
    # The first value is a weighted sum, which makes another trial the best.
    trials = trial_data(0, "0,1", 1.0, kl=0.6), trial_data(1, "0,2", 1.5, kl=0.5)
    measured = measurement("winner", 1.0), measurement("naive-best", 1.0, candidate="0,2")
    assert current(study_of(*trials), measured) == measured
    more = *trials, trial_data(2, "0,3", 1.2, kl=0.4)
    assert current(study_of(*more), measured) == measured[:1]


def test_the_winner_of_a_front_is_its_member_that_was_measured_last() -> None:
    points = [("0,1", 0.0, 3.0), ("0", 1.0, 2.0), ("1,2", 2.0, 2.5), ("2", 3.0, 1.0)]
    trials = [trial_data(place, *point) for place, point in enumerate(points)]
    front = study_data("a", trials, maximize=(False, False), drop="pareto")
    measured = (
        measurement("winner", 1.0, candidate="0,1", made=1.0),
        measurement("winner", 1.0, candidate="0", made=2.0),
        measurement("winner", 1.0, candidate="0", made=2.5, data_content="search data"),
        # It was measured last, and is not on the front any more.
        measurement("winner", 1.0, candidate="1,2", made=3.0),
    )
    assert current(front, measured) == measured[1:3]


def test_baselines_drop_as_much_as_the_winner() -> None:
    trials = trial_data(0, "0,1", 1.0), trial_data(1, "2", 0.5)
    measured = (
        measurement("dense", 0.0, candidate="none"),
        measurement("winner", 1.0, candidate="0,1"),
        measurement("baseline:last", 2.0, candidate="1,2"),
        measurement("winner", 1.0, candidate="2"),
        measurement("baseline:last", 1.0, candidate="3"),
        measurement("exported", 1.0, candidate="0,1"),
    )
    assert current(study_of(*trials), measured) == (measured[0], *measured[3:])
    # The new winner is not measured yet, so that its baselines are not known.
    assert current(study_of(*trials), measured[:3]) == (measured[0], measured[2])
