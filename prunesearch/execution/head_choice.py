"""Chooses how the vocabulary head is read on this machine, by a short measurement.

The measurement is made with the model's own head. It is kept in a file of the user's cache folder,
so that each machine measures a kind of head once. Results in all ways differ by less than 1e-5
nats, so the key of a result does not contain the choice.

Shapes: E hidden size, R rows, V vocabulary.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch

from prunesearch.cache.files import replaced_file
from prunesearch.execution.hardware import machine_name
from prunesearch.execution.head import HEAD_ROWS, Head
from prunesearch.execution.head_reading import HeadChoice, PickedTokens, read_head
from prunesearch.execution.logsumexp import COMPILER_ERRORS, EAGER, METHODS, LogsumexpMethod
from prunesearch.execution.logsumexp import logsumexp as logsumexp_of

_ROWS = {"cpu": (128, 512), "cuda": (1024, 4096)}
_COLUMNS: tuple[int | None, ...] = (None, 2048, 8192)
_MEASURED_ROWS = {"cpu": 256, "cuda": 4096}
_SMALL = 2**23  # parameters of a head that is too small to be measured
_VERSION = 1  # of the measurement


T = TypeVar("T")
_chosen: dict[str, HeadChoice] = {}
"""Choices of this process, by name."""


def choice_for(head: Head, normed_RE: torch.Tensor) -> HeadChoice:
    """Return the fastest way to read a head on this machine.

    Small heads, and the first calls with few rows, are not measured.

    Args:
        head: the vocabulary head.
        normed_RE: hidden states after the final norm, which a measurement uses.
    """
    device, linear = normed_RE.device, head.linear
    default = HeadChoice(HEAD_ROWS.get(device.type, HEAD_ROWS["cpu"]), None, "softmax")
    if linear is None or linear.weight_VE.numel() < _SMALL:
        return default
    # Look among the choices of this process, and then in the file.
    name = _name(linear.weight_VE.shape, normed_RE.dtype, device, linear.sliced)
    if name not in _chosen:
        path = _folder() / f"{name}.json"
        known = _read(path)
        if known is None:
            rows = _MEASURED_ROWS.get(device.type, _MEASURED_ROWS["cpu"])
            if len(normed_RE) < min(rows, 256):
                return default
            known = measure_choice(head, normed_RE[:rows])
            _keep(path, known)
        _chosen[name] = known
    return _chosen[name]


@torch.inference_mode()
def measure_choice(head: Head, normed_RE: torch.Tensor) -> HeadChoice:
    """Measure the ways to read a head, and return the fastest one.

    Args:
        head: the vocabulary head.
        normed_RE: hidden states after the final norm.
    """
    # First the way to compute a logsumexp. Compilers take seconds, which pays on GPUs only.
    device = normed_RE.device
    logits_RV = head.logits(normed_RE[:128])
    methods = METHODS if device.type == "cuda" else EAGER

    def sums(method: LogsumexpMethod) -> Callable[[], object]:
        return lambda: logsumexp_of(logits_RV, method)

    method = _fastest(methods, sums, device) or "softmax"
    # Then the rows of a product, and the columns of a tile.
    default_rows = HEAD_ROWS.get(device.type, HEAD_ROWS["cpu"])
    best = HeadChoice(default_rows, None, method)

    def reading(choice: HeadChoice) -> Callable[[], object]:
        index_R1 = torch.zeros(len(normed_RE), 1, dtype=torch.int64, device=device)
        picked = PickedTokens(index_R1)
        return lambda: read_head(head, normed_RE, picked, choice)

    by_rows = [replace(best, rows=rows) for rows in _ROWS.get(device.type, (default_rows,))]
    best = _fastest(by_rows, reading, device) or best
    if device.type == "cpu" and head.linear is not None and head.linear.sliced:
        by_columns = [replace(best, columns=columns) for columns in _COLUMNS]
        best = _fastest(by_columns, reading, device) or best
    return best


def _fastest(
    ways: Iterable[T], work: Callable[[T], Callable[[], object]], device: torch.device
) -> T | None:
    """Return the way whose work is fastest, the better of two calls after one that warms up.

    A way that this machine cannot compile is left out.
    """
    best, least = None, float("inf")
    for way in ways:
        call = work(way)
        try:
            times = [_seconds(call, device) for _ in range(3)]
        except COMPILER_ERRORS:
            continue
        if min(times[1:]) < least:
            best, least = way, min(times[1:])
    return best


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _name(shape: torch.Size, dtype: torch.dtype, device: torch.device, sliced: bool) -> str:
    """Return the name of a kind of head on this machine."""
    known = [_VERSION, machine_name(device), torch.__version__, str(dtype), list(shape), sliced]
    return "head-" + hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]


def _folder() -> Path:
    """Return the folder of measurements of this machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "prunesearch"


def _read(path: Path) -> HeadChoice | None:
    """Return the choice of a file; None if it is missing or damaged."""
    try:
        stored = json.loads(path.read_text())
        choice = HeadChoice(**stored)
    except (OSError, ValueError, TypeError):
        return None
    return choice if choice.method in METHODS and choice.rows > 0 else None


def _keep(path: Path, choice: HeadChoice) -> None:
    """Write a choice to its file. Without a folder that can be written, it is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as scratch:
            scratch.write_text(json.dumps(asdict(choice)))
    except OSError:
        return
