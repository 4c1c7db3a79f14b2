"""Finds out whether a model's vocabulary head is linear: logits = s (W h + b).

The model's own code is asked, on a few rows. No list of names is needed, and a change of the logits
that is not linear, such as a soft cap, is found.

Shapes: E hidden size, R rows, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.models.model_configs import settings_of

_ROWS = 6
_LARGE = 1000.0
"""Largest logit of the rows that show a change of large logits, such as a soft cap."""
_ULPS = 4  # accepted difference to a linear head, in units of the last digit of the largest logit
_DIGEST_NUMBERS = 2**24  # numbers of the weight that are copied to the host at a time


@dataclass(frozen=True)
class LinearHead:
    """A vocabulary head whose logits are s (W h + b).

    Attributes:
        module: module that holds W and b.
        scale: s.
        convert: function that makes the model's logits of the module's output, equal to the bit.
            None: the model computes them in another way, which only rounds differently.
        sliced: True if the module computes nothing but `torch.nn.functional.linear`, so that a
            part of the vocabulary can be computed alone.
    """

    module: nn.Module
    scale: float
    convert: Callable[[torch.Tensor], torch.Tensor] | None
    sliced: bool

    @property
    def weight_VE(self) -> torch.Tensor:
        """The weight W."""
        weight: torch.Tensor = self.module.weight  # type: ignore[assignment]
        return weight

    @property
    def bias_V(self) -> torch.Tensor | None:
        """The bias b; None if there is none."""
        bias: torch.Tensor | None = getattr(self.module, "bias", None)
        return bias

    def digest(self) -> str:
        """Return the digest of W, b and s."""
        digest = hashlib.sha256(repr(self.scale).encode())
        parts = [self.weight_VE] if self.bias_V is None else [self.weight_VE, self.bias_V]
        for part in parts:
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            # Copy a large weight in slices, so that no second copy of it is in memory.
            for piece in torch.split(part.detach().flatten(), _DIGEST_NUMBERS):
                digest.update(piece.contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@torch.inference_mode()
def linear_head_of(
    model: PreTrainedModel, own_logits: Callable[[torch.Tensor], torch.Tensor]
) -> LinearHead | None:
    """Return the model's vocabulary head if it is linear; else None.

    Args:
        model: the model.
        own_logits: function that returns the logits that the model's own code computes of rows of
            shape (R, E).
    """
    module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Module) or not isinstance(weight, torch.Tensor):
        return None
    bias = getattr(module, "bias", None)
    if weight.ndim != 2 or weight.is_meta or not weight.is_floating_point():
        return None
    if bias is not None and not bool(bias.isfinite().all()):
        return None
    # Compare rows of natural size, and rows with large logits.
    generator = torch.Generator().manual_seed(0)
    rows_RE = torch.randn(_ROWS, weight.shape[1], generator=generator).to(weight)
    plain_RV = module(rows_RE)
    if plain_RV.shape != (_ROWS, weight.shape[0]):
        return None
    large_RE = rows_RE * (_LARGE / plain_RV.abs().amax().clamp_min(1e-3))
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for some_RE in (rows_RE, large_RE):
        own_RV, found_RV = own_logits(some_RE), module(some_RE)
        if own_RV.shape != found_RV.shape:
            return None
        outputs.append((own_RV, found_RV))
    # The scale is the least-squares solution of own = s found.
    own_RV, found_RV = outputs[0][0].double(), outputs[0][1].double()
    scale = float((own_RV * found_RV).sum() / found_RV.square().sum())
    for config_scale in _settings_near(model.config, scale):
        for convert in _conversions(config_scale, outputs[0][0].dtype):
            if all(torch.equal(own, convert(found)) for own, found in outputs):
                return LinearHead(module, config_scale.value, convert, _is_sliced(module, rows_RE))
    for own_RV, found_RV in outputs:
        accepted = _ULPS * torch.finfo(found_RV.dtype).eps * own_RV.double().abs().amax()
        difference = (own_RV.double() - scale * found_RV.double()).abs().amax()
        if not bool(difference <= accepted):  # NaN is a difference, too
            return None
    return LinearHead(module, scale, None, sliced=False)


def _is_sliced(module: nn.Module, rows_RE: torch.Tensor) -> bool:
    """Return whether a module is a plain linear layer, whose code nothing has replaced."""
    plain = type(module).forward is nn.Linear.forward and "forward" not in vars(module)
    if not isinstance(module, nn.Linear) or not plain:
        return False
    plain_RV = nn.functional.linear(rows_RE, module.weight, module.bias)
    return torch.equal(module(rows_RE), plain_RV)


@dataclass(frozen=True)
class _Setting:
    """A scale of the logits: a number of the config, or its reciprocal."""

    number: float
    divides: bool = False

    @property
    def value(self) -> float:
        """The factor."""
        return 1 / self.number if self.divides else self.number


def _settings_near(config: PretrainedConfig, scale: float) -> Iterator[_Setting]:
    """Yield the factors that are about as large as a measured one: 1, and numbers of the config."""
    numbers: list[Any] = [1.0, *settings_of(config).to_dict().values()]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
            continue
        for setting in (_Setting(number), _Setting(number, divides=True)):
            if abs(setting.value - scale) <= 0.01 * abs(scale):
                yield setting


def _conversions(
    setting: _Setting, dtype: torch.dtype
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield the ways in which a model may scale its logits and convert them to a type."""

    def scaled(logits: torch.Tensor) -> torch.Tensor:
        if setting.number == 1:
            return logits
        return logits / setting.number if setting.divides else logits * setting.number

    yield lambda logits: scaled(logits).to(dtype)
    yield lambda logits: scaled(logits.to(dtype))
