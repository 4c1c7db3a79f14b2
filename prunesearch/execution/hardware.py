"""Measures in a few seconds how fast this machine multiplies and reads, for
`execution.memory_plan`.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.safetensors_files import Stored
from prunesearch.runtime.json_values import json_as

_SECONDS = 0.5  # time of each measurement
_WEIGHT_BYTES = (
    2**24
)  # a matrix that is too large for the caches of a core, as a block's weights are
_FILE_BYTES = 2**28
_PIECE = 2**24


@dataclass(frozen=True)
class Speed:
    """Speed of a machine, per second.

    Attributes:
        device: device of the products.
        flops: operations of matrix products by type name. A weight and a token make two operations.
        disk: bytes read from the disk, without the page cache.
        cached: bytes read from the page cache.
        to_device: bytes copied from host memory to the device. Infinite if they are the same
            memory.
        free: bytes of memory that are free for the page cache, which is an amount and not a speed.
    """

    device: str
    flops: dict[str, float]
    disk: float
    cached: float
    to_device: float = field(metadata=json_as(omit_none=True))
    free: int


def machine_name(device: torch.device) -> str:
    """Return the name of a device's hardware, and the number of threads of a CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = ""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    for line in lines:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    name = name or platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def measure(
    device: torch.device, width: int, tokens: int, types: set[torch.dtype], stored: list[Stored]
) -> Speed:
    """Measure a device and the disk.

    Args:
        device: device of the products.
        width: columns of the matrices.
        tokens: rows of the activations.
        types: types of the numbers.
        stored: tensors of the checkpoint, whose file is read. If it is empty, a scratch file is
            read.
    """
    disk, cached = _reading(stored)
    flops = {}
    for dtype in types:
        flops[str(dtype).removeprefix("torch.")] = _product(device, width, tokens, dtype)
    to_device = _copying(device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache()
    return Speed(str(device), flops, disk, cached, to_device, free)


def _product(device: torch.device, width: int, tokens: int, dtype: torch.dtype) -> float:
    """Return the operations per second of a matrix product."""
    width = min(width, 4096)
    out = max(64, _WEIGHT_BYTES // (width * dtype.itemsize))
    x_TE = torch.ones(tokens, width, device=device, dtype=dtype)
    weights_OE = torch.ones(out, width, device=device, dtype=dtype)

    def multiply() -> None:
        torch.nn.functional.linear(x_TE, weights_OE)

    with wide_products():
        return 2 * tokens * width * out / _fastest(multiply, device)


def _copying(device: torch.device) -> float:
    """Return the bytes per second that are copied from host memory to the device."""
    if device.type == "cpu":
        return float("inf")
    host = torch.empty(_PIECE, dtype=torch.uint8).pin_memory()
    there = torch.empty(_PIECE, dtype=torch.uint8, device=device)
    return _PIECE / _fastest(lambda: there.copy_(host), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Call a function for `_SECONDS`, and return the seconds of the fastest call.

    The first call warms up and does not count.
    """
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
    """Return the bytes per second that are read from the disk and from the page cache."""
    # Read the largest file of the checkpoint.
    if stored:
        largest = max({s.path for s in stored}, key=lambda path: path.stat().st_size)
        with largest.open("rb", buffering=0) as file:
            return _read_twice(file.fileno(), min(_FILE_BYTES, largest.stat().st_size))
    # Without a checkpoint, write a scratch file and read it.
    here = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None
    with tempfile.TemporaryFile(dir=here, buffering=0) as file:
        piece = os.urandom(_PIECE)
        for _ in range(_FILE_BYTES // _PIECE):
            file.write(piece)
        os.fsync(file.fileno())
        return _read_twice(file.fileno(), _FILE_BYTES)


def _read_twice(handle: int, size: int) -> tuple[float, float]:
    """Read a file without the page cache and then from it; returns the bytes per second of each."""
    os.posix_fadvise(handle, 0, size, os.POSIX_FADV_DONTNEED)
    return _read(handle, size), _read(handle, size)


def _read(handle: int, size: int) -> float:
    """Read a file from its start; returns the bytes per second."""
    buffer = bytearray(min(size, _PIECE))
    done, start = 0, time.perf_counter()
    while done < size and (count := os.preadv(handle, [buffer], done)):
        done += count
    return done / max(time.perf_counter() - start, 1e-9)


def _page_cache() -> int:
    """Return the bytes of the page cache; 0 if they are not known."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return 0
    for line in info.read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    return 0
