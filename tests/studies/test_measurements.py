"""What later stages measured of a study's candidates."""

import dataclasses
import json
from pathlib import Path

import optuna
import pytest

from prunesearch.errors import InputError, UnknownNameError
from prunesearch.studies import measurements
from prunesearch.studies.copying import copy_studies
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.optuna_internals.access import set_system_attribute
from tests.support.stored_studies import store_study, trial

WINNER = Measurement(
    candidate="3,7a",
    role="winner",
    data="built-in held-out text",
    data_content="d" * 64,
    badge="held out",
    metric="kl",
    value=0.25,
    stderr=0.01,
    n=3,
    per_document=(0.1, 1 / 3, 0.3),
    params=1000,
    bytes=2000,
    prefill_ms=12.5,
    latency_runs=11,
    texts=(("Once <b>upon</b>", " a \N{SNOWMAN} time"),),
    made=1000.0,
    machine="a CPU",
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    store_study(url, "s", [trial(0, 0.5)])
    return url


def test_a_measurement_is_read_as_it_was_stored(url: str) -> None:
    study = optuna.load_study(storage=url, study_name="s")
    dense = dataclasses.replace(
        WINNER, candidate="none", role="dense", per_document=(), texts=(), made=2000.0
    )
    measurements.add(study, dense)
    measurements.add(study, WINNER)
    first, second = measurements.read(url, "s")
    assert second == dense
    assert first.per_document == pytest.approx(WINNER.per_document, rel=1e-8)
    assert dataclasses.replace(first, per_document=WINNER.per_document) == WINNER
    assert measurements.of_role([first, second], "dense") == (dense,)


def test_another_checkpoint_of_a_candidate_is_measured_again(url: str) -> None:
    study = optuna.load_study(storage=url, study_name="s")
    first = dataclasses.replace(WINNER, role="healed", checkpoint="a" * 64)
    second = dataclasses.replace(first, checkpoint="b" * 64, value=0.2)
    measurements.add(study, first)
    assert measurements.has(study, first)
    assert not measurements.has(study, second)
    measurements.add(study, second)
    (kept,) = measurements.read(url, "s")
    assert (kept.value, kept.checkpoint) == (0.2, "b" * 64)


def test_measuring_the_same_again_replaces(url: str) -> None:
    study = optuna.load_study(storage=url, study_name="s")
    measurements.add(study, WINNER)
    measurements.add(study, dataclasses.replace(WINNER, value=0.5, made=3000.0))
    measurements.add(study, dataclasses.replace(WINNER, data_content="e" * 64))
    found = measurements.read(url, "s")
    assert [(one.value, one.made) for one in found] == [(0.25, 1000.0), (0.5, 3000.0)]
    # A copy of the study has them too.
    copy_studies(url, url, ["s"], "copy")
    assert measurements.read(url, "copy") == found
    # A dashboard's list of attributes does not show them.
    assert not [name for name in study.user_attrs if "measured" in name]
    assert measurements.has(study, WINNER)
    assert not measurements.has(study, dataclasses.replace(WINNER, metric="acc"))


def test_losses_are_comparable_on_the_same_documents_only() -> None:
    assert WINNER.is_comparable(dataclasses.replace(WINNER, candidate="1"))
    assert not WINNER.is_comparable(dataclasses.replace(WINNER, data_content="e"))
    assert not WINNER.is_comparable(dataclasses.replace(WINNER, metric="acc"))
    assert not WINNER.is_comparable(dataclasses.replace(WINNER, per_document=()))


def test_what_another_version_stored_is_left_out(url: str) -> None:
    study = optuna.load_study(storage=url, study_name="s")
    measurements.add(study, WINNER)
    changed = {**WINNER.stored(), "value": "large"}
    damaged: tuple[str | int, ...] = ("[", "{}", json.dumps(changed), 7)
    for number, stored in enumerate(damaged):
        set_system_attribute(study, f"{measurements.MEASURED_ATTR}{number}", stored)
    assert len(measurements.read(url, "s")) == 1
    with pytest.raises(UnknownNameError, match="unknown study"):
        measurements.read(url, "t")


def test_unknown_roles_and_badges_are_refused() -> None:
    with pytest.raises(InputError, match="role 'best' of a measurement is not known"):
        dataclasses.replace(WINNER, role="best")
    with pytest.raises(InputError, match="badge 'fresh' of a measurement is not known"):
        dataclasses.replace(WINNER, badge="fresh")  # type: ignore[arg-type]
    assert dataclasses.replace(WINNER, role="baseline:magnitude").role == "baseline:magnitude"
