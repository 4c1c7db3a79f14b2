"""Which models can be narrowed, and that none of them computes something else."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from resource import getpagesize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prunesearch.errors import InputError, ModelError
from prunesearch.models import narrowing, narrowing_check, reordering, width_shape
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.experts import experts_of, masked_experts
from prunesearch.models.narrowing_check import check_narrowing
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import BlockParts, attention_of, mlp_of, width_shape_of
from prunesearch.models.width_views import columns_of
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.model_types import tiny_model
from tests.support.models import N_LAYERS, tiny
from tests.support.widths import order_for, random_widths

IDS = torch.arange(1, 25)[None] * 7 % 264
NARROWED = {
    "llama": (64, 2),
    "qwen3": (64, 2),  # norms of queries and keys
    "gemma3_text": (64, 2),  # sliding windows and full attention
    "cohere2": (64, 2),  # parallel sublayers
    "phi": (64, 2),
    "starcoder2": (64, 2),
    "nemotron": (64, 2),
    "olmo2": (64, 0),  # one norm of all heads
    "gpt_neox": (64, 0),  # queries, keys and values in one projection
    "mixtral": (4, 2),  # experts
    "youtu": (64, 0),  # latent attention
    "stablelm": (64, 0),  # its code divides by the number of heads
}


@pytest.mark.parametrize("model_type", NARROWED)
@torch.no_grad()
def test_narrowed_layers_compute_what_zeros_give(model_type: str) -> None:
    model = tiny_model(model_type)
    shape = width_shape_of(model)
    assert (max(shape.channels), max(shape.groups)) == NARROWED[model_type]
    order = order_for(model, biases=False)
    reordering.reorder(model, order)
    candidate = random_widths(model, order, seed=3)
    texts = []
    with pruned(model, candidate):
        found = model(IDS, use_cache=False).logits
        texts.append(_generated(model))
    handles = []
    experts = ExitStack()
    for index, block in enumerate(blocks_of(model)):
        if (few := experts_of(model, block)) is not None:
            experts.enter_context(masked_experts(few, candidate.channels[index]))
        mlp, attention = mlp_of(model, block), attention_of(model, block)
        for part, count in ((mlp, candidate.channels[index]), (attention, candidate.groups[index])):
            if part is not None:
                hook = narrowing_check._zeros_from(columns_of(part, count))
                handles.append(part.output.register_forward_pre_hook(hook))
    with experts:
        wanted = model(IDS, use_cache=False).logits
        texts.append(_generated(model))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert torch.equal(*texts), "cached decoding differs"


def _generated(model: PreTrainedModel) -> torch.Tensor:
    """Eight tokens after `IDS`, decoded with a cache."""
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    return generate(IDS, do_sample=False, max_new_tokens=8, min_new_tokens=8)


@pytest.mark.parametrize("model_type", ["gpt_oss", "phi3", "gpt2", "mamba", "bloom"])
def test_types_with_other_projections_are_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match="cannot be narrowed"):
        width_shape_of(tiny_model(model_type))


@pytest.mark.parametrize("model_type", ["opt", "stablelm"])
def test_code_that_counts_heads_itself_is_refused(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPT gives no error, but other numbers."""
    monkeypatch.setattr(width_shape, "_FIXED_HEADS", frozenset())
    model = tiny_model(model_type)
    parts: list[BlockParts] = [(None, attention_of(model, block)) for block in blocks_of(model)]
    with pytest.raises(ModelError, match="with fewer channels or heads") as refused:
        check_narrowing(model, parts)
    assert "\n" not in str(refused.value)


def test_sinks_of_attention_are_no_norm() -> None:
    """There may be as many sinks as a head has numbers."""
    model = tiny()
    for block in blocks_of(model):
        attention = block.get_submodule("self_attn")
        attention.register_parameter("sinks", nn.Parameter(torch.zeros(8)))
    assert set(width_shape_of(model).groups) == {0}


