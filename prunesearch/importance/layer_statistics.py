"""What is known of each block of the dense model. This module does not import torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
"""Scores of the channels or of the KV groups of a block, largest first."""


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What is known of one block.

    Attributes:
        influence: block influence, the mean over tokens of 1 - cos(input, output).
        outlier_share: share of the block's weights that are outliers (`importance.statistics`).
        channel_scores, group_scores: score of each channel and KV group, largest first. Empty if
            the block has none that can be removed.
    """

    influence: float
    outlier_share: float
    channel_scores: Scores
    group_scores: Scores
