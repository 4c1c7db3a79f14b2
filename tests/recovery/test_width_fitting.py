"""What is left of narrowed layers makes up for what is gone, and never for the worse."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.errors import InputError, ModelError
from prunesearch.models import narrowing, reordering
from prunesearch.models.loading import LoadedModel
from prunesearch.models.sizes import sizes_of
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import width_shape_of
from prunesearch.pipeline.stages.compensate import compensation_report
from prunesearch.recovery import width_fitting
from prunesearch.recovery.compensation import compensate
from prunesearch.recovery.output_fit import OutputSums
from prunesearch.recovery.width_fitting import WidthFitter
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.models import N_LAYERS, byte_tokenizer, resident, tiny
from tests.support.widths import order_for

CHANNELS = [40, 64, 24, 48, 32, 8]
GROUPS = [2, 1, 2, 1, 2, 1]


def held(model: PreTrainedModel) -> LoadedModel:
    """A model that was made here, as if loaded."""
    return LoadedModel("tiny", model, byte_tokenizer(), "0" * 64, sizes_of(model), resident(model))


def windows(number: int, seed: int = 1) -> torch.Tensor:
    """Windows of few different tokens, so that a model can be taught them."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, 9, (number, 32), generator=random)


@torch.no_grad()
def taught(model: PreTrainedModel) -> LoadedModel:
    """A model whose head was fitted to the text, so that what is removed is missed."""
    text = windows(48, 3)
    hidden = model.model(input_ids=text).last_hidden_state[:, :-1].flatten(0, 1)
    wanted = nn.functional.one_hot(text[:, 1:].flatten(), model.config.vocab_size).float()
    model.lm_head.weight.copy_(8 * torch.linalg.lstsq(hidden, wanted).solution.T)
    return held(model)


def candidate_of(
    model: PreTrainedModel,
    biases: bool,
    channels: list[int] = CHANNELS,
    groups: list[int] = GROUPS,
) -> LayerWidths:
    """Widths of a model, whose channels are put in an order."""
    order = order_for(model, biases)
    reordering.reorder(model, order)
    return LayerWidths.within(width_shape_of(model), channels, groups, order.digest, biases)


@torch.inference_mode()
def logits(model: PreTrainedModel, candidate: LayerWidths) -> torch.Tensor:
    with pruned(model, candidate):
        found: torch.Tensor = model(input_ids=windows(2, 9), use_cache=False).logits
        return found


@pytest.mark.parametrize("parts", [[60], [1] * 60, [7, 33, 20]])
def test_sums_do_not_depend_on_how_tokens_are_batched(parts: list[int]) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, gave, wanted = (torch.randn(60, size, generator=random) for size in (6, 4, 4))
    sums = OutputSums()
    for part in zip(*(each.split(parts) for each in (inputs, gave, wanted)), strict=True):
        sums.add(*part)
    inputs, gave, wanted = inputs.double(), gave.double(), wanted.double()
    gram = inputs.T @ inputs
    ridged = gram + 0.3 * gram.diagonal().mean() * torch.eye(6)
    change = torch.linalg.solve(ridged, inputs.T @ (wanted - gave))
    torch.testing.assert_close(sums.solve(0.3), change, rtol=1e-5, atol=1e-6)
    squares = wanted.square().sum()
    for moved, before in ((gave, None), (gave + inputs @ change, change)):
        error = float((moved - wanted).square().sum() / squares)
        assert sums.error(before) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("biases", [False, True])
