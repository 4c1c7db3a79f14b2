"""Surrogate of the loss over widths: a Gaussian process on the levels of the genes.

With l_g in [0, 1] the level of gene g as a share of its largest one, the covariance of two
candidates is

    k(l, m) = c0 + a1 / G sum_g l_g m_g + a2 / G sum_g l_g^2 m_g^2
            + a3 exp(-|l - m|_1 / (G h)) + ap phi(l) . phi(m)

* a1, a2: a weight of its own for each gene, and one for the square of its level, because the last
  channels of an order cost most.
* a3: anything else that is alike for like candidates, with a length scale h.
* ap: how far a prior ranking of the units can be trusted: phi is the harm of all removed units, and
  its logarithm.

`gaussian_process` has the posterior, and the evidence that chooses the amplitudes.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from prunesearch.algorithms.gaussian_process import Amplitudes, GaussianProcess
from prunesearch.algorithms.operators import Mask, Real
from prunesearch.algorithms.surrogate import Ranking
from prunesearch.widths.space import WidthSpace

_CONSTANT, _RANKING = 4.0, 2.0  # c0, and ap of each prior feature
_LENGTHS = (0.05, 0.15)  # h: mean distance of two candidates' genes at which similarity fades
# a1, a2, and a3 of each length scale: the evidence chooses among these.
_GRID: tuple[Amplitudes, ...] = tuple(
    (a1, a2, *a3)
    for a1, a2, a3 in itertools.product(
        (4.0, 16.0), (0.5, 4.0, 16.0), ((1.0, 0.0), (0.0, 1.0), (0.0, 4.0))
    )
)


class WidthSurrogate(GaussianProcess):
    """The fitted model of widths.

    Args:
        X_ND: candidates that were evaluated, as masks.
        score_N: their normal scores.
        ranking: a prior ranking of the units, or None.
        space: the space of the widths.
        noise_N: variance of the noise of each score; see `GaussianProcess`.
    """

    def __init__(
        self,
        X_ND: Mask,
        score_N: Real,
        ranking: Ranking | None,
        space: WidthSpace,
        noise_N: Real | None = None,
    ) -> None:
        self._ranking, self._space = ranking, space
        if ranking is not None:
            # The features are standardised over the first candidates that are known.
            raw_NR = self._harms(X_ND, ranking)
            self._centre_R = raw_NR.mean(axis=0)
            self._width_R = np.maximum(raw_NR.std(axis=0), 1e-9)
        super().__init__(X_ND, score_N, noise_N)

    def _grid(self) -> Sequence[Amplitudes]:
        return _GRID

    def _points(self, X_MD: Mask) -> Real:
        """Return the level of each gene as a share of its largest one."""
        levels_MG = np.add.reduceat(X_MD.astype(np.float64), self._space.first_unit_G, axis=1)
        return np.asarray(levels_MG / self._space.limit_G)

    def _features(self, X_MD: Mask) -> Real:
        share_MG = self._points(X_MD)
        groups = [share_MG, share_MG**2, np.full((len(X_MD), 1), np.sqrt(_CONSTANT))]
        if self._ranking is not None:
            harm_MR = (self._harms(X_MD, self._ranking) - self._centre_R) / self._width_R
            groups.append(np.sqrt(_RANKING) * harm_MR)
        return np.concatenate(groups, axis=1)

    def _ends(self, units: int) -> list[int]:
        genes = self._space.n_genes
        always = 1 if self._ranking is None else 3
        return [0, genes, 2 * genes, 2 * genes + always]

    def _shares(self, amplitudes: Amplitudes) -> list[float]:
        genes = self._space.n_genes
        return [amplitudes[0] / genes, amplitudes[1] / genes, 1.0]

    def _similarities(self, A_MP: Real, B_QP: Real) -> list[Real]:
        apart_MQ = np.abs(A_MP[:, None] - B_QP).mean(axis=2)
        return [np.exp(-apart_MQ / length) for length in _LENGTHS]

    def _similar_shares(self, amplitudes: Amplitudes) -> list[float]:
        return list(amplitudes[2:])

    def _self_similarity(self, A_MP: Real) -> Real:
        return np.full(len(A_MP), sum(self._amplitudes[2:]))

    @staticmethod
    def _harms(X_MD: Mask, ranking: Ranking) -> Real:
        """Return the harm of all removed units, and its logarithm, shape (M, 2)."""
        total_M = X_MD @ ranking.harm_D
        return np.stack([total_M, np.log(np.maximum(total_M, 1e-300))], 1)
