"""Writers: the last linear map of each sublayer, whose output is added to the hidden state.

A forward pass over a window of text finds these modules. The same window is used to test which
changes they support. Nothing is looked up by the type of the model.

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

from prunesearch.compat.transformers import Conv1D
from prunesearch.execution.batches import Rows
from prunesearch.execution.block_code import Call, run_block
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.structure import architecture_of, blocks_of, parts_of

# Relative difference up to which two results count as equal. An eps or 16-bit rounding causes less,
# a norm in between causes more.
_ALIKE = 0.02

Linear = nn.Linear | Conv1D
"""A linear map. Conv1D stores its weight transposed."""
Edit = Mapping[nn.Parameter, torch.Tensor]
"""Parameters, each with the tensor that replaces its data."""


@dataclass(frozen=True)
class Block:
    """The output projections of a block, and the changes they support (see `look`).

    Attributes:
        projections: last linear maps of attention and MLP, in this order.
        scales: True if the output of the block scales with its input and its output projections.
        adds: True if the output of the last projection is added to the hidden state unchanged.
    """

    projections: tuple[Linear, ...]
    scales: bool
    adds: bool


def put(edit: Edit) -> None:
    """Replace the tensors of parameters.

    The old tensors are not written to, so other holders of them keep their values.
    """
    for parameter, tensor in edit.items():
        parameter.data = tensor


@contextmanager
def applied(edit: Edit) -> Iterator[None]:
    """Replace the tensors of parameters inside the ``with`` block, and restore them at its end."""
    dense = {parameter: parameter.data for parameter in edit}
    try:
        put(edit)
        yield
    finally:
        put(dense)


def times(projection: Linear, factor: float, base: Edit) -> Edit:
    """Return the edit that multiplies the output of a linear map by a factor.

    Args:
        projection: the linear map.
        factor: the factor.
        base: edit whose values are used where it has the parameters.
    """
    return {
        parameter: base.get(parameter, parameter.data) * factor
        for parameter in projection.parameters(recurse=False)
    }


@dataclass(frozen=True)
class Observed:
    """One call of a linear map: its input and its output."""

    module: Linear
    given: torch.Tensor
    gave: torch.Tensor


def observed(
    block: nn.Module, hidden_BLE: torch.Tensor, call: Call, modules: Sequence[Linear]
) -> tuple[torch.Tensor, list[Observed]]:
    """Run a block, and record the calls of some of its linear maps.

    Returns:
        Hidden states after the block, and the calls in order.
    """
    seen: list[Observed] = []

    def note(
        module: Any,  # noqa: ANN401
        given: tuple[torch.Tensor, ...],
        gave: torch.Tensor,
    ) -> None:
        # Clone the output, because some models add the residual in place.
        seen.append(Observed(module, given[0], gave.clone()))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        return run_block(block, hidden_BLE, call), seen


@torch.inference_mode()
def look(model: PreTrainedModel, forward: Forward, batch: Rows) -> tuple[list[Block], bool]:
    """Test on a window of text which changes each block of the dense model supports.

    ``scales``: with the state and the writers doubled, the output of the block doubles. ``adds``:
    with the last projection multiplied by 1 + c, the output of the block changes by c times the
    writer's output.

    Args:
        model: the dense model.
        forward: its forward pass.
        batch: the window of text.

    Returns:
        The blocks in order, and True if the head gives the same logits for doubled states.
    """
    # Tied weights cannot be changed alone, so count the parameters that share each memory address.
    location = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    hidden_BLE, calls = forward.capture_block_inputs(batch)
    found = []
    for block, call in zip(blocks_of(model), calls, strict=True):
        out_BLE, last = run_block(block, hidden_BLE, call), []
        # The writer of a sublayer is the linear map that is called last.
        for kind in ("attention", "mlp"):
            sublayer = getattr(architecture_of(model.config), kind)
            parts = [] if sublayer is None else parts_of(block, sublayer.modules)
            linears: list[Linear] = []
            for part in parts:
                linears += [m for m in part.modules() if isinstance(m, nn.Linear | Conv1D)]
            last += observed(block, hidden_BLE, call, linears)[1][-1:]
        projections = tuple(seen.module for seen in last)
        usable = len(projections) == 2
        for projection in projections:
            for parameter in projection.parameters():
                usable = usable and location[parameter.data_ptr()] == 1
        # Test the changes only if the writers can be changed at all.
        found.append(
            Block(
                projections,
                usable and _scales(block, projections, hidden_BLE, out_BLE, call),
                usable and _adds(block, last[-1], hidden_BLE, out_BLE, call),
            )
        )
        hidden_BLE = out_BLE
    head, rows_TE = Head(model), flat(hidden_BLE)
    return found, _alike(head.apply_final_norm(2 * rows_TE), head.apply_final_norm(rows_TE))


def _scales(
    block: nn.Module,
    projections: Sequence[Linear],
    hidden_BLE: torch.Tensor,
    out_BLE: torch.Tensor,
    call: Call,
) -> bool:
    """Return whether doubling the state and the writers doubles the output."""
    edit: dict[nn.Parameter, torch.Tensor] = {}
    for projection in projections:
        edit |= times(projection, 2, {})
    with applied(edit):
        return _alike(run_block(block, 2 * hidden_BLE, call), 2 * out_BLE)


def _adds(
    block: nn.Module, last: Observed, hidden_BLE: torch.Tensor, out_BLE: torch.Tensor, call: Call
) -> bool:
    """Return whether the output of the last projection is added to the hidden state unchanged."""
    added_TE, out_TE = flat(last.gave).float(), flat(out_BLE).float()
    if added_TE.shape != out_TE.shape or not added_TE.any():
        return False
    # Add a multiple that is as large as the output, because rounding would hide a small change.
    exponent = max(0, math.ceil(math.log2(float(out_TE.norm() / added_TE.norm()))))
    with applied(times(last.module, 1 + 2**exponent, {})):
        more_TE = flat(run_block(block, hidden_BLE, call)).float()
    return _alike((more_TE - out_TE) / 2**exponent, added_TE)


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether the mean relative difference of vectors is at most `_ALIKE`."""
    length = expected.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return bool(((found.float() - expected.float()).norm(dim=-1) / length).mean() <= _ALIKE)


def flat(hidden_BLE: torch.Tensor) -> torch.Tensor:
    """Reshape hidden states to shape (T, E)."""
    return hidden_BLE.reshape(-1, hidden_BLE.shape[-1])
