"""What results look like, by the kind of data that they are of: for entries that come from outside."""

import math
from collections.abc import Callable
from typing import Any

from prunesearch.store.keys import LATENCY

_LARGEST = 2**63 - 1  # whole numbers beyond it are none that was counted


def fits(kind: str, value: Any) -> bool:  # noqa: ANN401 (any JSON value)
    """Whether a value may be the result of a key of this kind; of kinds that are not known here, any table is taken."""
    if kind == LATENCY:
        return isinstance(value, dict) and set(value) == {"block_ms", "attention_ms", "other_ms"} and _is_latency(value)
    if kind == "calibration" or kind.startswith("calibration top "):
        return _is_list_of(value, _is_sums)
    if kind == "loglikelihood":
        return _is_list_of(value, _is_answer)
    if kind in ("generation", "generated text"):
        return _is_list_of(value, lambda row: isinstance(row, str))
    rows = list(value.values()) if isinstance(value, dict) else value
    return _is_list_of(rows, lambda row: _is_list_of(row, _is_plain) if isinstance(row, list) else _is_plain(row))


def _is_list_of(value: object, is_row: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_row, value))


def _is_sums(row: object) -> bool:
    """Sums of KL and of negative log-likelihoods, and how many tokens they are over."""
    return isinstance(row, list) and len(row) == 3 and all(map(_is_number, row)) and row[2] > 0


def _is_answer(row: object) -> bool:
    """A log-likelihood, and whether greedy decoding gives the same."""
    return isinstance(row, list) and len(row) == 2 and _is_number(row[0]) and isinstance(row[1], bool)


def _is_latency(value: dict[str, Any]) -> bool:
    lists = (value["block_ms"], value["attention_ms"])
    return _is_number(value["other_ms"]) and all(
        isinstance(times, list) and all(time is None or _is_number(time) for time in times) for times in lists
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, str | bool) or _is_number(value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= _LARGEST
    return isinstance(value, float) and math.isfinite(value)
