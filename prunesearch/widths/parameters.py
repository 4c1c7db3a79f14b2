"""The parameters of Optuna trials that stand for a candidate: the widths that are kept."""

from collections.abc import Mapping, Sequence

import numpy as np

from prunesearch.errors import InputError
from prunesearch.widths.genes import Gene, Levels


def param_ranges(
    genes: Sequence[Gene], limit_G: Levels, n_layers: int
) -> dict[str, tuple[int, int, int]]:
    """Return the smallest value, the largest value and the step of each parameter, by name.

    Args:
        genes: the genes, by block.
        limit_G: largest level of each gene.
        n_layers: number of blocks of the model.
    """
    digits = max(2, len(str(n_layers - 1)))
    ranges = {}
    for gene, limit in zip(genes, limit_G.tolist(), strict=True):
        name = f"{'kv' if gene.attention else 'mlp'}_{gene.block:0{digits}d}"
        ranges[name] = (gene.full - limit * gene.step, gene.full, gene.step)
    return ranges


def encode(names: Sequence[str], genes: Sequence[Gene], levels_G: Levels) -> dict[str, int]:
    """Return the parameters of levels."""
    params = {}
    for name, gene, level in zip(names, genes, levels_G.tolist(), strict=True):
        params[name] = gene.full - level * gene.step
    return params


def decode(names: Sequence[str], genes: Sequence[Gene], params: Mapping[str, float]) -> Levels:
    """Return the levels of parameters.

    Raises:
        InputError: a parameter is missing.
    """
    levels = []
    for name, gene in zip(names, genes, strict=True):
        if name not in params:
            raise InputError(
                f"the trial has no parameter {name}: it is not of a search over these widths"
            )
        levels.append((gene.full - round(params[name])) // gene.step)
    return np.array(levels, dtype=np.intp)
