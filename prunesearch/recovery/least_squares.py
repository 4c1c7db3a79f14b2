"""The least-squares fit of a linear map to the states around a gap (see `gap_fitting`).

Shapes: T tokens, F inputs of the linear map (and a one for its bias), E hidden size.
"""

import torch


class LeastSquares:
    """Sums over tokens, from which the scale and the linear map are computed.

    Their memory does not depend on the number of tokens.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._ratio: torch.Tensor | float = 0.0
        self._gram_FF: torch.Tensor | float = 0.0
        self._target_FE: torch.Tensor | float = 0.0
        self._state_FE: torch.Tensor | float = 0.0

    def add(self, inputs_TF: torch.Tensor, state_TE: torch.Tensor, target_TE: torch.Tensor) -> None:
        """Add tokens to the sums.

        Args:
            inputs_TF: inputs of the linear map.
            state_TE: states before the gap, in the compensated model.
            target_TE: states after the gap, in the dense model.
        """
        inputs_TF, state_TE, target_TE = inputs_TF.float(), state_TE.float(), target_TE.float()
        # Weight each token by the inverse of its squared norm.
        square_T1 = (
            target_TE.square().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        )
        weighted_FT = (inputs_TF / square_T1).T
        # Add in float64, so that the result does not lose precision over many tokens.
        self._tokens += len(inputs_TF)
        self._ratio += (square_T1[:, 0].sqrt() / state_TE.norm(dim=1)).double().sum()
        self._gram_FF += (weighted_FT @ inputs_TF).double()
        self._target_FE += (weighted_FT @ target_TE).double()
        self._state_FE += (weighted_FT @ state_TE).double()

    @property
    def ratio(self) -> float:
        """Mean ratio of the norms of target and state (alpha of Prune&Comp)."""
        return float(self._ratio) / self._tokens

    def solve(self, ridge: float, unit: float) -> torch.Tensor:
        """Compute the change D of the linear map, shape (F, E).

        Args:
            ridge: ridge strength, as a multiple of the mean diagonal of the Gram matrix.
            unit: factor for the targets.
        """
        # diagonal() is a view, so the ridge is added to the matrix itself.
        gram_FF = torch.as_tensor(self._gram_FF).clone()
        diagonal_F = gram_FF.diagonal()
        diagonal_F += ridge * diagonal_F.mean()
        change_FE: torch.Tensor = torch.linalg.solve(
            gram_FF, unit * self._target_FE - self._state_FE
        )
        return change_FE.float()
