"""Experts as units: removal equals routing around them, without copies, and the counts are exact."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from prunesearch.errors import InputError
from prunesearch.execution.batches import Rows
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.importance.allocations.registry import fixed_allocations
from prunesearch.importance.criteria.registry import REGISTRY
from prunesearch.importance.orders import channel_order
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.experts import experts_of, fewer_experts, masked_experts
from prunesearch.models.loading import LoadedModel
from prunesearch.models.narrowing import narrow, narrow_outputs, narrowed
from prunesearch.models.reordering import reorder, restore
from prunesearch.models.sizes import lost, sizes_of
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import mlp_of, width_shape_of
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.space import WidthSpace
from tests.support.models import byte_tokenizer, resident

EXPERTS, TOP_K = 6, 2
IDS = torch.arange(48).reshape(2, 24) * 7 % 250
OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen2_moe": {"num_experts": EXPERTS, "shared_expert_intermediate_size": 16},
    # Block 1 has an MLP without experts.
    "qwen3_moe": {"num_experts": EXPERTS, "mlp_only_layers": [1], "decoder_sparse_step": 1},
    "olmoe": {"num_experts": EXPERTS},
}


def model_of(name: str) -> PreTrainedModel:
    settings = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": TOP_K,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        **OWN[name],
    }
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**settings))
    # Routers of some types begin with zeros, which would send all tokens to the first experts.
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("mlp.gate.weight"):
            nn.init.normal_(parameter, std=0.5)
    model.eval()
    return model


def loaded_of(model: PreTrainedModel) -> LoadedModel:
    return LoadedModel("tiny", model, byte_tokenizer(), "0" * 64, sizes_of(model), resident(model))


def order_of_model(model: PreTrainedModel) -> ChannelOrder:
    torch.manual_seed(3)
    shape = width_shape_of(model)
    return ChannelOrder(
        "magnitude",
        tuple(torch.randperm(count) for count in shape.channels),
        tuple(torch.randperm(count) for count in shape.groups),
    )


def candidate_of(model: PreTrainedModel, order: str) -> LayerWidths:
    """All kinds of widths: five experts, fewer still and one group, and as many as a token uses."""
    shape = width_shape_of(model)
    channels = [EXPERTS - 1, shape.channels[1] // 2, TOP_K]
    groups = [max(count - index % 2, 0) for index, count in enumerate(shape.groups)]
    return LayerWidths.within(shape, channels, groups, order)


@pytest.mark.parametrize("name", OWN)
def test_removed_experts_are_experts_that_are_never_chosen(name: str) -> None:
    model = model_of(name)
    with torch.inference_mode():
        dense = model(input_ids=IDS).logits
    order = order_of_model(model)
    reorder(model, order)
    with torch.inference_mode():
        assert torch.allclose(model(input_ids=IDS).logits, dense, atol=1e-4)
        candidate = candidate_of(model, order.digest)
        with pruned(model, candidate) as narrower:
            found = narrower(input_ids=IDS).logits
        # The same with all experts in place, and routers that do not choose the last ones.
        with ExitStack() as stack:
            for index, block in enumerate(blocks_of(model)):
                part, use = experts_of(model, block), candidate.use(index)
                assert use is not None
                channels = use.channels
                if part is not None:
                    stack.enter_context(masked_experts(part, candidate.channels[index]))
                    channels = None
                stack.enter_context(narrowed(model, block, channels, use.groups))
            masked = model(input_ids=IDS).logits
    assert float((found - masked).norm() / masked.norm()) < 1e-5
    assert float((found - dense).norm() / dense.norm()) > 1e-2


@pytest.mark.parametrize("name", OWN)
def test_narrowing_for_good_has_the_parameters_and_the_results_of_the_candidate(name: str) -> None:
    model = model_of(name)
    sizes = sizes_of(model)
    order = order_of_model(model)
    reorder(model, order)
    candidate = candidate_of(model, order.digest)
    with torch.inference_mode(), pruned(model, candidate) as narrower:
        found = narrower(input_ids=IDS).logits
    narrow(model, candidate)
    assert sum(p.numel() for p in model.parameters()) == sizes.params(candidate)
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, found)


def test_no_weight_is_copied_and_all_comes_back() -> None:
    model = model_of("mixtral")
    part = experts_of(model, blocks_of(model)[0])
    assert part is not None
    before = {name: parameter for _, name, parameter in part.parameters}
    with fewer_experts(part, 3):
        for _, name, parameter in part.parameters:
            assert len(parameter) == 3
            assert parameter.data_ptr() == before[name].data_ptr()
        assert part.experts.num_experts == part.router.num_experts == 3
    assert part.experts.num_experts == part.router.num_experts == EXPERTS
    assert all(parameter is before[name] for _, name, parameter in part.parameters)


def test_an_order_of_experts_is_undone_to_the_bit() -> None:
    model = model_of("qwen2_moe")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reorder(model, order_of_model(model))
    assert not all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    restore(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_candidates_are_scored_block_by_block_as_by_the_model() -> None:
    model = model_of("qwen3_moe")
    order = order_of_model(model)
    reorder(model, order)
    candidate = candidate_of(model, order.digest)
    rows = Rows(IDS)
    ((_, _, hidden),) = Forward(model, resident(model)).run([(rows, [candidate])])
    head = Head(model)
    found = head.logits(head.apply_final_norm(hidden[0]))
    with torch.inference_mode(), pruned(model, candidate) as narrower:
        torch.testing.assert_close(found, narrower(input_ids=IDS).logits[0])


def test_a_block_keeps_the_experts_that_a_token_uses() -> None:
    model = model_of("mixtral")
    shape = width_shape_of(model)
    assert shape.top_k == (TOP_K,) * 3
    with pytest.raises(InputError, match="layer 0 cannot keep 1 experts: each token uses 2"):
        LayerWidths.within(shape, [1, 6, 6], [2, 2, 2], "x")
    assert LayerWidths.within(shape, [0, 6, 6], [2, 2, 2], "x").mlp == (0,)
    order = order_of_model(model)
    reorder(model, order)
    with (
        pytest.raises(InputError, match="cannot be narrowed to 1"),
        narrowed(model, blocks_of(model)[0], 1, None),
    ):
        raise AssertionError
    # A dense model has the shape that it had before experts were known.
    assert mlp_of(model, blocks_of(model)[0]) is None
    candidate = candidate_of(model, order.digest)
    assert narrow_outputs(model, candidate, 0) == (None, None)
    # A token uses as many experts as before, so no time is saved.
    assert lost((1.0,) * 3, (0.25,) * 3, LayerWidths.within(shape, [4, 6, 6], [2] * 3, "x")) == 0.0


def test_biases_are_counted_for_attention_only() -> None:
    shape = width_shape_of(model_of("mixtral"))
    plain = LayerWidths.within(shape, [4, 6, 6], [1, 2, 2], "x", biases=False)
    biased = LayerWidths.within(shape, [4, 6, 6], [1, 2, 2], "x", biases=True)
    assert plain.narrowing_params - biased.narrowing_params == 32


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("blocks", [False, True])
def test_spaces_with_experts_meet_their_budget_exactly(name: str, blocks: bool) -> None:
    model = model_of(name)
    loaded = loaded_of(model)
    measured = channel_order(loaded, IDS, "flap", None)
    reorder(model, measured.order)
    space = WidthSpace.parse(
        width_shape_of(model), "15%", loaded.sizes.params(), 4, align=16, blocks=blocks,
        order=measured.order.digest, biases=measured.order.biases,
    )  # fmt: skip
    allocations = fixed_allocations(space, measured.layers)
    assert len(allocations) >= 2
    for found in allocations:
        assert space.count(found.candidate) == space.budget
        for index in found.candidate.kept:
            if space.shape.top_k[index] and index not in found.candidate.mlp:
                assert found.candidate.channels[index] >= TOP_K


def router_weighted_norms(model: PreTrainedModel, index: int) -> list[float]:
    """REAP's score of each expert, token by token, from the weights."""
    block: Any = blocks_of(model)[index]
    calls: list[tuple[torch.Tensor, ...]] = []
    hook = block.mlp.experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        for window in IDS:
            model(input_ids=window[None])
    hook.remove()
    values: list[list[float]] = [[] for _ in range(EXPERTS)]
    for states, chosen, weights in calls:
        for x, experts, gates in zip(states, chosen.tolist(), weights.tolist(), strict=True):
            for j, g in zip(experts, gates, strict=True):
                gate, up = (block.mlp.experts.gate_up_proj[j] @ x).chunk(2)
                output = block.mlp.experts.down_proj[j] @ (nn.functional.silu(gate) * up)
                values[j].append(g * float(output.detach().norm()))
    return [sum(found) / max(len(found), 1) for found in values]


