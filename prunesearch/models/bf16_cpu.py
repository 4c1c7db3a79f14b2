"""16-bit matrix products on CPUs that have no instructions for them."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prunesearch.runtime.patching import replaced

_NARROW = (torch.bfloat16, torch.float16)
# With fewer rows, reading the weights takes longer than multiplying.
_FEW_ROWS = 16
# A weight with at least this many elements, such as a vocabulary head, is widened once for several
# products in a row.
_KEPT = 2**24


def widens() -> bool:
    """Return whether 16-bit products are faster in float32 on this machine: on x86 without
    AVX-512.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@contextmanager
def wide_products() -> Iterator[None]:
    """Compute 16-bit linear layers in float32 inside the ``with`` block, if that is faster on this
    machine.

    The operands are the 16-bit ones. The sum is taken in float32 and rounded once, as the
    instructions of other CPUs do it. Only the order of summation differs. On 2 cores with AVX2 a
    product of bfloat16 matrices runs at 140 instead of 17 GFLOP/s.
    """
    if not widens():
        yield
        return
    with replaced(nn.functional, "linear", _Linear(nn.functional.linear)):
        yield


class _Linear:
    """A replacement of `torch.nn.functional.linear` that computes in float32 where that is
    faster.
    """

    def __init__(self, narrow: Callable[..., torch.Tensor]) -> None:
        self._narrow = narrow
        self._kept: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        plain = (
            x.dtype not in _NARROW or x.device.type != "cpu" or x.numel() < _FEW_ROWS * x.shape[-1]
        )
        if plain or weight.dtype != x.dtype:
            return self._narrow(x, weight, bias)
        wide_bias = None if bias is None else bias.float()
        wide = self._narrow(x.float(), self._widened(weight), wide_bias)
        return wide.to(x.dtype)

    def _widened(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight in float32.

        The latest large weight is kept, because it may be used again.
        """
        # A compiler sees the weight as one of many that its code is used for.
        if torch.compiler.is_compiling() or weight.numel() < _KEPT or weight.is_inference():
            return weight.float()
        if self._kept is None or self._kept[0] is not weight or self._kept[1] != weight._version:
            # Free the old weight before the new one takes memory.
            self._kept = None
            self._kept = (weight, weight._version, weight.float())
        return self._kept[2]
