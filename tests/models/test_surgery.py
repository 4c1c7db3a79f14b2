"""A pruned model is the model one would have built from the blocks that are left."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, DiffLlamaConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError
from prunesearch.models.structure import (
    architecture_of,
    blocks_of,
    parts_of,
    sublayer_of,
)
from prunesearch.models.surgery import pruned, remove
from tests.support.models import ARCHITECTURES, N_LAYERS, tiny

IDS = torch.arange(1, 25)[None] * 7 % 264
SUBSETS = [(0,), (5,), (0, 3), (1, 2, 4), (0, 1, 2, 3, 4)]


def smaller(architecture: str, kept: tuple[int, ...]) -> dict[str, object]:
    """Settings of the model with these blocks, spelled out by hand."""
    changes: dict[str, object] = {
        "n_layer" if architecture in ("gpt2", "gptj") else "num_hidden_layers": len(kept)
    }
    for name in ("layer_types", "no_rope_layers"):
        if (values := ARCHITECTURES[architecture].get(name)) is not None:
            changes[name] = [values[i] for i in kept]
    if architecture == "qwen3_moe":  # of the blocks of the whole model, 1 and 5 have experts
        changes |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [n for n, i in enumerate(kept) if i not in (1, 5)],
        }
    if architecture == "lfm2":
        changes["full_attn_idxs"] = [n for n, i in enumerate(kept) if i in (2, 5)]
    return changes


def generated(model: nn.Module, tokens: int) -> torch.Tensor:
    """The text that a model continues `IDS` with, of this number of tokens."""
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    return generate(IDS, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)


def rebuilt(architecture: str, dropped: tuple[int, ...]) -> torch.nn.Module:
    """A fresh smaller model that has been given the kept blocks' weights by name."""
    source = tiny(architecture)
    path = architecture_of(source.config).blocks
    kept = LayerSubset.of(N_LAYERS, dropped).kept
    small = tiny(architecture, seed=9, **smaller(architecture, kept))
    state = {
        name: value
        for name, value in source.state_dict().items()
        if not name.startswith(f"{path}.")
    }
    for new, old in enumerate(kept):
        block = source.get_submodule(f"{path}.{old}")
        state |= {f"{path}.{new}.{name}": value for name, value in block.state_dict().items()}
    small.load_state_dict(state)
    return small


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dropped", SUBSETS)
@torch.inference_mode()
def test_prefill_decode_and_text_equal_a_rebuilt_model(
    architecture: str, dropped: tuple[int, ...]
) -> None:
    if architecture in ("qwen3_next", "lfm2") and dropped == (0, 1, 2, 3, 4):
        dropped = (0, 1, 3, 4, 5)  # a hybrid without attention cannot tell how long its cache is
    expected, model = rebuilt(architecture, dropped), tiny(architecture)
    with pruned(model, LayerSubset.of(N_LAYERS, dropped)):
        torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)
        texts = [generated(m, 12) for m in (model, expected)]
        assert torch.equal(*texts), "cached decoding differs"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_the_model_comes_back_as_it_was(architecture: str) -> None:
    model = tiny(architecture)
    before, config = model(IDS).logits, model.config.to_dict()
    with pytest.raises(ZeroDivisionError), pruned(model, LayerSubset.of(N_LAYERS, (0, 2))):
        assert len(blocks_of(model)) == 4
        _ = 1 / 0
    assert torch.equal(model(IDS).logits, before)
    assert model.config.to_dict() == config
    numbers = [
        {m.layer_idx for m in block.modules() if hasattr(m, "layer_idx")}
        for block in blocks_of(model)
    ]
    assert numbers == [{i} for i in range(N_LAYERS)] or not any(numbers)


def test_no_weight_is_copied() -> None:
    model = tiny()
    blocks = list(model.model.layers)
    with pruned(model, LayerSubset.of(N_LAYERS, (1,))):
        assert all(
            a is b for a, b in zip(model.model.layers, [blocks[0], *blocks[2:]], strict=True)
        )


def test_layer_types_follow_their_layers() -> None:
    types = ["full_attention", "sliding_attention"] * 3
    model = tiny("qwen3", layer_types=types, use_sliding_window=True, sliding_window=4)
    remove(model, LayerSubset.of(N_LAYERS, (0, 3)))
    assert model.config.layer_types == [types[i] for i in (1, 2, 4, 5)]
    assert model.config.num_hidden_layers == 4


def test_a_candidate_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="30 layers, this one has 6"):
        remove(tiny(), LayerSubset.of(30, (1,)))


def silence(model: PreTrainedModel, block: int, kind: str) -> None:
    """Zero the last weights of a sublayer, and whatever else reaches its output."""
    last = re.compile(
        r"(o_proj|out_proj|c_proj|dense|down_proj|fc_out|fc2|dense_4h_to_h|w2)\.?(weight|bias)?$"
    )
    for part in parts_of(blocks_of(model)[block], sublayer_of(model, kind).modules):
        for name, parameter in part.named_parameters():
            if last.search(name) or isinstance(part, torch.nn.Linear):
                torch.nn.init.zeros_(parameter)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_dropped_sublayer_is_one_whose_output_is_zero(architecture: str) -> None:
    candidate = LayerSubset(N_LAYERS, (4,), attention=(0, 2), mlp=(1,))
    silent = tiny(architecture)
    for block in candidate.attention:
        silence(silent, block, "attention")
    silence(silent, 1, "mlp")
    model = tiny(architecture)
    before = model(IDS, use_cache=False).logits
    with pruned(silent, LayerSubset(N_LAYERS, (4,))), pruned(model, candidate):
        expected = silent(IDS, use_cache=False).logits
        torch.testing.assert_close(model(IDS, use_cache=False).logits, expected)
        assert not torch.allclose(expected, before, rtol=1e-2, atol=1e-2)
        texts = [generated(m, 8) for m in (model, silent)]
        assert torch.equal(*texts), "cached decoding differs"
    assert torch.equal(model(IDS, use_cache=False).logits, before)


def test_sublayers_of_some_types_cannot_be_silenced() -> None:
    model = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=264, hidden_size=32, n_layer=6, n_head=4)
    )
    with (
        pytest.raises(ModelError, match="'bloom' models cannot be dropped one by one"),
        pruned(model, LayerSubset(N_LAYERS, (), attention=(1,))),
    ):
        pass


def test_what_no_config_can_say_is_refused() -> None:
    scaled = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="scaled by the block's number"):
        remove(scaled, LayerSubset.of(N_LAYERS, (1,)))
    with pytest.raises(ModelError, match="lambda_init"):
        architecture_of(DiffLlamaConfig())


def test_sublayers_are_not_removed_for_good() -> None:
    with pytest.raises(InputError, match="2a,3 name sublayers"):
        remove(tiny(), LayerSubset(N_LAYERS, (3,), attention=(2,)))
