"""Chooses how the vocabulary head is read on this machine, by a short measurement.

The measurement is made with the model's own head. It is kept in a file of the user's cache folder,
so that each machine measures a kind of head once. Results in all ways differ by less than 1e-5
nats, so the key of a result does not contain the choice.

Shapes: E hidden size, R rows, V vocabulary.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import TypeVar

import torch

from prunesearch.cache.machine_files import keep, read_kept
from prunesearch.errors import ScoringError
from prunesearch.execution.hardware import machine_name
from prunesearch.execution.head import HEAD_ROWS, Head
from prunesearch.execution.head_reading import HeadChoice, PickedTokens, read_head
from prunesearch.execution.logsumexp import COMPILER_ERRORS, EAGER, METHODS, LogsumexpMethod
from prunesearch.execution.logsumexp import logsumexp as logsumexp_of

_ROWS = {"cpu": (128, 512), "cuda": (1024, 4096)}
_COLUMNS: tuple[int | None, ...] = (2048, None, 8192)
_MEASURED_ROWS = {"cpu": 512, "cuda": 4096}
_SMALL = 2**23  # parameters of a head that is too small to be measured
_VERSION = 2  # of the measurement
_TURNS = 3
_CLEARLY = 0.95


T = TypeVar("T")
_chosen: dict[str, HeadChoice] = {}
"""Choices of this process, by name."""
_compiles_on_cpu = False


def use_compiler(allowed: bool) -> None:
    """Say whether a compiled logsumexp may be chosen on CPUs. On GPUs it always may.

    Compiling takes about ten seconds in each process, which pays in long searches only.
    """
    global _compiles_on_cpu
    _compiles_on_cpu = allowed


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
        known = _read(name)
        if known is None:
            rows = _MEASURED_ROWS.get(device.type, _MEASURED_ROWS["cpu"])
            if len(normed_RE) < min(rows, 256):
                return default
            known = measure_choice(head, normed_RE[:rows])
            keep(name, asdict(known))
        _chosen[name] = known
    return _chosen[name]


@torch.inference_mode()
def measure_choice(head: Head, normed_RE: torch.Tensor) -> HeadChoice:
    """Measure the ways to read a head, and return the fastest one.

    Args:
        head: the vocabulary head.
        normed_RE: hidden states after the final norm.
    """
    # First the way to compute a logsumexp.
    device = normed_RE.device
    logits_RV = head.logits(normed_RE[:128])
    methods = METHODS if _may_compile(device) else EAGER

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
    """Return the way whose work is fastest, by the best of some alternating calls.

    A way must be clearly faster than those before it, because other work of the machine disturbs
    the times. A way that this machine cannot compile, or for which its memory is short, is left
    out.
    """
    calls = [(way, work(way)) for way in ways]
    times: dict[T, float] = {}
    for turn in range(_TURNS + 1):
        for way, call in list(calls):
            try:
                seconds = _seconds(call, device)
            except (*COMPILER_ERRORS, ScoringError):
                calls.remove((way, call))
                continue
            # The first call warms up.
            if turn:
                times[way] = min(seconds, times.get(way, seconds))
    best = None
    for way, _ in calls:
        if best is None or times[way] < _CLEARLY * times[best]:
            best = way
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


def _may_compile(device: torch.device) -> bool:
    """Return whether a compiled logsumexp is among the ways."""
    return device.type == "cuda" or _compiles_on_cpu


def _name(shape: torch.Size, dtype: torch.dtype, device: torch.device, sliced: bool) -> str:
    """Return the name of a kind of head on this machine."""
    known = [_VERSION, machine_name(device), torch.__version__, str(dtype), list(shape), sliced]
    known.append(_may_compile(device))
    return "head-" + hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]


def _read(name: str) -> HeadChoice | None:
    """Return the choice of a file; None if it is missing or damaged."""
    stored = read_kept(name)
    if not isinstance(stored, dict):
        return None
    try:
        choice = HeadChoice(**stored)
        whole = choice.method in METHODS and choice.rows > 0
    except TypeError:
        return None
    return choice if whole else None
