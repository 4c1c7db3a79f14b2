"""Logsumexp of rows of logits in float32, in several ways. The fastest one depends on the machine.

Logits of 16 bits are converted block by block, so that no float32 copy of all of them is made. The
blocks stay in the cache of the processor.

Shapes: R rows, V vocabulary or a part of it.
"""

import functools
import subprocess
from collections.abc import Callable
from typing import Literal, get_args

import torch

LogsumexpMethod = Literal["softmax", "exp", "library", "compiled"]
"""The ways, see the functions of this module."""
EAGER: tuple[LogsumexpMethod, ...] = ("softmax", "exp", "library")
"""The ways that need no compiler."""
METHODS: tuple[LogsumexpMethod, ...] = get_args(LogsumexpMethod)
COMPILER_ERRORS = (RuntimeError, ImportError, OSError, subprocess.SubprocessError)
"""Errors of a machine on which torch cannot compile."""

_CPU_NUMBERS, _CUDA_NUMBERS = 2**18, 2**26
"""Numbers of a block: 1 MiB of float32 for each thread of a CPU, 256 MiB on a GPU."""


def logsumexp(logits_RV: torch.Tensor, method: LogsumexpMethod) -> torch.Tensor:
    """Return the logsumexp of each row in float32, shape (R,). The logits are not changed.

    Args:
        logits_RV: logits of any floating-point type.
        method: the way.
    """
    if method == "compiled":
        compiled_R: torch.Tensor = _compiled()(logits_RV)
        return compiled_R
    if logits_RV.device.type == "cpu":
        numbers = _CPU_NUMBERS * torch.get_num_threads()
    else:
        numbers = _CUDA_NUMBERS
    step = max(1, numbers // logits_RV.shape[1])
    block_RV = torch.empty(
        min(step, len(logits_RV)), logits_RV.shape[1], dtype=torch.float32, device=logits_RV.device
    )
    of_block = _OF_BLOCK[method]
    parts = []
    for rows_RV in torch.split(logits_RV, step):
        copy_RV = block_RV[: len(rows_RV)]
        copy_RV.copy_(rows_RV)
        parts.append(of_block(copy_RV))
    return torch.cat(parts)


def _softmax(block_RV: torch.Tensor) -> torch.Tensor:
    """Take the largest log-probability from the largest logit. The block is overwritten.

    `log_softmax` is one fused kernel. All logits of a row give the same difference; the largest one
    loses the fewest digits.
    """
    largest_R = block_RV.amax(-1)
    torch.log_softmax(block_RV, -1, out=block_RV)
    return largest_R - block_RV.amax(-1)


def _exp(block_RV: torch.Tensor) -> torch.Tensor:
    """Compute m + log(sum(exp(z - m))) in place, with m the largest logit."""
    largest_R = block_RV.amax(-1)
    block_RV.sub_(largest_R[:, None]).exp_()
    return block_RV.sum(-1).log_().add_(largest_R)


def _library(block_RV: torch.Tensor) -> torch.Tensor:
    """Call torch's own function."""
    return torch.logsumexp(block_RV, -1)


_OF_BLOCK: dict[LogsumexpMethod, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": _softmax,
    "exp": _exp,
    "library": _library,
}


@functools.cache
def _compiled() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the compiled function: it reads the logits in their own type, and writes R numbers."""

    def of_rows(logits_RV: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(logits_RV.float(), -1)

    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(of_rows, dynamic=True)
    return compiled
