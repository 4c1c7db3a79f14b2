"""A check that a model with narrower layers computes what it computes with zeros instead.

Code that reads the number of heads from the config, or passes keys and values on to other blocks,
would compute something else. This is tested with the model's own code, on a few tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.errors import ModelError, one_line
from prunesearch.models.experts import NarrowableExperts, fewer_experts, masked_experts
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import input_device
from prunesearch.models.width_shape import BlockParts
from prunesearch.models.width_views import Part, columns_of, viewed, views_of

_ALIKE = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Accepted relative difference of the logits, by the dtype of the weights."""
# More than the rounding of 16-bit weights causes over many blocks (0.042 in the 30 of SmolLM2),
# and less than code that computes something else, which gives about 1.
_ALIKE_16_BIT = 0.3
_TOKENS = 16
_checked: set[tuple[type[PreTrainedModel], str, str]] = set()
"""Class, config and narrowed sublayers of the models that have passed `check_narrowing` in this
process.
"""


def check_narrowing(model: PreTrainedModel, parts: Sequence[BlockParts]) -> None:
    """Check that narrower layers compute what the layers compute with zeros.

    A model with the same code and the same config is checked once in a process.

    Args:
        model: the model. Its channels may be in any order.
        parts: the sublayers of each block that can be narrowed.

    Raises:
        ModelError: the results differ, or the model fails.
    """
    found = [(mlp is not None, attention is not None) for mlp, attention in parts]
    kind = type(model), model.config.to_json_string(use_diff=False), repr(found)
    if kind in _checked:
        return
    why = ""
    try:
        if not _agrees(model, parts):
            why = "the results differ"
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        why = one_line(error)
    if why:
        raise ModelError(
            f"the layers of {model.config.model_type!r} models cannot be narrowed: with fewer "
            f"channels or heads their code does not compute what it computes with zeros ({why}); "
            "drop whole blocks instead"
        )
    _checked.add(kind)


@torch.no_grad()
def _agrees(model: PreTrainedModel, parts: Sequence[BlockParts]) -> bool:
    """Return whether the logits of narrower layers are those of layers with zeros."""
    vocabulary = settings_of(model.config).vocab_size
    ids_1L = (torch.arange(1, _TOKENS + 1)[None] * 7919 % vocabulary).to(input_device(model))
    narrower: list[tuple[Part, int]] = []
    experts: list[tuple[NarrowableExperts, int]] = []
    for index, (mlp, attention) in enumerate(parts):
        # Neighbouring blocks get different widths, so that what they share shows.
        if isinstance(mlp, NarrowableExperts):
            experts.append((mlp, max(mlp.top_k, mlp.channels - 1 - index % 2)))
        elif mlp is not None:
            narrower.append((mlp, max(1, mlp.channels // 2 - index % 2)))
        if attention is not None:
            narrower.append((attention, max(1, attention.groups - 1 - index % 2)))
    with ExitStack() as stack:
        for part, count in narrower:
            inputs, output = views_of(part, count)
            for view in (*inputs, output):
                stack.enter_context(viewed(view))
        for few, count in experts:
            stack.enter_context(fewer_experts(few, count))
        found_LV = model(input_ids=ids_1L, use_cache=False).logits[0].float()
    with ExitStack() as stack:
        for part, count in narrower:
            hook = _zeros_from(columns_of(part, count))
            stack.callback(part.output.register_forward_pre_hook(hook).remove)
        for few, count in experts:
            stack.enter_context(masked_experts(few, count))
        wanted_LV = model(input_ids=ids_1L, use_cache=False).logits[0].float()
    difference = float((found_LV - wanted_LV).norm() / wanted_LV.norm())
    # This form of the test also fails for NaN.
    return difference <= _ALIKE.get(model.dtype, _ALIKE_16_BIT)


def _zeros_from(columns: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[torch.Tensor]]:
    """Make a hook that sets the inputs of a linear layer after the first ones to zero."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        masked = args[0].clone()
        masked[..., columns:] = 0.0
        return (masked,)

    return hook
