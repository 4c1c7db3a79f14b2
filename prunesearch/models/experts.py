"""Blocks with experts, whose experts can be removed one by one.

The experts of a block are stacked in tensors with one part for each expert, and the router has one
row for each. So the first experts of an order are a prefix of each tensor. A router that has fewer
rows chooses among the experts that are left: it computes what a router computes whose logits of the
removed experts are minus infinity.

Every token uses the same number of experts (`top_k`), so at least as many must be kept.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from prunesearch.models.structure import architecture_of, parts_of
from prunesearch.runtime.patching import replaced

_TYPES = frozenset({"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""Types whose routers take the best of a softmax over all experts, and nothing else."""
_COUNTS = ("num_experts", "num_local_experts", "out_features")
"""Attributes in which the modules keep the number of experts."""


@dataclass(frozen=True)
class NarrowableExperts:
    """The experts of a block and their router.

    Attributes:
        experts: module with the tensors of all experts.
        router: module that chooses the experts of each token.
        top_k: number of experts that each token uses.
    """

    experts: nn.Module
    router: nn.Module
    top_k: int

    @property
    def channels(self) -> int:
        """Number of experts now."""
        return len(self.parameters[0][2])

    @property
    def channel_params(self) -> int:
        """Number of parameters of one expert, with its row of the router."""
        return sum(parameter[0].numel() for _, _, parameter in self.parameters)

    @property
    def channel_weights(self) -> int:
        """Number of weights of one expert. Experts count with their biases, as they have few."""
        return self.channel_params

    @property
    def parameters(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Return the parameters with a part for each expert: module, name in it, and value."""
        found = []
        for module in (self.experts, self.router):
            for name, parameter in module.named_parameters(recurse=False):
                found.append((module, name, parameter))
        return found


def experts_of(model: PreTrainedModel, block: nn.Module) -> NarrowableExperts | None:
    """Return the experts of a block; None if it has none that can be removed one by one."""
    sublayer = architecture_of(model.config).mlp
    if sublayer is None or model.config.model_type not in _TYPES:
        return None
    for module in parts_of(block, sublayer.modules):
        experts, router = getattr(module, "experts", None), getattr(module, "gate", None)
        top_k = getattr(router, "top_k", None)
        if not isinstance(experts, nn.Module) or not isinstance(router, nn.Module):
            continue
        down, rows = getattr(experts, "down_proj", None), getattr(router, "weight", None)
        if not isinstance(down, nn.Parameter) or not isinstance(rows, nn.Parameter):
            continue
        # Every parameter must have a part for each expert.
        found = [*experts.parameters(), *router.parameters()]
        stacked = all(len(parameter) == len(rows) for parameter in found)
        if isinstance(top_k, int) and down.ndim == 3 and stacked and top_k <= len(rows):
            return NarrowableExperts(experts, router, top_k)
    return None


@torch.no_grad()
def permute_experts(part: NarrowableExperts, order: torch.Tensor) -> None:
    """Permute the experts of a block in place."""
    for _, _, parameter in part.parameters:
        parameter.copy_(parameter[order.to(parameter.device)])


@contextmanager
def fewer_experts(part: NarrowableExperts, count: int) -> Iterator[None]:
    """Use the first experts only inside the ``with`` block. No weight is copied.

    Args:
        part: the experts.
        count: number of experts that are kept, at least `top_k`.
    """
    # The code reads the number of experts from attributes, the rest from the tensors.
    before = part.parameters
    with ExitStack() as stack:
        for module, name in _counts(part):
            stack.enter_context(replaced(module, name, count))
        try:
            for module, name, parameter in before:
                view = nn.Parameter(parameter.detach()[:count], requires_grad=False)
                setattr(module, name, view)
            yield
        finally:
            for module, name, parameter in before:
                setattr(module, name, parameter)


def keep_experts(part: NarrowableExperts, count: int) -> None:
    """Remove all experts but the first ones for good. What is left shares no memory with them."""
    # The attributes are found by the old number, so they are listed first.
    counts = list(_counts(part))
    for module, name, parameter in part.parameters:
        kept = nn.Parameter(parameter.detach()[:count].clone(), parameter.requires_grad)
        setattr(module, name, kept)
    for module, name in counts:
        setattr(module, name, count)


def _counts(part: NarrowableExperts) -> Iterator[tuple[nn.Module, str]]:
    """Yield the attributes in which the modules keep the number of experts."""
    for module in (part.experts, part.router):
        for name in _COUNTS:
            if getattr(module, name, None) == part.channels:
                yield module, name


@contextmanager
def masked_experts(part: NarrowableExperts, count: int) -> Iterator[None]:
    """Keep the router from choosing experts after the first ones inside the ``with`` block.

    Their logits are minus infinity. All weights stay.
    """
    plain = functional.linear

    def masked(
        states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = plain(states, weight, bias)
        if weight is part.router.weight:
            logits = logits.clone()
            logits[..., count:] = float("-inf")
        return logits

    with replaced(functional, "linear", masked):
        yield