def test_channels_that_others_can_express_are_made_up_for(
    biases: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second half of the channels repeats the first, up to the sign of the output."""
    model = tiny(tie_word_embeddings=False)
    for block in blocks_of(model):
        for name in ("gate_proj", "up_proj"):
            rows = block.get_parameter(f"mlp.{name}.weight").data
            rows[32:] = rows[:32]
    order = order_for(model, biases)
    channels = tuple(torch.arange(64) for _ in range(N_LAYERS))
    order = type(order)("flap", channels, order.groups, order.channel_means, order.column_means)
    reordering.reorder(model, order)
    shape = width_shape_of(model)
    candidate = LayerWidths.within(shape, [32] * N_LAYERS, list(shape.groups), order.digest, biases)
    with torch.inference_mode():
        wanted = model(input_ids=windows(2, 9), use_cache=False).logits
    without = logits(model, candidate)
    monkeypatch.setattr(width_fitting, "RIDGES", (1e-9,))
    monkeypatch.setattr(WidthFitter, "_improves", _always)
    with compensate(held(model), candidate, windows(24), windows(4, 2)) as done:
        found = logits(model, candidate)
    assert [width.method for width in done.widths] == ["mlp"] * N_LAYERS
    assert (found - wanted).abs().max() < 1e-3 * (without - wanted).abs().max()
    assert torch.equal(logits(model, candidate), without), "undone to the bit"


def _always(fitter: WidthFitter, edit: dict[nn.Parameter, torch.Tensor]) -> bool:
    fitter.metrics = fitter._held_out.metrics(edit)
    return True


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("build", [tiny, lambda **given: tiny("qwen3", **given)])
def test_the_report_is_what_the_changed_model_gives(
    build: Callable[..., PreTrainedModel], biases: bool, tmp_path: Path
) -> None:
    loaded = taught(build(tie_word_embeddings=False))
    candidate = candidate_of(loaded.model, biases)
    text = windows(48, 3)[:40], windows(48, 3)[40:]
    dense = logits(loaded.model, candidate)
    done = compensate(loaded, candidate, *text, folder=tmp_path)
    assert done.helped and done.recovered > 0
    with pruned(loaded.model, candidate), torch.inference_mode():
        found = float(loaded.model(input_ids=text[1], labels=text[1], use_cache=False).loss)
    assert found == pytest.approx(done.compensated["cross_entropy"], rel=1e-4)
    for width in done.widths:
        for fit in (width.attention, width.mlp):
            assert fit is None or fit.error_after < fit.error_before
    changed, content = logits(loaded.model, candidate), loaded.content
    assert content != loaded.fingerprint
    report = compensation_report(done)
    assert report.widths is not None
    assert [width.layer for width in report.widths] == list(range(N_LAYERS))
    done.undo()
    assert torch.equal(logits(loaded.model, candidate), dense)
    assert loaded.content == loaded.fingerprint
    # The stored result gives the same weights.
    again = compensate(loaded, candidate, *text, folder=tmp_path)
    assert again.cached and again.widths == done.widths
    assert torch.equal(logits(loaded.model, candidate), changed)
    assert loaded.content == content


def test_a_model_that_is_narrow_for_good_is_the_compensated_candidate() -> None:
    loaded = taught(tiny(tie_word_embeddings=False))
    candidate = candidate_of(loaded.model, True)
    compensate(loaded, candidate, windows(48, 3)[:40], windows(48, 3)[40:])
    expected = logits(loaded.model, candidate)
    narrowing.narrow(loaded.model, candidate)
    with torch.inference_mode():
        found = loaded.model(input_ids=windows(2, 9), use_cache=False).logits
    assert torch.equal(found, expected)


def test_blocks_that_are_dropped_are_compensated_too() -> None:
    loaded = taught(tiny(tie_word_embeddings=False))
    candidate = candidate_of(loaded.model, True, [40, 64, 0, 48, 32, 24], [2, 1, 0, 1, 2, 1])
    assert candidate.dropped == (2,)
    text = windows(48, 3)[:40], windows(48, 3)[40:]
    done = compensate(loaded, candidate, *text)
    assert [width.block for width in done.widths] == [0, 1, 3, 4, 5]
    assert [gap.gap.text for gap in done.gaps] == ["2"]
    losses = [done.pruned["cross_entropy"], done.gaps[0].loss_before, done.gaps[0].loss_after]
    assert losses == sorted(losses, reverse=True)
    with pruned(loaded.model, candidate), torch.inference_mode():
        found = float(loaded.model(input_ids=text[1], labels=text[1], use_cache=False).loss)
    assert found == pytest.approx(done.compensated["cross_entropy"], rel=1e-4)
    assert found == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("alone", [True, False])
def test_scaling_changes_the_bias_of_a_narrowed_layer(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaling by alpha equals scaling the states, whose norms later layers take."""
    loaded = taught(tiny(tie_word_embeddings=False))
    channels = [64, 64, 0, 64, 64, 24] if alone else [40, 64, 0, 48, 32, 24]
    candidate = candidate_of(loaded.model, True, channels, [2, 2, 0, 2, 2, 2])
    model = loaded.model
    monkeypatch.setattr("prunesearch.recovery.gap_fitting.GapFitter._improves", _always_gap)
    before = narrowing.narrow_outputs(model, candidate, 5)[1]
    assert before is not None and before.bias is not None
    bias = before.bias.detach().clone()
    with compensate(loaded, candidate, windows(8), windows(2, 2), "scaling") as done:
        [gap] = done.gaps
        assert gap.alpha is not None
        torch.testing.assert_close(before.bias * gap.alpha, bias, rtol=1e-5, atol=1e-6)
    assert torch.equal(before.bias, bias)


def _always_gap(fitter: object, edit: dict[nn.Parameter, torch.Tensor]) -> bool:
    fitter.edit = edit  # type: ignore[attr-defined]
    return True


def test_fits_that_do_not_lower_the_loss_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they do not, so each is tried alone, and only every second one is kept."""
    loaded = taught(tiny(tie_word_embeddings=False))
    candidate = candidate_of(loaded.model, False)
    asked: list[int] = []

    def improves(fitter: WidthFitter, edit: dict[nn.Parameter, torch.Tensor]) -> bool:
        asked.append(len(edit))
        if len(asked) % 2:
            return False
        fitter.edit = edit
        return True

    monkeypatch.setattr(WidthFitter, "_improves", improves)
    done = compensate(loaded, candidate, windows(24), windows(4, 2))
    kept = sum((width.attention is not None) + (width.mlp is not None) for width in done.widths)
    assert asked[0] > kept == len(done.changed) > 0


def test_bfloat16_weights_stay_bfloat16() -> None:
    loaded = held(taught(tiny(tie_word_embeddings=False)).model.bfloat16())
    candidate = candidate_of(loaded.model, True)
    done = compensate(loaded, candidate, windows(48, 3)[:40], windows(48, 3)[40:])
    assert done.recovered > 0
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in done.changed} == {torch.bfloat16}


def test_what_cannot_be_compensated_is_refused() -> None:
    loaded = held(tiny())
    candidate = candidate_of(loaded.model, False)
    with pytest.raises(ModelError, match="nothing to compensate"):
        compensate(loaded, candidate, windows(4), windows(2), "scaling")
    reordering.restore(loaded.model)
    with pytest.raises(InputError, match="in their own order"):
        compensate(loaded, candidate, windows(4), windows(2))
