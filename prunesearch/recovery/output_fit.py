"""The least-squares fit of a narrowed output projection to the output of the whole one.

The fit has a closed form, as in ZipLM (Kurtic et al. 2023, arXiv:2302.04089), OSSCAR (Meng et al.
2024, arXiv:2403.12983) and SlimGPT (Ling et al. 2024, arXiv:2412.18110). With the input X of the
narrowed projection, its weight W and the output Y of the whole one, its change is

    D = argmin sum_t |X_t (W + D) - Y_t|^2 + ridge |D|^2 .

A bias counts as a column of ones of X. The ridge pulls the weights towards those that they have.

Shapes: T tokens, F inputs (and a one for a bias), E hidden size.
"""

import torch


class OutputSums:
    """Sums over tokens that determine the fit and its error. They are added in float64."""

    def __init__(self) -> None:
        self._gram_FF: torch.Tensor | float = 0.0
        self._missing_FE: torch.Tensor | float = 0.0
        self._missing: torch.Tensor | float = 0.0
        self._squares: torch.Tensor | float = 0.0

    def add(
        self,
        inputs_TF: torch.Tensor,
        gave_TE: torch.Tensor,
        wanted_TE: torch.Tensor,
    ) -> None:
        """Add tokens to the sums.

        Args:
            inputs_TF: inputs of the narrowed projection.
            gave_TE: its outputs.
            wanted_TE: outputs of the whole projection.
        """
        inputs_TF, wanted_TE = inputs_TF.float(), wanted_TE.float()
        missing_TE = wanted_TE - gave_TE.float()
        self._gram_FF += (inputs_TF.T @ inputs_TF).double()
        self._missing_FE += (inputs_TF.T @ missing_TE).double()
        self._missing += missing_TE.double().square().sum()
        self._squares += wanted_TE.double().square().sum()

    def solve(self, ridge: float) -> torch.Tensor:
        """Return the change of the map, shape (F, E) in float64.

        Args:
            ridge: ridge strength, as a multiple of the mean diagonal of the Gram matrix.
        """
        gram_FF = torch.as_tensor(self._gram_FF).clone()
        # diagonal() is a view, so the ridge is added to the matrix itself.
        diagonal_F = gram_FF.diagonal()
        diagonal_F += ridge * diagonal_F.mean()
        # The matrix is positive definite unless all inputs are zero, and then nothing changes.
        if not diagonal_F.any():
            return torch.zeros_like(torch.as_tensor(self._missing_FE))
        factor_FF = torch.linalg.cholesky(gram_FF)
        change_FE: torch.Tensor = torch.cholesky_solve(torch.as_tensor(self._missing_FE), factor_FF)
        return change_FE

    def error(self, change_FE: torch.Tensor | None = None) -> float:
        """Return the squared distance from the wanted outputs, as a share of their squares.

        Args:
            change_FE: change of the map. None: no change.
        """
        missing = self._missing
        if change_FE is not None:
            # |m - x D|^2 = |m|^2 - 2 m x D + (x D)^2, summed over the tokens.
            crossed = (self._missing_FE * change_FE).sum()
            spread_FE = torch.as_tensor(self._gram_FF) @ change_FE
            missing = missing - 2 * crossed + (spread_FE * change_FE).sum()
        return float(missing) / max(float(self._squares), torch.finfo(torch.float64).tiny)
