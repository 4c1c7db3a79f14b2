"""KL from sufficient statistics of the dense model is the KL over the vocabulary."""

from pathlib import Path

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import DataError
from prunesearch.execution.head import Head
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.dense_statistics import TOP, DenseStatistics
from prunesearch.objectives.metrics.hidden_cosine import HiddenCosine
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.reference_cache import ReferenceCache
from tests.support.heads import LINEAR, headed_model, rows
from tests.support.model_types import SAMPLE, tiny_model
from tests.support.models import N_LAYERS, results_of

WINDOWS_BL = torch.arange(96).view(6, 16) % 90
DENSE, CANDIDATE = LayerSubset.of(N_LAYERS), LayerSubset.of(N_LAYERS, (1, 4))
ENCODERS = {"big_bird", "roformer", "xlm-roberta"}
"""Types whose head transforms the states first. They cannot be scored."""


@pytest.mark.parametrize(
    "model_type", [*LINEAR, *(name for name in SAMPLE if name not in ENCODERS), "gemma2"]
)
@torch.inference_mode()
def test_it_is_the_kl_in_float64(model_type: str) -> None:
    model = headed_model(model_type)
    head, kl = Head(model), KL()
    dense_RE, pruned_RE = rows(model, 96, 1), rows(model, 96, 2)
    reference = kl.reference(dense_RE, head)
    if model_type == "gemma2":
        assert set(reference) == {"logits_RV"} and kl.version(head) == 2
    else:
        assert set(reference) == {"own_R", "rest_RE", "p_RK", "index_RK", "head"}
        assert kl.version(head) == 3
    states = {DENSE: dense_RE, CANDIDATE: dense_RE + 0.3 * pruned_RE}
    found = kl.compare(WINDOWS_BL, reference, states, head)
    # The definitions, in float64.
    log_p = head._own_logits(dense_RE).double().log_softmax(-1)
    log_q = head._own_logits(states[CANDIDATE]).double().log_softmax(-1)
    kl_B = (log_p.exp() * (log_p - log_q)).sum(-1).view(6, 16).sum(1)
    next_BL = WINDOWS_BL[:, 1:, None]
    nll_B = -log_q.view(6, 16, -1)[:, :-1].gather(2, next_BL)[..., 0].sum(1)
    for row, kl_sum, nll_sum in zip(found[CANDIDATE], kl_B, nll_B, strict=True):
        assert row == pytest.approx([float(kl_sum), float(nll_sum), 16], rel=1e-5, abs=2e-5)
    assert [row[0] for row in found[DENSE]] == [0.0] * 6


@torch.inference_mode()
def test_16_bits_lose_no_more_than_all_logits_do() -> None:
    model = tiny_model("llama", vocab_size=5000).bfloat16()
    head = Head(model)
    dense_RE = rows(model, 96, 1)
    pruned_RE = dense_RE + rows(model, 96, 2) / 4
    weight_VE = model.get_output_embeddings().weight.double()
    log_p = (dense_RE.double() @ weight_VE.T).log_softmax(-1)
    log_q = (pruned_RE.double() @ weight_VE.T).log_softmax(-1)
    exact = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    # The KL of the rounded logits, as from a reference of all logits.
    rounded_p = head.logits(dense_RE).double().log_softmax(-1)
    rounded_q = head.logits(pruned_RE).double().log_softmax(-1)
    plain = float((rounded_p.exp() * (rounded_p - rounded_q)).sum(-1).mean())
    kl = KL()
    reference = kl.reference(dense_RE, head)
    assert reference["rest_RE"].dtype == torch.float16
    found = kl.compare(WINDOWS_BL, reference, {CANDIDATE: pruned_RE}, head)[CANDIDATE]
    mean = sum(row[0] for row in found) / 96
    assert abs(mean - exact) < abs(plain - exact) + 1e-3 * exact


def test_a_reference_has_at_most_130_values_beside_a_state(loaded: LoadedModel) -> None:
    states_RE = rows(loaded.model, 10)
    reference = DenseStatistics.of(states_RE, Head(loaded.model)).tensors()
    values = sum(tensor.numel() for name, tensor in reference.items() if name != "head")
    assert values <= 10 * (states_RE.shape[1] + 130)
    assert reference["p_RK"].shape == reference["index_RK"].shape == (10, TOP)
    assert reference["head"].numel() == 32


def test_only_kl_over_the_vocabulary_has_a_new_version(loaded: LoadedModel) -> None:
    versions = []
    for measure in (KL(), KL(8), HiddenCosine()):
        objective = CalibrationObjective(loaded, WINDOWS_BL, measure)
        versions.append(objective.chunks[0].identity["version"])
    assert versions == [3, 2, 2]


def test_a_checkpoint_with_another_head_is_not_compared(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    references = ReferenceCache(tmp_path)
    objective = CalibrationObjective(loaded, WINDOWS_BL, KL(), references)
    results_of(loaded, objective, CANDIDATE)
    CalibrationObjective(loaded, WINDOWS_BL, KL(), references, compared_with=objective.outputs)
    weight_VE = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        weight_VE[0, 0] += 1
    try:
        with pytest.raises(DataError, match="vocabulary head is not the dense model's"):
            CalibrationObjective(
                loaded, WINDOWS_BL, KL(), references, compared_with=objective.outputs
            )
    finally:
        with torch.no_grad():
            weight_VE[0, 0] -= 1
