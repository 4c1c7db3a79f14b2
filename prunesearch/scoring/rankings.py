"""One-shot rankings: what dropping each unit alone might cost, without scoring a single candidate.

A search starts from one of them (`Recipe.ranking`), and `--sampler one-shot` drops by it alone.

* `influence`: block influence, X. Men et al., "ShortGPT", arXiv:2403.03853, eq. 1: the mean over tokens of
  1 - cos(input, output) of the unit. One forward pass of the dense model.
* `magnitude`: the mean absolute weight of the unit, as in Ratsapa et al. 2025, figure 2. No pass at all.
* `taylor`: B.-K. Kim et al., "Shortened LLaMA", arXiv:2402.02834, eq. 3: the sum over the unit's weights of
  |w dL/dw|, with L the cross-entropy of the calibration text. One forward and one backward pass a sequence.

A fourth, `single`, the loss of the model without the unit, is measured by the study itself (see `samplers.swarms`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch import stopping
from prunesearch.errors import InputError, ScoringError
from prunesearch.model.anatomy import blocks_of, input_device, parts_of, sublayer_of
from prunesearch.model.layers import Layers
from prunesearch.scoring.batches import Rows
from prunesearch.scoring.forward import Forward, through
from prunesearch.scoring.text import check_fits


def rank_units(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, ranking: str, units: str
) -> list[float]:
    """Harm of dropping each unit, by the name of a ranking; more is worse, comparable inside one model only.

    Args:
        layers: the model's blocks, in memory or streamed.
        windows_BL: token ids, shape (B, L); `magnitude` does not look at them.
        units: ``blocks`` or ``sublayers``, in the order of `SearchSpace`.

    Raises:
        DataError: the windows do not fit the model.
        InputError: `taylor`, which goes back through all blocks, and these are streamed.
        ScoringError: the numbers are not finite.
    """
    if ranking == "taylor" and layers.one_pass:
        raise InputError("--ranking taylor needs all weights in memory: use influence or magnitude with streamed ones")
    check_fits(model, windows_BL)
    rank: Callable[[PreTrainedModel, Layers, torch.Tensor, list[list[nn.Module]]], list[float]]
    rank = {"influence": _influence, "magnitude": _magnitude, "taylor": _taylor}[ranking]
    harm = rank(model, layers, windows_BL.to(input_device(model)), _units(model, units))
    if not all(0.0 <= value < float("inf") for value in harm):
        raise ScoringError(f"the ranking {ranking} of the dense model is not finite: search with --ranking none")
    floor = 1e-6 * max(harm) or 1.0
    return [max(value, floor) for value in harm]


def _units(model: PreTrainedModel, units: str) -> list[list[nn.Module]]:
    """The modules of each unit; of sublayers the norm comes first, so that it sees the unit's input."""
    if units == "blocks":
        return [[block] for block in blocks_of(model)]
    return [
        parts_of(block, sublayer.parts[: -len(sublayer.behind) or None])
        for block in blocks_of(model)
        for sublayer in (sublayer_of(model, "attention"), sublayer_of(model, "mlp"))
    ]


@torch.inference_mode()
def _influence(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, units: list[list[nn.Module]]
) -> list[float]:
    sums = [0.0] * len(units)
    entered: dict[int, torch.Tensor] = {}

    def enter(unit: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            entered[unit] = args[0] if args else kwargs["hidden_states"]

        return hook

    def leave(unit: int, adds: bool) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            before = entered.pop(unit)
            after = output if isinstance(output, torch.Tensor) else output[0]
            after = before + after if adds else after  # a sublayer's output is added to its input
            sums[unit] += float((1.0 - nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)).mean())

        return hook

    forward = Forward(model, layers)
    entered_W = [forward.enter(Rows(window_L[None])) for window_L in windows_BL]
    states_W = [hidden for hidden, _ in entered_W]
    hooks = []
    for unit, modules in enumerate(units):
        hooks.append(modules[0].register_forward_pre_hook(enter(unit), with_kwargs=True))
        hooks.append(modules[-1].register_forward_hook(leave(unit, adds=len(units) > len(blocks_of(model)))))
    try:
        for index, block in layers.walk(range(len(blocks_of(model)))):
            stopping.check()
            states_W = [
                through(block, hidden, calls[index]) for hidden, (_, calls) in zip(states_W, entered_W, strict=True)
            ]
    finally:
        for handle in hooks:
            handle.remove()
    return [max(total, 0.0) / len(windows_BL) for total in sums]


def _magnitude(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, units: list[list[nn.Module]]
) -> list[float]:
    means = []
    per_block = len(units) // len(blocks_of(model))
    for index, _ in layers.walk(range(len(blocks_of(model)))):
        stopping.check()
        for modules in units[index * per_block : (index + 1) * per_block]:
            weights = [p.detach() for module in modules for p in module.parameters()]
            total = sum(float(w.abs().sum(dtype=torch.float32)) for w in weights)
            means.append(total / sum(w.numel() for w in weights))
    return means


def _taylor(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, units: list[list[nn.Module]]
) -> list[float]:
    sums = [0.0] * len(units)
    with torch.enable_grad(), _trainable(model):
        for window_L in windows_BL:
            stopping.check()
            model(input_ids=window_L[None], labels=window_L[None], use_cache=False).loss.backward()
            for unit, modules in enumerate(units):
                for weight in (p for module in modules for p in module.parameters()):
                    if weight.grad is not None:
                        sums[unit] += float((weight.grad * weight.detach()).abs().sum(dtype=torch.float32))
                        weight.grad = None
            model.zero_grad(set_to_none=True)
    return sums


@contextmanager
def _trainable(model: PreTrainedModel) -> Iterator[None]:
    """Let gradients reach the weights inside the block; embeddings and head need none, but autograd a leaf."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(True)
        yield
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