def test_shared_projections_are_left_whole() -> None:
    model = tiny()
    blocks = blocks_of(model)
    shared = blocks[4].get_parameter("mlp.down_proj.weight")
    blocks[1].get_submodule("mlp.down_proj").register_parameter("weight", shared)
    query = "self_attn.q_proj.weight"
    blocks[2].get_parameter(query).data = blocks[3].get_parameter(query).data
    shape = width_shape_of(model)
    assert [index for index in range(N_LAYERS) if not shape.channels[index]] == [1, 4]
    assert [index for index in range(N_LAYERS) if not shape.groups[index]] == [2, 3]


def test_weights_that_are_not_in_memory_are_refused() -> None:
    model = tiny()
    order = order_for(model, biases=False)
    blocks_of(model)[1].mlp.to("meta")
    with pytest.raises(InputError, match="not in memory"):
        reordering.reorder(model, order)


def test_a_model_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing_check, "_checked", set())
    checks: list[int] = []
    agrees = narrowing_check._agrees

    def counted(model: PreTrainedModel, parts: Sequence[BlockParts]) -> bool:
        checks.append(1)
        return agrees(model, parts)

    monkeypatch.setattr(narrowing_check, "_agrees", counted)
    for seed in range(2):
        model = tiny("llama", seed)
        reordering.reorder(model, order_for(model, biases=False))
    assert len(checks) == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), biases=st.booleans(), dtype=st.sampled_from(["f32", "bf16"]))
@torch.no_grad()
def test_orders_are_undone_to_the_bit(seed: int, biases: bool, dtype: str) -> None:
    model = tiny("qwen2", seed=1)
    if dtype == "bf16":
        model.bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = model(IDS, use_cache=False).logits
    order = order_for(model, biases, seed)
    reordering.reorder(model, order)
    candidate = random_widths(model, order, seed)
    with pruned(model, candidate):
        found = model(IDS, use_cache=False).logits.float()
    with reordering.in_own_order(model):
        assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    with pruned(model, candidate):
        assert torch.equal(model(IDS, use_cache=False).logits.float(), found)
    # A model that is narrowed for good is the narrowed model.
    narrowing.narrow(model, candidate)
    assert torch.equal(model(IDS, use_cache=False).logits.float(), found)
    fresh = tiny("qwen2", seed=1)
    if dtype == "bf16":
        fresh.bfloat16()
    reordering.reorder(fresh, order)
    reordering.restore(fresh)
    assert torch.equal(fresh(IDS, use_cache=False).logits, dense)


def test_biases_of_many_candidates_are_made_once_for_each_width() -> None:
    model = tiny()
    order = order_for(model, biases=True)
    reordering.reorder(model, order)
    shape = width_shape_of(model)
    for _ in range(2):
        for width in (8, 16, 24):
            channels, groups = [width] * N_LAYERS, list(shape.groups)
            candidate = LayerWidths.within(shape, channels, groups, order.digest, True)
            with pruned(model, candidate):
                pass
    found = reordering.reordered(model)
    assert found is not None and len(found.biases) == 3 * N_LAYERS


@torch.inference_mode()
def test_candidates_copy_no_weights() -> None:
    """The weights of this model take 100 MiB, its states next to nothing."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=16, num_key_value_heads=8, head_dim=32,
    )  # fmt: skip
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    order = order_for(model, biases=False)
    reordering.reorder(model, order)
    _largest_memory(model, order, range(2))
    before = _memory()
    assert weights > 90 * 2**20
    assert _largest_memory(model, order, range(2, 52)) - before < weights / 10


def _largest_memory(model: PreTrainedModel, order: ChannelOrder, seeds: range) -> int:
    """Run random candidates whose weights must be views, and return the memory of the process."""
    places = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    largest = 0
    for seed in seeds:
        with pruned(model, random_widths(model, order, seed)):
            model(torch.arange(8)[None], use_cache=False)
            used = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
            assert used <= places
            largest = max(largest, _memory())
    return largest


def _memory() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * getpagesize()
