"""The hidden-state cosine against a plain forward pass, and its use on every way in."""

import functools
import math
from pathlib import Path

import pytest
import torch

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.worker import Content
from prunesearch.evaluation.worker_pool import WorkerPool
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import remove
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.hidden_cosine import HiddenCosine
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.reference_cache import ReferenceCache
from tests.support.cli import FAST, refused, run, run_json
from tests.support.models import N_LAYERS, results_of, tiny

CANDIDATE = LayerSubset.of(N_LAYERS, (1, 4))
DENSE = LayerSubset.of(N_LAYERS)
WINDOWS = torch.arange(6 * 64).view(6, 64) % 264


@pytest.fixture
def windows(loaded: LoadedModel, prose: Path) -> torch.Tensor:
    return token_windows(str(prose), loaded.tokenizer, 1536, 96)


@torch.inference_mode()
def test_it_is_the_cosine_of_the_last_hidden_states_of_transformers(
    loaded: LoadedModel, windows: torch.Tensor
) -> None:
    objective = CalibrationObjective(loaded, windows, HiddenCosine())
    found = objective.metrics(*results_of(loaded, objective, CANDIDATE))

    dense_BLE = tiny().model(windows).last_hidden_state.double()
    pruned_BLE = remove(tiny(), CANDIDATE).model(windows).last_hidden_state.double()
    loss_BL = 1 - torch.cosine_similarity(dense_BLE, pruned_BLE, dim=-1)
    assert found.values == {"hidden_cosine": pytest.approx(loss_BL.mean().item(), rel=1e-4)}
    expected = loss_BL.mean(1).std().item() / math.sqrt(len(windows))
    assert found.stderr == {"hidden_cosine": pytest.approx(expected, rel=1e-3)}


def test_the_dense_model_is_exactly_zero(loaded: LoadedModel, windows: torch.Tensor) -> None:
    objective = CalibrationObjective(loaded, windows, HiddenCosine())
    dense, candidate = results_of(loaded, objective, DENSE, CANDIDATE)
    assert objective.metrics(dense).values == {"hidden_cosine": 0.0}
    losses = objective.losses(candidate)
    assert len(losses) == len(windows)
    assert all(loss > 0 for loss in losses)


def test_its_entries_and_references_are_its_own(
    loaded: LoadedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    cosine = CalibrationObjective(loaded, windows, HiddenCosine(), ReferenceCache(tmp_path))
    kl = CalibrationObjective(loaded, windows, KL(), ReferenceCache(tmp_path))
    assert cosine.chunks[0].identity != kl.chunks[0].identity
    first = results_of(loaded, cosine, CANDIDATE)
    results_of(loaded, kl, CANDIDATE)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(cosine.chunks) + len(kl.chunks)
    # Another process reads the dense states from the files.
    again = CalibrationObjective(loaded, windows, HiddenCosine(), ReferenceCache(tmp_path))
    assert results_of(loaded, again, CANDIDATE) == first


def build(folder: str, number: int) -> tuple[CalibrationObjective, Forward, str]:
    torch.set_num_threads(1)
    loaded = load(folder, device="cpu")
    objective = CalibrationObjective(loaded, WINDOWS, HiddenCosine())
    return objective, Forward(loaded.model, loaded.layers), loaded.fingerprint


def test_a_worker_computes_the_same_numbers(tiny_folder: Path, tmp_path: Path) -> None:
    objective, _, fingerprint = build(str(tiny_folder), 0)
    loaded = load(str(tiny_folder), device="cpu")
    worker = functools.partial(build, str(tiny_folder))
    found = []
    with WorkerPool(worker, 1, Content.of(fingerprint, objective)) as pool:
        for name, scorer in (("alone", None), ("pool", pool)):
            with EvaluationCache(tmp_path / name) as cache:
                engine = LocalEngine(loaded, objective, cache, scorer)
                found.append([dict(e.metrics) for e in engine.evaluate_now([CANDIDATE, DENSE])])
    assert found[0] == found[1]


def test_it_is_searched_and_evaluated_on_the_command_line(
    here: Path, tiny_folder: Path, prose: Path
) -> None:
    text = ["--calibration", prose]
    options = ["--objective", "hidden-cosine", *text]
    search = [tiny_folder, "--drop", 2, "--trials", 6, *options, "--race", *FAST]
    found = run_json("search", *search)
    assert found["best"]["metrics"]["hidden_cosine"] == found["value"] > 0
    assert run_json("search", *search, "--study", "again")["computed"] == 0
    shown = run("study", "show", found["study"]).stdout
    assert "hidden-cosine" in shown

    dropped = found["best"]["dropped"]
    scored = run_json("evaluate", tiny_folder, "--layers", dropped, *options)
    assert set(scored["metrics"]) == {"hidden_cosine"}
    assert run_json("evaluate", tiny_folder, *options)["metrics"] == {}


def test_a_mix_contains_it(here: Path, tiny_folder: Path, prose: Path) -> None:
    options = ["--objective", "kl=1,hidden-cosine=2", "--calibration", prose, *FAST]
    metrics = run_json("search", tiny_folder, "--drop", 2, "--trials", 4, *options)["best"][
        "metrics"
    ]
    assert metrics["mix"] == pytest.approx(metrics["kl"] + 2 * metrics["hidden_cosine"])


def test_an_option_of_another_objective_is_refused(
    here: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--objective", "hidden-cosine", "--kl-top", 4]
    error = refused(capsys, monkeypatch, "search", tiny_folder, "--drop", 2, *options)
    assert "--kl-top goes with --objective kl" in error
