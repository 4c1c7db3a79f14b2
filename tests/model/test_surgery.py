"""A pruned model is the model one would have built from the blocks that are left."""

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.model.surgery import pruned, remove
from tests.conftest import FAMILIES, N_LAYERS, tiny

IDS = torch.arange(1, 25)[None] * 7 % 264
SUBSETS = [(0,), (5,), (0, 3), (1, 2, 4), (0, 1, 2, 3, 4)]


def rebuilt(family: str, dropped: tuple[int, ...]) -> torch.nn.Module:
    """A fresh smaller model that has been given the kept blocks' weights by name."""
    source = tiny(family).state_dict()
    kept = LayerSubset.of(N_LAYERS, dropped).kept
    small = tiny(family, seed=9, num_hidden_layers=len(kept))
    state = {name: value for name, value in source.items() if ".layers." not in name}
    for new, old in enumerate(kept):
        prefix = f"model.layers.{old}."
        state |= {
            name.replace(prefix, f"model.layers.{new}."): value
            for name, value in source.items()
            if name.startswith(prefix)
        }
    small.load_state_dict(state)
    return small


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropped", SUBSETS)
@torch.inference_mode()
def test_prefill_decode_and_text_equal_a_rebuilt_model(family: str, dropped: tuple[int, ...]) -> None:
    expected, model = rebuilt(family, dropped), tiny(family)
    with pruned(model, LayerSubset.of(N_LAYERS, dropped)):
        torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)
        texts = [m.generate(IDS, do_sample=False, max_new_tokens=12, min_new_tokens=12) for m in (model, expected)]
        assert torch.equal(*texts), "cached decoding differs"


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_model_comes_back_as_it_was(family: str) -> None:
    model = tiny(family)
    before, config = model(IDS).logits, model.config.to_dict()
    with pytest.raises(ZeroDivisionError), pruned(model, LayerSubset.of(N_LAYERS, (0, 2))):
        assert len(model.model.layers) == 4
        _ = 1 / 0
    assert torch.equal(model(IDS).logits, before)
    assert model.config.to_dict() == config
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(N_LAYERS))


def test_no_weight_is_copied() -> None:
    model = tiny()
    blocks = list(model.model.layers)
    with pruned(model, LayerSubset.of(N_LAYERS, (1,))):
        assert all(a is b for a, b in zip(model.model.layers, [blocks[0], *blocks[2:]], strict=True))


def test_layer_types_follow_their_layers() -> None:
    types = ["full_attention", "sliding_attention"] * 3
    model = tiny("qwen3", layer_types=types, use_sliding_window=True, sliding_window=4)
    remove(model, LayerSubset.of(N_LAYERS, (0, 3)))
    assert model.config.layer_types == [types[i] for i in (1, 2, 4, 5)]
    assert model.config.num_hidden_layers == 4


def test_a_candidate_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="30 layers, this one has 6"):
        remove(tiny(), LayerSubset.of(30, (1,)))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_dropped_sublayer_is_one_whose_output_is_zero(family: str) -> None:
    candidate = LayerSubset(N_LAYERS, (4,), attention=(0, 2), mlp=(1,))
    silent = tiny(family)
    for block in candidate.attention:
        torch.nn.init.zeros_(silent.model.layers[block].self_attn.o_proj.weight)
    torch.nn.init.zeros_(silent.model.layers[1].mlp.down_proj.weight)
    model = tiny(family)
    before = model(IDS, use_cache=False).logits
    with pruned(silent, LayerSubset(N_LAYERS, (4,))), pruned(model, candidate):
        torch.testing.assert_close(model(IDS, use_cache=False).logits, silent(IDS, use_cache=False).logits)
    assert torch.equal(model(IDS, use_cache=False).logits, before)


def test_sublayers_are_not_removed_for_good() -> None:
    with pytest.raises(InputError, match="2a,3 name sublayers"):
        remove(tiny(), LayerSubset(N_LAYERS, (3,), attention=(2,)))
