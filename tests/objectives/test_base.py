"""KL and perplexity against their definitions; costs and the weighted sum."""

import math
from pathlib import Path

import pytest
import torch

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.errors import ScoringError
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.execution.latency import (
    LatencyModel,
    compare_latency,
    machine,
    measure_latency_model,
)
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import remove
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.metrics.perplexity import Perplexity
from tests.support.models import N_LAYERS, results_of, tiny

CANDIDATE = LayerSubset.of(N_LAYERS, (1, 4))


@pytest.fixture
def windows(loaded: LoadedModel, prose: Path) -> torch.Tensor:
    return token_windows(
        str(prose), loaded.tokenizer, 1536, 96
    )  # several chunks, rows not a multiple of 64


@torch.inference_mode()
def test_kl_and_perplexity_are_what_their_definitions_say(
    loaded: LoadedModel, windows: torch.Tensor
) -> None:
    objective = CalibrationObjective(loaded, windows, KL())
    assert len(objective.chunks) == 2
    found = objective.metrics(*results_of(loaded, objective, CANDIDATE))

    log_p = tiny()(windows).logits.double().log_softmax(-1)
    log_q = remove(tiny(), CANDIDATE)(windows).logits.double().log_softmax(-1)
    kl_BL = (log_p.exp() * (log_p - log_q)).sum(-1)  # KL(dense || pruned) at each position
    nll_BL = -log_q[:, :-1].gather(2, windows[:, 1:, None])[..., 0]
    assert found.values["kl"] == pytest.approx(kl_BL.mean().item(), rel=1e-5)
    assert found.values["cross_entropy"] == pytest.approx(nll_BL.mean().item(), rel=1e-5)
    assert found.values["perplexity"] == pytest.approx(math.exp(nll_BL.mean().item()), rel=1e-4)
    assert found.stderr["kl"] == pytest.approx(
        kl_BL.mean(1).std().item() / math.sqrt(len(windows)), rel=1e-4
    )


def test_the_dense_model_has_no_divergence_from_itself(
    loaded: LoadedModel, windows: torch.Tensor
) -> None:
    objective = CalibrationObjective(loaded, windows, KL())
    dense = objective.metrics(*results_of(loaded, objective, LayerSubset.of(N_LAYERS)))
    assert dense.values["kl"] == 0.0


def test_both_metrics_share_their_entries(loaded: LoadedModel, windows: torch.Tensor) -> None:
    kl, perplexity = (
        CalibrationObjective(loaded, windows, measure) for measure in (KL(), Perplexity())
    )
    assert kl.chunks == perplexity.chunks


def test_what_is_scored_is_in_the_identity(loaded: LoadedModel, windows: torch.Tensor) -> None:
    base = CalibrationObjective(loaded, windows, KL())
    other = windows.clone()
    other[-1, -1] += 1
    changed = CalibrationObjective(loaded, other, KL())
    assert changed.digest != base.digest
    assert changed.chunks[0] == base.chunks[0], "an untouched chunk keeps its entries"
    assert changed.chunks[1] != base.chunks[1]
    loaded.model.bfloat16()
    assert CalibrationObjective(loaded, windows, KL()).chunks[0] != base.chunks[0]


def test_broken_output_is_an_error_not_a_number(loaded: LoadedModel, windows: torch.Tensor) -> None:
    with torch.no_grad():
        loaded.model.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    objective = CalibrationObjective(loaded, windows, KL())
    (found,) = results_of(loaded, objective, LayerSubset.of(N_LAYERS, (0,)))
    assert all(isinstance(result, ScoringError) and "not finite" in str(result) for result in found)


def test_latency_is_additive_and_equal_for_equal_blocks(loaded: LoadedModel) -> None:
    latency = measure_latency_model(loaded.model, loaded.layers, repeats=3)
    assert len(set(latency.block_ms)) == 1, "blocks of equal shape share one time"
    assert latency.predict() - latency.predict(CANDIDATE) == pytest.approx(2 * latency.block_ms[0])
    assert LatencyModel.from_json(latency.as_json()) == latency
    dense, lean = compare_latency(loaded.model, LayerSubset.of(N_LAYERS, range(5)))
    assert dense > lean > 0
    assert "threads" in machine(loaded.model)


def test_the_weighted_sum_turns_its_sign_once(loaded: LoadedModel) -> None:
    latency = LatencyModel(
        (2.0,) * N_LAYERS, (0.5,) * N_LAYERS, 8.0
    )  # dense 20 ms; without two blocks 16 ms
    weights = ScoreWeights(quality=2.0, size=0.5, latency=0.25)
    size_saved = 1 - loaded.sizes.bytes(CANDIDATE) / loaded.sizes.bytes()
    evaluation = Evaluation(CANDIDATE, {"kl": 0.3, "acc": 0.6})
    fewer = TrialScalarizer("kl", False, weights, loaded.sizes, latency)
    more = TrialScalarizer("acc", True, weights, loaded.sizes, latency)
    assert fewer.values(evaluation) == pytest.approx([0.6 - 0.5 * size_saved - 0.25 * 0.2])
    assert more.values(evaluation) == pytest.approx([1.2 + 0.5 * size_saved + 0.25 * 0.2])
    assert TrialScalarizer("kl", False, ScoreWeights(), loaded.sizes, latency).values(
        evaluation
    ) == [0.3]
    against = {
        name: TrialScalarizer("kl", False, ScoreWeights(), loaded.sizes, latency, name)
        for name in ("size", "latency")
    }
    assert against["size"].values(evaluation) == [0.3, loaded.sizes.bytes(CANDIDATE)]
    assert against["latency"].values(evaluation) == [0.3, 16.0]
    half = LayerSubset(N_LAYERS, (), attention=(1,), mlp=(2,))
    assert fewer.costs(half)["latency_ms"] == 20 - 0.5 - 1.5
    assert fewer.better(0.1, 0.2)
    assert more.better(0.2, 0.1)
    assert fewer.costs(CANDIDATE)["latency_ms"] == 16.0
