from pathlib import Path

import optuna
import pytest

from prunesearch.studies.exports import EXPORTS_ATTR, exports_here, remember_export
from prunesearch.studies.optuna_internals.access import set_system_attribute


def test_exports_that_still_exist_are_known_the_latest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study()
    assert exports_here(study) == []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for name in ("one", "two", "gone", "one"):
        remember_export(study, tmp_path / name)
    assert exports_here(study) == [tmp_path / "one", tmp_path / "two"]
    # Another host has other folders, and what somebody else wrote there is nothing.
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        assert exports_here(study) == []
    for damaged in ("[1]", "{", '{"here": 3}'):
        set_system_attribute(study, EXPORTS_ATTR, damaged)
        assert exports_here(study) == []
