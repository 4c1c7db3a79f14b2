"""First-order importance of channels and KV groups: weights times their gradients.

The gradient of a weight is used and freed as soon as it is known, so the pass needs little more
memory than a forward pass with gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.errors import InputError
from prunesearch.models.experts import NarrowableExperts
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import blocks_of, input_device
from prunesearch.models.width_shape import block_parts
from prunesearch.runtime import stopping

Summed = tuple[torch.Tensor, torch.Tensor, int]
"""A parameter, the sums of its units, and the axis that its units divide: 0 rows, 1 columns."""


@dataclass(frozen=True)
class BlockGradients:
    """For each unit of a block, the sum of |w dL/dw| over its weights, float64.

    Attributes:
        channels: one number for each channel, or for each expert; empty if the block has none.
        groups: one number for each KV group; empty if the block has none.
    """

    channels: torch.Tensor
    groups: torch.Tensor


def block_gradients(loaded: LoadedModel, windows_BL: torch.Tensor) -> list[BlockGradients]:
    """Run the dense model forward and backward over each window.

    Args:
        loaded: the dense model. Its blocks must be in memory.
        windows_BL: token ids, shape (B, L).

    Raises:
        InputError: the blocks are streamed.
    """
    model = loaded.model
    if loaded.layers.streamed_once:
        raise InputError(
            "`criterion` taylor needs all weights in memory: use flap, wanda-sp or magnitude with "
            "streamed ones"
        )
    # List the parameters whose gradients are needed, each with the sums that it adds to.
    found: list[BlockGradients] = []
    summed: list[Summed] = []
    for block in blocks_of(model):
        mlp, attention = block_parts(model, block)
        channels = torch.zeros(0 if mlp is None else mlp.channels, dtype=torch.float64)
        groups = torch.zeros(0 if attention is None else attention.groups, dtype=torch.float64)
        found.append(BlockGradients(channels, groups))
        if isinstance(mlp, NarrowableExperts):
            for _, _, parameter in mlp.parameters:
                summed.append((parameter, channels, 0))
        elif mlp is not None:
            for module in mlp.inputs:
                summed += _parameters(module, channels)
            summed.append((mlp.output.weight, channels, 1))
        if attention is not None:
            for module in (attention.query, attention.key, attention.value):
                summed += _parameters(module, groups)
            summed.append((attention.output.weight, groups, 1))
    # Each window adds to the sums while its backward pass runs.
    with torch.enable_grad(), _collecting(model, summed):
        for window_L in windows_BL.to(input_device(model)):
            stopping.check()
            model(input_ids=window_L[None], labels=window_L[None], use_cache=False).loss.backward()
    return found


def _parameters(module: nn.Linear, units: torch.Tensor) -> Iterator[Summed]:
    """Yield the parameters of a linear layer whose rows belong to units."""
    yield module.weight, units, 0
    if module.bias is not None:
        yield module.bias, units, 0


@contextmanager
def _collecting(model: PreTrainedModel, summed: list[Summed]) -> Iterator[None]:
    """Add |w dL/dw| to sums during each backward pass inside the ``with`` block.

    Only the parameters of the sums have gradients. All settings are restored at the end.

    Args:
        model: the model.
        summed: parameters whose gradients are needed.
    """
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    hooks = []
    try:
        model.requires_grad_(False)
        for parameter, sums_U, axis in summed:
            parameter.requires_grad_(True)
            hook = _adding(sums_U, axis)
            hooks.append(
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            )
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)


def _adding(sums_U: torch.Tensor, axis: int) -> Callable[[torch.Tensor], None]:
    """Return a hook that adds |w dL/dw| of a parameter to its units, and frees the gradient."""

    @torch.no_grad()
    def add(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        harm = (parameter.detach().float() * parameter.grad.float()).abs()
        # A unit has neighbouring rows or columns.
        parts = harm.movedim(axis, 0).reshape(len(sums_U), -1)
        sums_U.add_(parts.sum(1, dtype=torch.float64).to(sums_U.device))
        parameter.grad = None

    return add
