"""Narrowing blocks: prefix views, biases, order and shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.execution.batches import Rows
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models import narrowing, reordering
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.layers import ResidentLayers
from prunesearch.models.permuting import indices_of_groups
from prunesearch.models.sizes import sizes_of
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import attention_of, mlp_of, width_shape_of
from prunesearch.widths.layer_widths import LayerWidths

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
IDS = torch.arange(24).reshape(2, 12) * 7 % 99


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    return model


def qwen2() -> PreTrainedModel:
    """A model whose query, key and value projections have biases."""
    torch.manual_seed(0)
    model: PreTrainedModel = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            parameter.data.normal_()
    return model


def order_for(model: PreTrainedModel, biases: bool) -> ChannelOrder:
    torch.manual_seed(1)
    shape = width_shape_of(model)
    means, columns = None, None
    if biases:
        means = tuple(torch.randn(count) for count in shape.channels)
        columns = tuple(torch.randn(64) for _ in shape.groups)
    return ChannelOrder(
        "magnitude",
        tuple(torch.randperm(count) for count in shape.channels),
        tuple(torch.randperm(count) for count in shape.groups),
        means,
        columns,
    )


@torch.no_grad()
def masked_logits(model: PreTrainedModel, candidate: LayerWidths) -> torch.Tensor:
    """The logits of the model in its own order, with the removed columns set to zero."""
    order = reordering.order_of(model)
    assert order is not None
    reordering.restore(model)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    handles = []
    for index, block in enumerate(blocks_of(model)):
        mlp, attention = mlp_of(model, block), attention_of(model, block)
        assert mlp is not None and attention is not None
        gone = order.channels[index][candidate.channels[index] :]
        columns = indices_of_groups(
            order.groups[index][candidate.groups[index] :], attention.query_rows
        )
        for part, removed, means in (
            (mlp.output, gone, order.channel_means),
            (attention.output, columns, order.column_means),
        ):
            if means is not None and len(removed):
                shift = part.weight[:, removed] @ means[index][removed]
                handles.append(
                    part.register_forward_hook(lambda _, __, out, shift=shift: out + shift)
                )
            part.weight[:, removed] = 0.0
    logits: torch.Tensor = model(IDS).logits
    for handle in handles:
        handle.remove()
    model.load_state_dict(kept)
    return logits


@pytest.mark.parametrize("build", [llama, qwen2])
@pytest.mark.parametrize("biases", [False, True])
@torch.no_grad()
def test_removal_equals_masking(build: Callable[[], PreTrainedModel], biases: bool) -> None:
    model = build()
    dense = model(IDS).logits
    shape, order = width_shape_of(model), order_for(model, biases)
    reordering.reorder(model, order)
    assert (model(IDS).logits - dense).abs().max() < 1e-5
    candidate = LayerWidths.within(shape, [48, 30, 7, 17], [4, 2, 3, 1], order.digest, biases)
    storage = {p.data_ptr() for p in model.parameters()}
    with pruned(model, candidate):
        found = model(IDS).logits
        # The narrow weights are views: they begin where the weights begin.
        assert {p.data_ptr() for n, p in model.named_parameters() if "bias" not in n} <= storage
    forward = Forward(model, ResidentLayers(blocks_of(model)))
    states = {each: state for _, each, state in forward.run([(Rows(IDS), [candidate])])}
    head = Head(model)
    shared = head.logits(head.apply_final_norm(states[candidate].flatten(0, 1)))
    assert torch.equal(shared.reshape(found.shape), found)
    assert (masked_logits(model, candidate) - found).abs().max() < 1e-5
    assert torch.equal(model(IDS).logits, dense)  # restored to the bit


@torch.no_grad()
def test_narrow_for_good_has_the_size_that_was_promised() -> None:
    model = qwen2()
    shape, order = width_shape_of(model), order_for(model, True)
    reordering.reorder(model, order)
    candidate = LayerWidths.within(shape, [48, 30, 7, 17], [4, 2, 3, 1], order.digest, True)
    with pruned(model, candidate):
        expected = model(IDS).logits
    promised = sizes_of(model).params(candidate)
    narrowing.narrow(model, candidate)
    assert torch.equal(model(IDS).logits, expected)
    assert sum(parameter.numel() for parameter in model.parameters()) == promised


def test_widths_of_another_order_are_refused() -> None:
    model = llama()
    shape = width_shape_of(model)
    candidate = LayerWidths.within(shape, [8] * 4, [4] * 4, "flap-0")
    with pytest.raises(InputError, match="in their own order"), pruned(model, candidate):
        pass
    reordering.reorder(model, order_for(model, False))
    forward = Forward(model, ResidentLayers(blocks_of(model)))
    with pytest.raises(InputError, match="is of the channel order flap-0"):
        list(forward.run([(Rows(IDS), [candidate])]))


def test_an_order_of_another_model_is_refused() -> None:
    model = llama()
    order = order_for(model, False)
    wrong = ChannelOrder("magnitude", order.channels[:3], order.groups[:3])
    with pytest.raises(InputError, match="model with 3 layers, this one has 4"):
        reordering.reorder(model, wrong)
    twice = (torch.zeros(48, dtype=torch.int64), *order.channels[1:])
    with pytest.raises(InputError, match="does not fit layer 0"):
        reordering.reorder(model, ChannelOrder("magnitude", twice, order.groups))
    assert reordering.order_of(model) is None


def test_sizes_of_plain_candidates_do_not_change() -> None:
    sizes = sizes_of(llama())
    assert sizes.params() - sizes.params(LayerSubset.of(4, [1])) == sizes.block_params[1]
