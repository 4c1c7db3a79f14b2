"""Landscapes that were measured completely: a table of all subsets of one size in a file."""

import json
from pathlib import Path

import numpy as np

from benchmarks.landscapes.landscape import Landscape
from prunesearch.algorithms.operators import Mask, Real
from prunesearch.errors import InputError
from prunesearch.space import SearchSpace


def table(path: Path) -> Landscape:
    """Read a landscape: {"n_layers", "k", "rows": [[dropped, value, ...], ...]}.

    The ranking ``good`` is the geometric mean of the losses of all subsets that drop a unit.

    Raises:
        InputError: the file is not a landscape, or some subsets are missing.
    """
    try:
        stored = json.loads(path.read_text())
        losses = {tuple(row[0]): float(row[1]) for row in stored["rows"]}
        space = SearchSpace(stored["n_layers"], stored["k"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{str(path)!r} is not a landscape ({error!r}): it needs n_layers, k and rows"
        ) from None
    if len(losses) != space.size:
        raise InputError(
            f"{str(path)!r} has {len(losses)} subsets of {space.size}: a landscape has all of them"
        )
    return of_losses(path.stem, space.n_layers, losses)


def of_losses(name: str, n: int, losses: dict[tuple[int, ...], float]) -> Landscape:
    """Return the landscape of a complete table.

    Args:
        name: name of the landscape.
        n: number of units.
        losses: loss of each subset of one size.
    """
    X_MD = np.zeros((len(losses), n), dtype=np.bool_)
    for X_D, dropped in zip(X_MD, losses, strict=True):
        X_D[list(dropped)] = True
    loss_M = np.array(list(losses.values()))
    stored = {X_D.tobytes(): float(value) for X_D, value in zip(X_MD, loss_M, strict=True)}

    def loss(X_MD: Mask) -> Real:
        return np.array([stored[X_D.tobytes()] for X_D in X_MD])

    log_M, k = np.log(loss_M), int(X_MD[0].sum())
    good_D = np.exp([log_M[X_MD[:, unit]].mean() for unit in range(n)])
    return Landscape(
        name,
        n,
        k,
        k,
        loss,
        partial=False,
        rankings={"good": good_D, "anti": 1 / good_D},
        optimum=float(loss_M.min()),
    )
