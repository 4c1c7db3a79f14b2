"""The stages of the pipeline: which run, what they do once, and what they find again."""

from collections.abc import Callable
from pathlib import Path

import pytest

import prunesearch
from prunesearch.config.recovery import HealRecipe, Recovery
from prunesearch.errors import StorageError, UnknownNameError, VerificationError
from prunesearch.export.checkpoint import UnpublishedCheckpoint
from prunesearch.models import loading
from prunesearch.pipeline import session
from prunesearch.pipeline.export_request import ExportRequest
from prunesearch.pipeline.run import COMMANDS, request_of, run_stages, stages_of
from prunesearch.pipeline.state import LayersSource, Request
from prunesearch.recovery import finalists
from prunesearch.report.results import HealReport, RecoveredReport, RunReport


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finalists, "FIT_TOKENS", 512)
    return tmp_path


@pytest.fixture
def options() -> prunesearch.RunOptions:
    return prunesearch.RunOptions(trials=4)


@pytest.fixture
def short(prose: Path) -> HealRecipe:
    return HealRecipe(
        data=str(prose),
        window=32,
        held_out_tokens=128,
        steps=2,
        batch_size=2,
        eval_every=1,
        loss="distill",
        precision="float32",
    )


@pytest.fixture
def make_recipe(tiny_folder: Path, prose: Path) -> Callable[..., prunesearch.Recipe]:
    def make(recover: Recovery | None = None) -> prunesearch.Recipe:
        return prunesearch.Recipe(
            model={"path": str(tiny_folder)},
            data={"calibration": str(prose), "tokens": 128, "window": 64},
            search={"drop": "2", "population": 2},
            recover=recover,
        )

    return make


class Counts:
    """Counts of the calls of functions."""

    def __init__(self) -> None:
        self.loads = self.fingerprints = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counted = Counts()
    load: Callable[..., object] = vars(session)["load"]
    fingerprint: Callable[..., str] = vars(loading)["fingerprint"]

    def counting_load(*args: object, **kwargs: object) -> object:
        counted.loads += 1
        return load(*args, **kwargs)

    def counting_fingerprint(*args: object) -> str:
        counted.fingerprints += 1
        return fingerprint(*args)

    monkeypatch.setattr(session, "load", counting_load)
    monkeypatch.setattr(loading, "fingerprint", counting_fingerprint)
    return counted


def test_each_command_is_a_range_of_the_stages() -> None:
    names = {command: [stage.name for stage in stages_of(command)] for command in COMMANDS}
    assert names["search"] == ["search", "report"]
    assert names["run"] == (
        "search select compensate tune heal export verify evaluate report".split()
    )
    assert names["heal"] == "select compensate tune heal export verify report".split()
    assert names["heal"] == names["export"] == names["compensate"]
    assert names["evaluate"] == ["evaluate", "report"]


def test_a_search_with_an_export_loads_and_hashes_the_model_once(
    here: Path,
    make_recipe: Callable[..., prunesearch.Recipe],
    options: prunesearch.RunOptions,
    counts: Counts,
) -> None:
    state = run_stages("run", request_of((make_recipe(),), options, here / "out"))
    assert (counts.loads, counts.fingerprints) == (1, 1)
    assert isinstance(state.report, RunReport)
    assert state.report.export.folder == here / "out"


def test_healing_loads_and_hashes_the_model_once(
    here: Path,
    tiny_folder: Path,
    short: HealRecipe,
    options: prunesearch.RunOptions,
    counts: Counts,
) -> None:
    model = prunesearch.Recipe(model=str(tiny_folder), search={"drop": "1"}).model
    request = Request(
        options,
        source=LayersSource(model, "1,3"),
        export=ExportRequest(here / "out"),
        recovery=Recovery(heal=short, compensate=True),
    )
    first = run_stages("heal", request).report
    assert (counts.loads, counts.fingerprints) == (1, 1)
    again = run_stages("heal", request).report
    assert isinstance(first, HealReport)
    assert isinstance(again, HealReport)
    assert first.export is not None
    assert again.export is None, "the equal export is left as it is"


def test_a_recovery_after_a_search_loads_and_hashes_the_model_once(
    here: Path,
    make_recipe: Callable[..., prunesearch.Recipe],
    short: HealRecipe,
    options: prunesearch.RunOptions,
    counts: Counts,
) -> None:
    recover = Recovery(heal=short, finalists=2, finalist_steps=1)
    state = run_stages("run", request_of((make_recipe(recover),), options, None))
    assert (counts.loads, counts.fingerprints) == (1, 1)
    report = state.report
    assert isinstance(report, RecoveredReport)
    assert report.heal.export is not None
    assert report.heal.export.folder.name == f"{report.search.study}-recovered"
    assert (report.heal.export.folder / "config.json").is_file()


@pytest.mark.parametrize("name", ["gguf", "zerod"])
def test_recovered_weights_are_written_as_a_checkpoint(
    here: Path,
    tiny_folder: Path,
    short: HealRecipe,
    options: prunesearch.RunOptions,
    counts: Counts,
    name: str,
) -> None:
    model = prunesearch.Recipe(model=str(tiny_folder), search={"drop": "1"}).model
    request = Request(
        options,
        source=LayersSource(model, "1,3"),
        export=ExportRequest(here / "out", name),
        recovery=Recovery(heal=short),
    )
    with pytest.raises(UnknownNameError, match=f"unknown export format '{name}'"):
        run_stages("heal", request)
    assert counts.loads == 0


def test_a_request_is_refused_before_the_model_is_loaded(
    here: Path,
    make_recipe: Callable[..., prunesearch.Recipe],
    options: prunesearch.RunOptions,
    counts: Counts,
) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="is not empty"):
        run_stages("run", request_of((make_recipe(),), options, here / "out"))
    assert counts.loads == 0


def test_nothing_is_published_that_was_not_verified(
    here: Path,
    make_recipe: Callable[..., prunesearch.Recipe],
    options: prunesearch.RunOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def differs(checkpoint: UnpublishedCheckpoint) -> None:
        raise VerificationError("the logits differ")

    monkeypatch.setattr(UnpublishedCheckpoint, "verify", differs)
    with pytest.raises(VerificationError, match="the logits differ"):
        run_stages("run", request_of((make_recipe(),), options, here / "out"))
    assert not (here / "out").exists()
    assert not [path for path in here.iterdir() if path.name not in ("storage",)]
