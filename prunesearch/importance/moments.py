"""Count, mean and spread of the columns of a linear map's input, in one pass.

Batches are merged with the parallel form of Welford's method: T. F. Chan, G. H. Golub and R. J.
LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979, eq. 2.1.
Sums of squares alone would lose all digits of a column whose mean is large and whose spread is
small, and the first lines of FLAP's own code do not give the variance at all.

Shapes: T tokens, C columns.
"""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class InputMoments:
    """Moments of the columns of an input, over tokens.

    Attributes:
        count: number of tokens.
        mean_C: mean of each column, float64.
        deviation_C: sum of squared differences from the mean, float64.
    """

    count: int
    mean_C: torch.Tensor
    deviation_C: torch.Tensor

    @classmethod
    def of(cls, input_TC: torch.Tensor) -> Self:
        """Return the moments of one batch of tokens.

        Args:
            input_TC: input of the linear map. Dimensions before the last one are tokens.
        """
        rows = input_TC.detach().reshape(-1, input_TC.shape[-1])
        if rows.device.type == "mps":  # it has no float64
            rows = rows.cpu()
        rows = rows.double()
        mean_C = rows.mean(0)
        return cls(len(rows), mean_C, (rows - mean_C).square().sum(0))

    def merged(self, other: Self) -> Self:
        """Return the moments of the tokens of both."""
        count = self.count + other.count
        step_C = other.mean_C - self.mean_C
        mean_C = self.mean_C + step_C * (other.count / count)
        deviation_C = self.deviation_C + other.deviation_C
        deviation_C = deviation_C + step_C.square() * (self.count * other.count / count)
        return type(self)(count, mean_C, deviation_C)

    @property
    def variance_C(self) -> torch.Tensor:
        """Return the sample variance of each column: the deviation by count - 1.

        A single token has no spread, so its variance is 0.
        """
        return self.deviation_C / max(self.count - 1, 1)

    @property
    def mean_square_C(self) -> torch.Tensor:
        """Return the mean of the squares of each column."""
        return self.mean_C.square() + self.deviation_C / self.count
