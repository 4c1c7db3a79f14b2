"""Checks the shape of results by the kind of their data.

Imported entries must pass these checks.
"""

import math
from collections.abc import Callable
from typing import TypeGuard

from prunesearch.cache.keys import CHAT, LATENCY
from prunesearch.runtime.json_values import Json

_LARGEST = 2**63 - 1  # largest integer that is accepted; no count is larger


def fits(kind: str, value: Json) -> bool:
    """Return whether a value may be a result of a kind of data.

    Args:
        kind: kind of the data. For a kind that is not known here, any table is accepted.
        value: any JSON value.
    """
    if kind == LATENCY:
        return _is_latency(value)
    if kind == CHAT:
        return isinstance(value, dict) and isinstance(value.get("text"), str)
    if kind == "calibration" or kind.startswith("calibration top "):
        return _is_list_of(value, _is_sums)
    if kind == "loglikelihood":
        return _is_list_of(value, _is_answer)
    if kind in ("generation", "generated text"):
        return _is_list_of(value, lambda row: isinstance(row, str))
    # A table: a list of rows, or a dict of them.
    rows = list(value.values()) if isinstance(value, dict) else value
    return _is_list_of(rows, _is_row)


def _is_list_of(value: Json, is_row: Callable[[Json], bool]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_row, value))


def _is_sums(row: Json) -> bool:
    """Return whether a row holds sums of KL and of log-likelihoods, and a number of tokens."""
    return isinstance(row, list) and len(row) == 3 and all(map(_is_number, row)) and row[2] > 0


def _is_answer(row: Json) -> bool:
    """Return whether a row holds a log-likelihood, and whether greedy decoding gives the same."""
    return (
        isinstance(row, list) and len(row) == 2 and _is_number(row[0]) and isinstance(row[1], bool)
    )


def _is_latency(value: Json) -> bool:
    if not isinstance(value, dict) or set(value) != {"block_ms", "attention_ms", "other_ms"}:
        return False
    if not _is_number(value["other_ms"]):
        return False
    return _is_times(value["block_ms"]) and _is_times(value["attention_ms"])


def _is_times(times: Json) -> bool:
    """Return whether a value is a list of times. A time may be None."""
    return isinstance(times, list) and all(time is None or _is_number(time) for time in times)


def _is_row(row: Json) -> bool:
    """Return whether a row of a table is a plain value, or a list of plain values."""
    if isinstance(row, list):
        return _is_list_of(row, _is_plain)
    return _is_plain(row)


def _is_plain(value: Json) -> bool:
    return isinstance(value, str | bool) or _is_number(value)


def _is_number(value: Json) -> TypeGuard[float]:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= _LARGEST
    return isinstance(value, float) and math.isfinite(value)
