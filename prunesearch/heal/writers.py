"""Writers: the last linear map of each sublayer, whose output goes into the hidden state, and what can be done to it.

Which module that is is observed, and that it can be changed as said is tried out on a window of text, not looked up.

Shapes: B windows of L tokens, T tokens, E hidden size.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunesearch.model.anatomy import blocks_of, family_of, parts_of
from prunesearch.scoring.batches import Rows
from prunesearch.scoring.forward import Call, Forward, Head, through

_ALIKE = 0.02  # relative difference: more than eps or 16-bit rounding make, less than a norm in the way

Linear = nn.Linear | Conv1D
"""Conv1D keeps its weight transposed."""
Edit = Mapping[nn.Parameter, torch.Tensor]
"""Weights with what shall stand in their place."""


@dataclass(frozen=True)
class Block:
    """A block's writers, and what can be done to them; see `look`."""

    writers: tuple[Linear, ...]
    scales: bool
    adds: bool


def put(edit: Edit) -> None:
    """Put weights in their place: the tensors, not their values, so that who shares the old ones keeps them."""
    for parameter, tensor in edit.items():
        parameter.data = tensor


@contextmanager
def applied(edit: Edit) -> Iterator[None]:
    """Put weights in their place inside the ``with`` block."""
    dense = {parameter: parameter.data for parameter in edit}
    try:
        put(edit)
        yield
    finally:
        put(dense)


def times(writer: Linear, factor: float, base: Edit) -> Edit:
    """A linear map whose output is multiplied."""
    return {parameter: base.get(parameter, parameter.data) * factor for parameter in writer.parameters(recurse=False)}


@dataclass(frozen=True)
class _Seen:
    """A linear map as it was called."""

    module: Linear
    given: torch.Tensor
    gave: torch.Tensor


def observed(
    block: nn.Module, hidden_BLE: torch.Tensor, call: Call, modules: Sequence[Linear]
) -> tuple[torch.Tensor, list[_Seen]]:
    """Hidden states behind a block, and how it called some of its linear maps, in order."""
    seen: list[_Seen] = []

    def note(module: Any, given: tuple[torch.Tensor, ...], gave: torch.Tensor) -> None:  # noqa: ANN401
        seen.append(_Seen(module, given[0], gave.clone()))  # some add the residual in place

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        return through(block, hidden_BLE, call), seen


@torch.inference_mode()
def look(model: PreTrainedModel, forward: Forward, batch: Rows) -> tuple[list[Block], bool]:
    """Try out on a window what can be done to each block of the dense model, and whether its head minds the scale.

    A block scales if twice the state and twice its sublayers' last linear maps give twice its output. It adds its MLP's
    last linear map if a multiple of that changes its output by as much of the map's output.
    """
    places = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    hidden_BLE, calls = forward.enter(batch)
    found = []
    for block, call in zip(blocks_of(model), calls, strict=True):
        out_BLE, last = through(block, hidden_BLE, call), []
        for kind in ("attention", "mlp"):
            sublayer = getattr(family_of(model.config), kind)
            parts = [] if sublayer is None else parts_of(block, sublayer.modules)
            linears = [m for part in parts for m in part.modules() if isinstance(m, nn.Linear | Conv1D)]
            last += observed(block, hidden_BLE, call, linears)[1][-1:]
        writers = tuple(seen.module for seen in last)
        usable = len(writers) == 2 and all(places[p.data_ptr()] == 1 for w in writers for p in w.parameters())
        found.append(
            Block(
                writers,
                usable and _scales(block, writers, hidden_BLE, out_BLE, call),
                usable and _adds(block, last[-1], hidden_BLE, out_BLE, call),
            )
        )
        hidden_BLE = out_BLE
    head, rows_TE = Head(model), flat(hidden_BLE)
    return found, _alike(head.finish(2 * rows_TE), head.finish(rows_TE))


def _scales(
    block: nn.Module, writers: Sequence[Linear], hidden_BLE: torch.Tensor, out_BLE: torch.Tensor, call: Call
) -> bool:
    edit: dict[nn.Parameter, torch.Tensor] = {}
    for writer in writers:
        edit |= times(writer, 2, {})
    with applied(edit):
        return _alike(through(block, 2 * hidden_BLE, call), 2 * out_BLE)


def _adds(block: nn.Module, last: _Seen, hidden_BLE: torch.Tensor, out_BLE: torch.Tensor, call: Call) -> bool:
    added_TE, out_TE = flat(last.gave).float(), flat(out_BLE).float()
    if added_TE.shape != out_TE.shape or not added_TE.any():
        return False
    exponent = max(0, math.ceil(math.log2(float(out_TE.norm() / added_TE.norm()))))  # or rounding would hide it
    with applied(times(last.module, 1 + 2**exponent, {})):
        more_TE = flat(through(block, hidden_BLE, call)).float()
    return _alike((more_TE - out_TE) / 2**exponent, added_TE)


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether vectors differ by little of their length, in the mean."""
    length = expected.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return bool(((found.float() - expected.float()).norm(dim=-1) / length).mean() <= _ALIKE)


def flat(hidden_BLE: torch.Tensor) -> torch.Tensor:
    """As tokens: shape (T, E)."""
    return hidden_BLE.reshape(-1, hidden_BLE.shape[-1])
