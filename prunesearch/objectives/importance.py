"""One-shot rankings: estimates of the harm of dropping each unit, without scoring a candidate.

A search starts from a ranking (`Recipe.ranking`). The sampler ``one-shot`` uses nothing else.

* `influence`: block influence, X. Men et al., "ShortGPT", arXiv:2403.03853, eq. 1: the mean over
  tokens of 1 - cos(input, output) of the unit. It takes one forward pass of the dense model.
* `magnitude`: the mean absolute weight of the unit, as in Ratsapa et al. 2025, figure 2. It takes
  no pass.
* `taylor`: B.-K. Kim et al., "Shortened LLaMA", arXiv:2402.02834, eq. 3: the sum over the unit's
  weights of |w dL/dw|, with L the cross-entropy of the calibration text. It takes one forward and
  one backward pass per sequence.

A fourth ranking, `single`, is the loss of the model without the unit. The study itself measures it,
see `samplers.population`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.errors import InputError, ScoringError
from prunesearch.execution.batches import Rows
from prunesearch.execution.block_code import run_block
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.layers import Layers
from prunesearch.models.structure import (
    blocks_of,
    input_device,
    parts_of,
    sublayer_of,
)
from prunesearch.objectives.calibration_data import check_fits
from prunesearch.runtime import stopping


def rank_units(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, ranking: str, units: str
) -> list[float]:
    """Return the estimated harm of dropping each unit. A larger value is worse.

    Values are comparable within one model only.

    Args:
        model: the dense model.
        layers: the model's blocks, in memory or streamed.
        windows_BL: token ids, shape (B, L). `magnitude` does not read them.
        ranking: name of the ranking: ``influence``, ``magnitude`` or ``taylor``.
        units: ``blocks`` or ``sublayers``, in the order of `SearchSpace`.

    Raises:
        DataError: the windows do not fit the model.
        InputError: the ranking is `taylor`, which needs a backward pass, and the blocks are
            streamed.
        ScoringError: the numbers are not finite.
    """
    if ranking == "taylor" and layers.streamed_once:
        raise InputError(
            "`ranking` taylor needs all weights in memory: use influence or magnitude with "
            "streamed ones"
        )
    check_fits(model, windows_BL)
    rank: Callable[[PreTrainedModel, Layers, torch.Tensor, list[list[nn.Module]]], list[float]]
    rank = {"influence": _influence, "magnitude": _magnitude, "taylor": _taylor}[ranking]
    harm = rank(model, layers, windows_BL.to(input_device(model)), _units(model, units))
    if not all(0.0 <= value < float("inf") for value in harm):
        raise ScoringError(
            f"the ranking {ranking} of the dense model is not finite: search with `ranking` none"
        )
    # A unit that seems harmless gets a small positive value.
    floor = 1e-6 * max(harm) or 1.0
    return [max(value, floor) for value in harm]


def _units(model: PreTrainedModel, units: str) -> list[list[nn.Module]]:
    """Return the modules of each unit.

    The first module of a sublayer is its norm, which reads the unit's input. Norms after the
    sublayer are left out.
    """
    if units == "blocks":
        return [[block] for block in blocks_of(model)]
    modules = []
    for block in blocks_of(model):
        for sublayer in (sublayer_of(model, "attention"), sublayer_of(model, "mlp")):
            modules.append(parts_of(block, sublayer.parts[: -len(sublayer.norms_after) or None]))
    return modules


@torch.inference_mode()
def _influence(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, units: list[list[nn.Module]]
) -> list[float]:
    """Compute `influence`: hooks compare the input of each unit with its output."""
    sums = [0.0] * len(units)
    entered: dict[int, torch.Tensor] = {}

    def enter(unit: int) -> Callable[..., None]:
        def hook(
            _: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
        ) -> None:
            entered[unit] = args[0] if args else kwargs["hidden_states"]

        return hook

    def leave(unit: int, adds: bool) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            before = entered.pop(unit)
            after = output if isinstance(output, torch.Tensor) else output[0]
            # A sublayer's output is added to its input, and a block's output already contains it.
            if adds:
                after = before + after
            sums[unit] += float(
                (
                    1.0 - nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
                ).mean()
            )

        return hook

    forward = Forward(model, layers)
    entered_W = [forward.capture_block_inputs(Rows(window_L[None])) for window_L in windows_BL]
    states_W = [hidden for hidden, _ in entered_W]
    # Hook the first and the last module of each unit.
    hooks = []
    for unit, modules in enumerate(units):
        hooks.append(modules[0].register_forward_pre_hook(enter(unit), with_kwargs=True))
        hooks.append(
            modules[-1].register_forward_hook(leave(unit, adds=len(units) > len(blocks_of(model))))
        )
    # Run all windows through a block while the block is in memory.
    try:
        for index, block in layers.walk(range(len(blocks_of(model)))):
            stopping.check()
            for window, (_, calls) in enumerate(entered_W):
                states_W[window] = run_block(block, states_W[window], calls[index])
    finally:
        for handle in hooks:
            handle.remove()
    return [max(total, 0.0) / len(windows_BL) for total in sums]


def _magnitude(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, units: list[list[nn.Module]]
) -> list[float]:
    """Compute `magnitude`: the mean absolute weight of each unit."""
    means = []
    per_block = len(units) // len(blocks_of(model))
    for index, _ in layers.walk(range(len(blocks_of(model)))):
        stopping.check()
        for modules in units[index * per_block : (index + 1) * per_block]:
            sums: list[float] = []
            count = 0
            for module in modules:
                for weight in module.parameters():
                    sums.append(float(weight.detach().abs().sum(dtype=torch.float32)))
                    count += weight.numel()
            # From Python 3.12 on, `sum` adds floats with compensation, and repeated `+=` does not.
            means.append(sum(sums) / count)
    return means


def _taylor(
    model: PreTrainedModel, layers: Layers, windows_BL: torch.Tensor, units: list[list[nn.Module]]
) -> list[float]:
    """Compute `taylor`: the sum over the weights of each unit of |w dL/dw|, over all windows."""
    sums = [0.0] * len(units)
    with torch.enable_grad(), _trainable(model):
        for window_L in windows_BL:
            stopping.check()
            model(input_ids=window_L[None], labels=window_L[None], use_cache=False).loss.backward()
            for unit, modules in enumerate(units):
                for weight in chain.from_iterable(module.parameters() for module in modules):
                    if weight.grad is not None:
                        sums[unit] += float(
                            (weight.grad * weight.detach()).abs().sum(dtype=torch.float32)
                        )
                        weight.grad = None
            model.zero_grad(set_to_none=True)
    return sums


@contextmanager
def _trainable(model: PreTrainedModel) -> Iterator[None]:
    """Make all parameters require gradients, and restore their settings on exit."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(True)
        yield
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
