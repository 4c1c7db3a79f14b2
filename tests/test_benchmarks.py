"""Every benchmark runs: its smoke form writes a valid document.

These tests take minutes, so they are a step of their own: ``pytest -m smoke --dist load``.
"""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch
import transformers

from tests.support.paths import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
KEYS = {"benchmark", "command", "commit", "versions", "machine", "quick", "figures", "targets"}


@pytest.fixture
def settings_of_libraries() -> Iterator[None]:
    """Put back what a benchmark sets for its whole process."""
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    shown = transformers.logging.get_verbosity()
    yield
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(verbosity)
    transformers.logging.set_verbosity(shown)
    transformers.logging.enable_progress_bar()


@pytest.mark.smoke
@pytest.mark.usefixtures("settings_of_libraries")
@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_form_writes_a_valid_document(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "document.json"
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--json", str(path)])
    importlib.import_module(f"benchmarks.{name}").main()
    document = json.loads(path.read_text())
    assert document.keys() >= KEYS
    assert (document["benchmark"], document["quick"], document["size"]) == (name, True, "smoke")
    assert document["figures"]
    for figure, value in document["figures"].items():
        assert math.isfinite(value), figure
    for figure, target in document["targets"].items():
        assert figure in document["figures"]
        assert target["bound"].split()[0] in ("<=", ">=", "=="), figure
        assert isinstance(target["met"], bool)


def test_every_benchmark_has_a_page_of_results() -> None:
    pages = {path.stem for path in (FOLDER / "results").glob("*.md")}
    assert set(NAMES) <= pages
