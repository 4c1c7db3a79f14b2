"""The landscapes by name.

A name says what a landscape is, such as ``layer80-k20-far``: `PATTERNS` has all of them. So
other sizes than those in `NAMES` need no code.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from benchmarks.landscapes.accuracy import accuracy
from benchmarks.landscapes.landscape import Landscape
from benchmarks.landscapes.layered import layered, sublayers, up_to
from benchmarks.landscapes.nk import Neighbours, nk
from benchmarks.landscapes.qubo import qubo
from benchmarks.landscapes.runs import runs
from benchmarks.landscapes.tables import table
from benchmarks.landscapes.traps import traps
from prunesearch.errors import InputError, UnknownNameError

NAMES = (
    "layer80-k10",
    "layer80-k20",
    "layer80-k40",
    "layer80-k20-far",
    "layer30-k8-far",
    "runs80-k20",
    "runs30-k8",
    "nk40-k16-adj4",
    "nk40-k16-rand3",
    "trap10x4-k20",
    "trap10x4-k20-scat",
    "qubo60-k15",
    "acc200-n32-k8",
    "acc200-n32-k8-floor",
    "upto30-k12",
    "sub60-k15",
)
"""The landscapes that the benchmarks use."""
FAR = 0.12
"""Standard deviation of the effects of far pairs in the landscapes whose name ends with ``-far``."""
Maker = Callable[[re.Match[str], int], Landscape]
"""Function from a matching name and a seed to a landscape."""


def _layered(name: re.Match[str], seed: int) -> Landscape:
    return layered(int(name[1]), int(name[2]), seed, far=FAR if name[3] else 0.0)


def _runs(name: re.Match[str], seed: int) -> Landscape:
    return runs(int(name[1]), int(name[2]), seed)


def _nk(name: re.Match[str], seed: int) -> Landscape:
    neighbours: Neighbours = "adj" if name[3] == "adj" else "rand"
    return nk(int(name[1]), int(name[2]), int(name[4]), seed, neighbours)


def _traps(name: re.Match[str], seed: int) -> Landscape:
    return traps(int(name[1]), int(name[2]), int(name[3]), seed, scattered=bool(name[4]))


def _qubo(name: re.Match[str], seed: int) -> Landscape:
    return qubo(int(name[1]), int(name[2]), seed)


def _accuracy(name: re.Match[str], seed: int) -> Landscape:
    return accuracy(int(name[2]), int(name[3]), int(name[1]), seed, floor=bool(name[4]))


def _up_to(name: re.Match[str], seed: int) -> Landscape:
    return up_to(int(name[1]), int(name[2]), seed)


def _sublayers(name: re.Match[str], seed: int) -> Landscape:
    return sublayers(int(name[1]), int(name[2]), seed)


PATTERNS: dict[str, Maker] = {
    r"layer(\d+)-k(\d+)(-far)?": _layered,
    r"runs(\d+)-k(\d+)": _runs,
    r"nk(\d+)-k(\d+)-(adj|rand)(\d+)": _nk,
    r"trap(\d+)x(\d+)-k(\d+)(-scat)?": _traps,
    r"qubo(\d+)-k(\d+)": _qubo,
    r"acc(\d+)-n(\d+)-k(\d+)(-floor)?": _accuracy,
    r"upto(\d+)-k(\d+)": _up_to,
    r"sub(\d+)-k(\d+)": _sublayers,
}
"""The maker of each pattern of names."""


@cache
def landscape(name: str, seed: int) -> Landscape:
    """Return a landscape by its name. It is made once per process.

    Args:
        name: a name that one of the `PATTERNS` matches, or the path of a table, which ends with ``.json``.
        seed: seed of the landscape; a table has none.

    Raises:
        InputError: the landscape is unknown, or it cannot have this size.
    """
    if name.endswith(".json"):
        return table(Path(name))
    for pattern, maker in PATTERNS.items():
        match = re.fullmatch(pattern, name)
        if match is not None:
            made = maker(match, seed)
            if not 0 < made.k < made.n:
                raise InputError(f"landscape {name!r} chooses {made.k} of {made.n} units")
            return made
    raise UnknownNameError("landscape", name, NAMES)
