"""One-shot rankings against their formulas."""

import itertools

import pytest
import torch

from prunesearch.errors import ScoringError
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.importance import rank_units
from tests.support.models import N_LAYERS, resident, tiny

WINDOWS = torch.arange(96).view(3, 32) * 7 % 250


def test_block_influence_is_one_minus_the_cosine_of_its_ends(loaded: LoadedModel) -> None:
    harm = rank_units(loaded.model, loaded.layers, WINDOWS, "influence", "blocks")
    with torch.inference_mode():
        each = [
            loaded.model(input_ids=w[None], output_hidden_states=True).hidden_states
            for w in WINDOWS
        ]
        hidden = [torch.stack(states) for states in zip(*each, strict=True)]
    expected = [
        float((1 - torch.cosine_similarity(a.float(), b.float(), dim=-1)).mean())
        for a, b in itertools.pairwise(hidden)
    ]
    # transformers applies the final norm to the last of its hidden states, so the last block is
    # compared elsewhere.
    assert harm[:-1] == pytest.approx(expected[: N_LAYERS - 1], rel=1e-3, abs=1e-5)


def test_a_block_that_does_nothing_has_no_influence() -> None:
    model = tiny()
    for block in (1, 4):
        torch.nn.init.zeros_(model.model.layers[block].self_attn.o_proj.weight)
        torch.nn.init.zeros_(model.model.layers[block].mlp.down_proj.weight)
    torch.nn.init.zeros_(model.model.layers[2].mlp.down_proj.weight)
    blocks = rank_units(model, resident(model), WINDOWS, "influence", "blocks")
    assert sorted(sorted(range(N_LAYERS), key=blocks.__getitem__)[:2]) == [1, 4]
    halves = rank_units(model, resident(model), WINDOWS, "influence", "sublayers")
    assert len(halves) == 2 * N_LAYERS
    assert sorted(sorted(range(2 * N_LAYERS), key=halves.__getitem__)[:5]) == [2, 3, 5, 8, 9]
    assert all(value > 0 for value in halves), "a search takes logarithms"


def test_magnitude_is_the_mean_absolute_weight(loaded: LoadedModel) -> None:
    harm = rank_units(loaded.model, loaded.layers, WINDOWS, "magnitude", "blocks")
    block = torch.cat(
        [p.detach().float().flatten() for p in loaded.model.model.layers[3].parameters()]
    )
    assert harm[3] == pytest.approx(float(block.abs().mean()), rel=1e-3)


def test_taylor_is_the_sum_of_weight_times_gradient() -> None:
    model = tiny()
    harm = rank_units(model, resident(model), WINDOWS, "taylor", "blocks")
    assert all(p.grad is None for p in model.parameters()), "the model is left as it was"
    expected = [0.0] * N_LAYERS
    for window in WINDOWS:
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for index, block in enumerate(model.model.layers):
            expected[index] += sum(
                float((p.grad * p.detach()).abs().sum()) for p in block.parameters()
            )
        model.zero_grad(set_to_none=True)
    assert harm == pytest.approx(expected, rel=1e-4)


def test_a_broken_model_is_not_ranked() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ScoringError, match="`ranking` none"):
        rank_units(model, resident(model), WINDOWS, "influence", "blocks")
