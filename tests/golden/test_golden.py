"""What earlier versions wrote is still what this version writes, reads, and continues."""

import json
import shutil
from pathlib import Path

import optuna
import pytest

from prunesearch.cache import maintenance
from prunesearch.cache.location import CacheLocation
from prunesearch.errors import InputError
from prunesearch.samplers import SwarmSampler, build
from tests.golden import results, studies
from tests.golden.record import FILES

STUDIES = json.loads((FILES / "studies.json").read_text())


@pytest.mark.parametrize("name", studies.CASES)
def test_a_seeded_study_proposes_the_same_trials(name: str) -> None:
    assert studies.dump(studies.run_case(studies.CASES[name], None)) == STUDIES[name]


def test_a_study_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    shutil.copyfile(FILES / "study.db", tmp_path / "pso.db")
    study = studies.run_case(studies.CASES["pso"], studies.database(tmp_path, "pso"))
    assert studies.dump(study) == STUDIES["pso"]


def test_a_study_of_older_rules_goes_on_under_the_new_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copyfile(FILES / "study_of_rules_1.db", tmp_path / "pso.db")
    case = studies.CASES["pso"]
    optuna_log = optuna.logging.get_logger("optuna")
    optuna_log.addHandler(caplog.handler)
    try:
        # The notice comes once, and the old trials stay.
        before = studies.dump(studies.run_case(case, studies.database(tmp_path, "pso"), trials=1))
        study = studies.run_case(case, studies.database(tmp_path, "pso"))
        studies.run_case(case, studies.database(tmp_path, "pso"))
    finally:
        optuna_log.removeHandler(caplog.handler)
    notices = [
        line for line in caplog.messages if "was begun by another version of prunesearch" in line
    ]
    assert len(notices) == 1
    after = studies.dump(study)
    assert len(before) < len(after) == studies.TRIALS
    assert after[: len(before)] == before
    # Only within the generation that was under way may a subset be proposed again.
    assert len({row[2] for row in after}) >= studies.TRIALS - 3
    # What was proposed by these rules can be derived again, what was before cannot.
    sampler = build(case.sampler, case.space, **case.options)
    assert isinstance(sampler, SwarmSampler)
    assert sampler.reproduce(study, studies.TRIALS - 1).text == after[-1][2]
    with pytest.raises(InputError, match="trial 0 was proposed under the rules of another version"):
        sampler.reproduce(study, 0)


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    return folder


def test_a_cache_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    folder = _private(tmp_path / "cache")
    shutil.copyfile(FILES / "cache.db", folder / "cache.db")
    (folder / "cache.db").chmod(0o600)
    assert results.fill_cache(folder) == (results.TRIALS, 0)


def test_an_exchange_file_of_an_earlier_version_is_imported(tmp_path: Path) -> None:
    folder = _private(tmp_path / "cache")
    done = maintenance.merge(CacheLocation.parse(str(folder)), [FILES / "evaluations.jsonl"])
    assert (done.read, done.new, done.conflicts) == (2 * results.TRIALS, 2 * results.TRIALS, 0)
    assert results.fill_cache(folder) == (results.TRIALS, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model that is the same on every machine, a text and rows of a task."""
    folder = tmp_path_factory.mktemp("golden")
    results.write_model(folder / "model")
    return folder / "model", *results.write_data(folder)


def test_keys_are_made_of_the_same(model: tuple[Path, Path, Path]) -> None:
    assert results.keys(*model) == json.loads((FILES / "keys.json").read_text())


def test_json_documents_have_the_same_shape(
    model: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = json.loads((FILES / "documents.json").read_text())
    found = results.documents(*model)
    assert {name: found[name] for name in expected} == expected
