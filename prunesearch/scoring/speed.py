"""How fast this machine multiplies and reads, measured in a few seconds, for `scoring.plan`."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from prunesearch.model.arithmetic import wide_products
from prunesearch.model.checkpoint import Stored

_SECONDS = 0.5  # of each measurement
_WEIGHT_BYTES = 2**24  # a matrix that no cache near a core holds, as the weights of a block
_FILE_BYTES = 2**28
_PIECE = 2**24


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Attributes:
        flops: of matrix products, by name of the type: two a weight and token.
        disk: bytes read from the disk, the page cache cold.
        cached: bytes read from the page cache.
        to_device: bytes copied from host memory to the device; infinite where both are one.
        free: bytes of memory that are free, which the page cache may take.
    """

    device: str
    flops: dict[str, float]
    disk: float
    cached: float
    to_device: float
    free: int


def measure(device: torch.device, width: int, tokens: int, types: set[torch.dtype], stored: list[Stored]) -> Speed:
    """Measure products of `tokens` rows of `width`, and reading: of the checkpoint itself, or of a scratch file."""
    disk, cached = _reading(stored)
    return Speed(
        str(device),
        {str(t).removeprefix("torch."): _product(device, width, tokens, t) for t in types},
        disk,
        cached,
        _copying(device),
        os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache(),
    )


def _product(device: torch.device, width: int, tokens: int, dtype: torch.dtype) -> float:
    width = min(width, 4096)
    out = max(64, _WEIGHT_BYTES // (width * dtype.itemsize))
    x_TE = torch.ones(tokens, width, device=device, dtype=dtype)
    weights_OE = torch.ones(out, width, device=device, dtype=dtype)

    def multiply() -> None:
        torch.nn.functional.linear(x_TE, weights_OE)

    with wide_products():
        return 2 * tokens * width * out / _fastest(multiply, device)


def _copying(device: torch.device) -> float:
    if device.type == "cpu":
        return float("inf")
    host = torch.empty(_PIECE, dtype=torch.uint8).pin_memory()
    there = torch.empty(_PIECE, dtype=torch.uint8, device=device)
    return _PIECE / _fastest(lambda: there.copy_(host), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of the calls that fit `_SECONDS`; the first warms up."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _reading(stored: list[Stored]) -> tuple[float, float]:
    """Bytes a second from the disk and from the page cache."""
    if stored:
        largest = max({s.path for s in stored}, key=lambda path: path.stat().st_size)
        with largest.open("rb", buffering=0) as file:
            return _read_twice(file.fileno(), min(_FILE_BYTES, largest.stat().st_size))
    here = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None
    with tempfile.TemporaryFile(dir=here, buffering=0) as file:
        piece = os.urandom(_PIECE)
        for _ in range(_FILE_BYTES // _PIECE):
            file.write(piece)
        os.fsync(file.fileno())
        return _read_twice(file.fileno(), _FILE_BYTES)


def _read_twice(handle: int, size: int) -> tuple[float, float]:
    os.posix_fadvise(handle, 0, size, os.POSIX_FADV_DONTNEED)
    return _read(handle, size), _read(handle, size)


def _read(handle: int, size: int) -> float:
    buffer = bytearray(min(size, _PIECE))
    done, start = 0, time.perf_counter()
    while done < size and (count := os.preadv(handle, [buffer], done)):
        done += count
    return done / max(time.perf_counter() - start, 1e-9)


def _page_cache() -> int:
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Cached:")), 0)