@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_experts_are_ordered_by_router_weighted_output_norms(name: str) -> None:
    model = model_of(name)
    for criterion in ("flap", "wanda-sp"):
        found = channel_order(loaded_of(model), IDS, criterion, None)
        expected = router_weighted_norms(model, 1)
        assert found.layers[1].channel_scores.tolist() == pytest.approx(
            sorted(expected, reverse=True), rel=1e-4
        )
        order = sorted(range(EXPERTS), key=lambda j: -expected[j])
        assert found.order.channels[1].tolist() == order


def test_magnitude_and_taylor_of_experts_are_those_of_their_formulas() -> None:
    model = model_of("qwen2_moe")
    loaded = loaded_of(model)
    mlp: Any = blocks_of(model)[0].mlp
    parts = [mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate.weight]
    norms = [
        float(torch.cat([part[j].detach().flatten() for part in parts]).norm())
        for j in range(EXPERTS)
    ]
    found = channel_order(loaded, IDS, "magnitude", None).layers[0].channel_scores.tolist()
    assert found == pytest.approx(sorted(norms, reverse=True), rel=1e-5)
    found = channel_order(loaded, IDS, "taylor", None).layers[0].channel_scores.tolist()
    sums = torch.zeros(EXPERTS)
    for window in IDS:
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for part in parts:
            sums += (part.detach() * part.grad).abs().flatten(1).sum(1)
        model.zero_grad(set_to_none=True)
    assert found == pytest.approx(sorted(sums.tolist(), reverse=True), rel=1e-4)
    assert {entry.name for entry in REGISTRY.entries()} >= {"magnitude", "taylor"}
