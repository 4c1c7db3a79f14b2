"""What the texts of candidates drop, unit by unit.

A trial stores its candidate as a text, such as ``3,7a``. Reports need numbers: how much of each
unit of the search a candidate drops.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"(\d+)([am]?)(?::(\d+)/(\d+))?")
"""A block or a sublayer that is dropped, or a block with the widths that it keeps."""
_UNIT = re.compile(r"(\d+)(?:-(\d+))?([am]?)")


def dropped_shares(
    dropped: Sequence[str], units: Sequence[str], sizes: Sequence[int]
) -> NDArray[np.float64]:
    """Return how much of each unit candidates drop, from 0 to 1.

    Args:
        dropped: texts of the candidates.
        units: units of the search.
        sizes: for each unit 1, or the number of channels or KV groups that it has.

    Returns:
        Array with a row for each candidate and a column for each unit.
    """
    places = _places(units)
    shares_CU = np.zeros((len(dropped), len(units)))
    for row, text in enumerate(dropped):
        for block, kind, left in _words(text):
            # If two words name the same unit, the larger share counts.
            for unit, share in _shares(places, block, kind, left, sizes):
                shares_CU[row, unit] = max(shares_CU[row, unit], share)
    return shares_CU


def _words(dropped: str) -> list[tuple[int, str, tuple[int, int] | None]]:
    """Return the words of a dropped text: block, half of it, and the widths that it keeps."""
    found = []
    for word in dropped.split(","):
        match = _WORD.fullmatch(word.strip())
        if match is None:
            continue  # "none", or a text of another version
        left = None if match[3] is None else (int(match[3]), int(match[4]))
        found.append((int(match[1]), match[2], left))
    return found


def _places(units: Sequence[str]) -> dict[tuple[int, str], int]:
    """Return the place of each unit by its first block and its half."""
    found = {}
    for place, unit in enumerate(units):
        match = _UNIT.fullmatch(unit)
        if match is not None:
            found[int(match[1]), match[3]] = place
    return found


def _shares(
    places: Mapping[tuple[int, str], int],
    block: int,
    kind: str,
    left: tuple[int, int] | None,
    sizes: Sequence[int],
) -> list[tuple[int, float]]:
    """Return the places of the units that a word drops, and the shares that it drops of them."""
    found = []
    # A whole block drops both of its halves.
    for half, kept in (("", 0), ("m", left[0] if left else 0), ("a", left[1] if left else 0)):
        place = places.get((block, half))
        if place is not None and kind in ("", half):
            found.append((place, 1.0 - kept / sizes[place]))
    return found


def order_of_unit(unit: str) -> tuple[int, str]:
    """Return the sorting key of a unit: its first block, then its attention before its MLP."""
    match = _UNIT.fullmatch(unit)
    return (int(match[1]), match[3]) if match else (0, unit)


def block_count(units: Sequence[str]) -> int:
    """Return the number of blocks up to the last one that a unit names."""
    last = 0
    for unit in units:
        match = _UNIT.fullmatch(unit)
        if match is not None:
            last = max(last, int(match[2] or match[1]) + 1)
    return last
