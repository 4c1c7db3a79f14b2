"""Genes: the numbers that a candidate of the space of widths consists of.

A *gene* is the level of a block's MLP or of its attention. A *level* is the number of steps (of
channels) or of groups that are removed. Genes are ordered by block, the MLP before the attention.

Shapes: M candidates, G genes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesearch.errors import InputError
from prunesearch.widths.shape import WidthShape

Levels = NDArray[np.intp]
"""Levels of genes, shape (G,) or (M, G)."""
Real = NDArray[np.float64]

MOST_LEVELS = 64
"""Largest number of levels of an MLP. A larger one gets a larger step."""


@dataclass(frozen=True)
class Gene:
    """One number of a candidate.

    Attributes:
        block: index of the block.
        attention: True for KV groups, False for channels.
        full: number of units (channels or groups) that the block has.
        step: number of units that a level removes.
        most: largest level if the block is kept.
        cost: number of weights that a level removes.
    """

    block: int
    attention: bool
    full: int
    step: int
    most: int
    cost: int

    @property
    def everything(self) -> int:
        """Level at which nothing is left."""
        return self.full // self.step


def genes_of(
    shape: WidthShape, steps: Sequence[int], protected: frozenset[int]
) -> tuple[Gene, ...]:
    """Return the genes of the blocks that are not protected."""
    genes = []
    for block in range(shape.n_layers):
        if block in protected:
            continue
        channels, step = shape.channels[block], steps[block]
        # A block that is kept keeps a step, or the experts that a token uses.
        most = channels // step - max(1, shape.experts_used(block))
        if most > 0:
            cost = step * shape.channel_weights[block]
            genes.append(Gene(block, False, channels, step, most, cost))
        # A block that is kept keeps a group.
        groups = shape.groups[block]
        if groups > 1:
            genes.append(Gene(block, True, groups, 1, groups - 1, shape.group_weights[block]))
    return tuple(genes)


def step_of(channels: int, align: int) -> int:
    """Return the number of channels that a level removes: a multiple of `align`.

    Raises:
        InputError: `align` does not divide the number of channels.
    """
    if channels == 0:
        return 1
    if align < 1 or channels % align:
        raise InputError(
            f"`align` {align} does not divide the {channels} channels of a layer: use "
            f"`align` {math.gcd(channels, max(align, 1))}"
        )
    # A large MLP gets the smallest step with few enough levels.
    units = channels // align
    for factor in range(1, units):
        if units % factor == 0 and units // factor <= MOST_LEVELS:
            return factor * align
    return align
