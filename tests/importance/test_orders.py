"""Channel orders against plain computations of their criteria, and the files that keep them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.errors import InputError, ModelError, ScoringError, StorageError, UnknownNameError
from prunesearch.importance.criteria.registry import REGISTRY
from prunesearch.importance.orders import channel_order
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.reordering import order_of, reorder
from tests.support.models import N_LAYERS, resident, tiny

WINDOWS = torch.arange(96).view(3, 32) * 7 % 250
Make = Callable[..., Path]


def inputs_of(model: PreTrainedModel, windows: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
    """The inputs of all linear layers in a plain forward pass, one row a token."""
    rows: dict[nn.Module, list[torch.Tensor]] = {}

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        rows.setdefault(module, []).append(args[0].flatten(0, -2).double())

    hooks = [
        module.register_forward_pre_hook(note)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.inference_mode():
        for window in windows:
            model(input_ids=window[None])
    for hook in hooks:
        hook.remove()
    return {module: torch.cat(parts) for module, parts in rows.items()}


def flap(weight: torch.Tensor, rows: torch.Tensor) -> list[float]:
    """Var(x_j) * sum_i W_ij^2, one column after the other."""
    scores = []
    for j in range(weight.shape[1]):
        mean = sum(rows[:, j].tolist()) / len(rows)
        variance = sum((x - mean) ** 2 for x in rows[:, j].tolist()) / (len(rows) - 1)
        scores.append(variance * sum(w**2 for w in weight[:, j].tolist()))
    return scores


def wanda(weight: torch.Tensor, rows: torch.Tensor) -> list[float]:
    scores = []
    for j in range(weight.shape[1]):
        norm = math.sqrt(sum(x**2 for x in rows[:, j].tolist()) / len(rows))
        scores.append(sum(abs(w) * norm for w in weight[:, j].tolist()) / len(weight))
    return scores


def magnitude(weight: torch.Tensor, _: torch.Tensor) -> list[float]:
    return [math.sqrt(sum(w**2 for w in weight[:, j].tolist())) for j in range(weight.shape[1])]


FORMULAS = {"flap": flap, "wanda-sp": wanda, "magnitude": magnitude}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("criterion", FORMULAS)
def test_scores_are_those_of_the_formulas(
    make_model: Make, architecture: str, criterion: str
) -> None:
    loaded = load(str(make_model(architecture)), device="cpu")
    found = channel_order(loaded, WINDOWS, criterion, None)
    rows = inputs_of(loaded.model, WINDOWS)
    block = loaded.model.model.layers[2]
    down, out = block.mlp.down_proj, block.self_attn.o_proj
    channels = FORMULAS[criterion](down.weight, rows[down])
    by_index = dict(enumerate(channels))
    order = sorted(by_index, key=lambda j: (-by_index[j], j))
    assert found.order.channels[2].tolist() == order
    assert found.layers[2].channel_scores.tolist() == pytest.approx(
        sorted(channels, reverse=True), rel=1e-5
    )
    # Two groups of two query heads of eight columns.
    columns = FORMULAS[criterion](out.weight, rows[out])
    groups = [sum(columns[:16]), sum(columns[16:])]
    assert found.layers[2].group_scores.tolist() == pytest.approx(
        sorted(groups, reverse=True), rel=1e-5
    )
    assert found.order.groups[2].tolist() == ([0, 1] if groups[0] >= groups[1] else [1, 0])


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_taylor_is_the_sum_of_weights_times_gradients(make_model: Make, architecture: str) -> None:
    loaded = load(str(make_model(architecture)), device="cpu")
    found = channel_order(loaded, WINDOWS, "taylor", None)
    model = loaded.model
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    block = model.model.layers[1]
    channels, groups = torch.zeros(64), torch.zeros(2)
    for window in WINDOWS:
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for linear in (block.mlp.gate_proj, block.mlp.up_proj):
            channels += (linear.weight * linear.weight.grad).abs().sum(1)
        down = block.mlp.down_proj.weight
        channels += (down * down.grad).abs().sum(0)
        for name in ("q_proj", "k_proj", "v_proj"):
            for parameter in getattr(block.self_attn, name).parameters():
                groups += (parameter * parameter.grad).abs().reshape(2, -1).sum(1)
        out = block.self_attn.o_proj.weight
        groups += (out * out.grad).abs().sum(0).reshape(2, -1).sum(1)
        model.zero_grad(set_to_none=True)
    ordered, indices = channels.detach().sort(descending=True)
    assert found.layers[1].channel_scores.tolist() == pytest.approx(ordered.tolist(), rel=1e-4)
    assert found.order.channels[1].tolist() == indices.tolist()
    assert found.layers[1].group_scores.tolist() == pytest.approx(
        sorted(groups.tolist(), reverse=True), rel=1e-4
    )


def test_only_flap_keeps_means(loaded: LoadedModel) -> None:
    assert [entry.name for entry in REGISTRY.entries() if entry.biases] == ["flap"]
    order = channel_order(loaded, WINDOWS, "flap", None).order
    rows = inputs_of(loaded.model, WINDOWS)
    block = loaded.model.model.layers[3]
    assert order.channel_means is not None
    assert order.column_means is not None
    torch.testing.assert_close(
        order.channel_means[3], rows[block.mlp.down_proj].mean(0).float(), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        order.column_means[3], rows[block.self_attn.o_proj].mean(0).float(), rtol=1e-4, atol=1e-6
    )
    assert not order.channel_means[3].is_inference(), "it could not be trained with"
    assert channel_order(loaded, WINDOWS, "wanda-sp", None).order.channel_means is None


def test_statistics_are_those_of_a_plain_pass(loaded: LoadedModel) -> None:
    found = channel_order(loaded, WINDOWS, "magnitude", None).layers
    with torch.inference_mode():
        states = loaded.model(input_ids=WINDOWS, output_hidden_states=True).hidden_states
    for index in range(N_LAYERS - 1):  # the last state is given after the final norm
        cosine = torch.cosine_similarity(states[index].float(), states[index + 1].float(), dim=-1)
        assert found[index].influence == pytest.approx(float((1 - cosine).mean()), rel=1e-4)
    rows = inputs_of(loaded.model, WINDOWS)
    block = loaded.model.model.layers[4]
    metric = torch.cat(
        [
            (module.weight.abs() * rows[module].square().mean(0).sqrt()).flatten()
            for module in block.modules()
            if isinstance(module, nn.Linear)
        ]
    )
    assert found[4].outlier_share == float((metric > 5 * metric.mean()).double().mean())


def test_windows_one_by_one_give_what_all_at_once_give(loaded: LoadedModel) -> None:
    few = channel_order(loaded, WINDOWS[:, :16].repeat(2, 1), "flap", None)
    many = channel_order(loaded, WINDOWS[:, :16], "flap", None)
    # Each token is seen twice: the mean is equal, and the variance but for count - 1.
    for one, other in zip(few.layers, many.layers, strict=True):
        expected = other.channel_scores * (47 / 48) / (95 / 96)
        assert one.channel_scores.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
        assert one.influence == pytest.approx(other.influence, rel=1e-6)


def test_equal_scores_keep_the_order_of_their_indices() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(0.5)
        model.model.layers[0].self_attn.o_proj.weight.fill_(0.5)
    loaded = in_memory(model)
    order = channel_order(loaded, WINDOWS, "magnitude", None).order
    assert order.channels[0].tolist() == list(range(64))
    assert order.groups[0].tolist() == [0, 1]


def in_memory(model: PreTrainedModel) -> LoadedModel:
    """A model without files."""
    from prunesearch.models.sizes import sizes_of
    from tests.support.models import byte_tokenizer

    return LoadedModel("tiny", model, byte_tokenizer(), "0" * 64, sizes_of(model), resident(model))


def test_channels_without_variance_come_last(loaded: LoadedModel) -> None:
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            getattr(loaded.model.model.layers[1].mlp, name).weight[[5, 40]] = 0.0
    found = channel_order(loaded, WINDOWS, "flap", None)
    assert found.order.channels[1].tolist()[-2:] == [5, 40]
    assert found.layers[1].channel_scores.tolist()[-2:] == [0.0, 0.0]


def test_one_window_of_one_token_has_scores(loaded: LoadedModel) -> None:
    found = channel_order(loaded, WINDOWS[:1, :1], "flap", None)
    assert found.order.channels[0].tolist() == list(range(64))
    assert channel_order(loaded, WINDOWS[:1], "flap", None).layers[0].channel_scores.min() > 0


def test_an_order_is_read_from_its_file_and_computed_again_if_that_is_damaged(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    first = channel_order(loaded, WINDOWS, "flap", tmp_path / "orders")
    (path,) = (tmp_path / "orders").iterdir()
    assert first.order.digest.startswith("flap-")
    # The weights change and their digest does not, so a computation would give another order.
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.down_proj.weight.copy_(
            loaded.model.model.layers[0].mlp.down_proj.weight.flip(1)
        )
    again = channel_order(loaded, WINDOWS, "flap", tmp_path / "orders")
    assert again.order.digest == first.order.digest
    assert again.layers[5].group_scores.tolist() == first.layers[5].group_scores.tolist()
    assert again.layers[5].influence == first.layers[5].influence
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    damaged = channel_order(loaded, WINDOWS, "flap", tmp_path / "orders")
    assert damaged.order.digest != first.order.digest
    # Another criterion and another text have files of their own.
    channel_order(loaded, WINDOWS, "magnitude", tmp_path / "orders")
    channel_order(loaded, WINDOWS[:2], "flap", tmp_path / "orders")
    assert len(list((tmp_path / "orders").iterdir())) == 3


def test_a_model_in_another_order_is_measured_in_its_own(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    own = channel_order(loaded, WINDOWS, "flap", None).order
    reorder(loaded.model, channel_order(loaded, WINDOWS, "magnitude", None).order)
    again = channel_order(loaded, WINDOWS, "flap", tmp_path).order
    assert again.digest == own.digest
    assert order_of(loaded.model) is None
    # In any order the same file is found, and the model is left as it is.
    reorder(loaded.model, own)
    assert channel_order(loaded, WINDOWS, "flap", tmp_path).order.digest == own.digest
    assert order_of(loaded.model) is own
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_ordered_is_refused(
    loaded: LoadedModel, make_model: Make, tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'flap'"):
        channel_order(loaded, WINDOWS, "flop", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot keep the channel order"):
        channel_order(loaded, WINDOWS, "flap", tmp_path / "file")
    with torch.no_grad():
        loaded.model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ScoringError, match="layer 2 by the criterion magnitude are not finite"):
        channel_order(loaded, WINDOWS, "magnitude", None)
    fused = load(str(make_model("phi3")), device="cpu")
    with pytest.raises(ModelError, match="cannot be narrowed"):
        channel_order(fused, WINDOWS, "taylor", None)


def test_streamed_blocks_give_the_same_order_and_refuse_taylor(
    make_model: Make, loaded: LoadedModel
) -> None:
    from prunesearch.models.streaming import open_streamed

    folder = make_model("llama", "streamed")
    whole = load(str(folder), device="cpu")
    streamed = open_streamed(str(folder))
    for criterion in ("flap", "magnitude"):
        assert (
            channel_order(streamed, WINDOWS, criterion, None).order.digest
            == channel_order(whole, WINDOWS, criterion, None).order.digest
        )
    with pytest.raises(InputError, match="taylor needs all weights in memory"):
        channel_order(streamed, WINDOWS, "taylor", None)
