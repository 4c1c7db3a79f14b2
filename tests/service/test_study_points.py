"""Reading the trials of a study for its charts."""

import math
import warnings
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from prunesearch.service.settings import ServiceSettings
from prunesearch.service.study_points import StudyPoints, study_points
from prunesearch.service.web.study_source import points_of
from prunesearch.studies import persistence


def study(
    folder: Path,
    directions: list[Literal["minimize", "maximize"]],
    *rows: tuple[str, list[float] | None],
) -> StudyPoints:
    """A study with trials: dropped layers, and values (None for a trial that failed)."""
    storage = persistence.open_storage(f"sqlite:///{folder}/study.db", create=True)
    made = optuna.create_study(storage=storage, study_name="a/b", directions=directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made.set_metric_names(["kl", "bytes"][: len(directions)])
    for dropped, values in rows:
        names = ["drop_00", "drop_07_attn", "drop_07_mlp"]
        trial = create_trial(
            params=dict.fromkeys(names, 0),
            distributions=dict.fromkeys(names, CategoricalDistribution([0, 1])),
            values=values,
            user_attrs={"dropped": dropped} if dropped else {},
            state=TrialState.COMPLETE if values else TrialState.FAIL,
        )
        made.add_trial(trial)
    found = study_points(storage, "a/b")
    assert found is not None
    assert study_points(storage, "nosuch") is None
    return found


def test_finished_trials_are_read_as_optuna_reads_them(tmp_path: Path) -> None:
    rows = [("7a", [0.5]), ("0", None), ("0,7m", [math.inf]), ("", [0.25]), ("7m", [0.25])]
    found = study(tmp_path, ["minimize"], *rows)
    assert [(point.number, point.values, point.dropped) for point in found.points] == [
        (0, (0.5,), "7a"),
        (2, (math.inf,), "0,7m"),
        (3, (0.25,), ""),
        (4, (0.25,), "7m"),
    ]
    assert (found.metrics, found.layers, found.is_pareto) == (("kl",), 8, False)
    # Of equal trials the earlier one comes first.
    assert [point.number for point in found.best(2)] == [3, 4]


def test_larger_values_can_be_better(tmp_path: Path) -> None:
    found = study(tmp_path, ["maximize"], ("0", [0.1]), ("7a", [0.9]))
    assert [point.number for point in found.best(5)] == [1, 0]


def test_a_front_has_no_dominated_trial(tmp_path: Path) -> None:
    values = ([1.0, 9.0], [2.0, 5.0], [3.0, 6.0], [4.0, 1.0])
    found = study(tmp_path, ["minimize"] * 2, *[("0", [*pair]) for pair in values])
    assert found.is_pareto
    assert [point.number for point in found.best(1)] == [0, 1, 3]


def test_a_study_without_trials(tmp_path: Path) -> None:
    found = study(tmp_path, ["minimize"])
    assert (found.points, found.layers, found.best(3)) == ((), 0, [])


def test_the_pages_read_a_study_again_when_another_trial_is_finished(tmp_path: Path) -> None:
    study(tmp_path, ["minimize"], ("0", [1.0]))
    settings = ServiceSettings(storage=f"sqlite:///{tmp_path}/study.db")
    first = points_of(settings, "a/b")
    assert first is not None
    assert points_of(settings, "a/b") is first
    found = optuna.load_study(storage=settings.storage, study_name="a/b")
    running = found.ask()
    assert points_of(settings, "a/b") is first
    found.tell(running, 0.5)
    second = points_of(settings, "a/b")
    assert second is not None
    assert [point.value for point in second.points] == [1.0, 0.5]
    assert points_of(settings, "nosuch") is None
