"""Sizes, spans of time and counts as people write them."""

import re

from prunesearch.errors import InputError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_size(text: str, option: str) -> int:
    """Read a size in bytes: ``512MiB`` and ``1.5G`` as well as plain bytes.

    Args:
        option: the command-line option it was given with, for the message.

    Raises:
        InputError: it cannot be read.
    """
    number, unit = _read(text, r"([KMGT]i?)?B?", option, "give bytes, or write 100MiB or 1.5GiB")
    base = 1024 if unit.endswith("I") else 1000
    return int(number * base ** (" KMGT".index(unit[0]) if unit else 0))


def parse_duration(text: str, option: str) -> float:
    """Read a span of time in seconds: ``90d``, ``12h``, ``30m``, ``45s``; see `parse_size`."""
    number, unit = _read(text, "([smhdw])", option, "write 90d, 12h or 30m")
    return number * _SECONDS[unit.lower()]


def noun_for(count: float, one: str, many: str = "") -> str:
    """Return the words that go with a count, such as ``trial`` for 1 and ``trials`` for 2.

    Args:
        count: the count. It is not part of what is returned.
        one: words for a count of 1, such as ``entry is``.
        many: words for other counts, such as ``entries are``. Default: `one` with an s.
    """
    return one if count == 1 else many or one + "s"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun: ``1 trial``, ``2,000 trials``; see `noun_for`."""
    return f"{count:,} {noun_for(count, one, many)}"


def _read(text: str, unit: str, option: str, how: str) -> tuple[float, str]:
    match = re.fullmatch(rf"(\d{{1,15}}(?:\.\d+)?)\s*{unit}", text.strip(), re.IGNORECASE)
    if match is None:
        raise InputError(f"{option} {text!r} cannot be read: {how}")
    return float(match[1]), (match[2] or "").upper()
