"""Which of a search's candidates is best, where scores are noisy: by a posterior, then by more
documents.

The best of many noisy scores is mostly a lucky one. Two things are done about it.

1. **Recommendation.** A Gaussian process is fitted to the losses of all candidates, with the noise
   that a loss has. The posterior mean of a candidate draws on what similar candidates scored, so
   luck counts less. The candidate with the least posterior mean is recommended (P. I. Frazier, "A
   tutorial on Bayesian optimization", 2018, section 4.1).
2. **Confirmation.** The best by the posterior are scored on further documents, the same ones for
   all. The rounds are those of sequential halving (Z. Karnin, T. Koren and O. Somekh, "Almost
   optimal exploration in multi-armed bandits", ICML 2013): each has an equal share of the
   documents, and the worse half drops out. So those that stay get twice as many documents in each
   round. A candidate that is significantly worse than the leader drops out as well. After each
   round the posterior is fitted again to all that is known.

All candidates of a round read the same documents, so the difficulty of the documents cancels: only
what is left of a loss after the mean of its candidate and the mean of its document were subtracted
is noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from prunesearch.algorithms.gaussian_process import GaussianProcess
from prunesearch.algorithms.operators import Mask, Real

FINALISTS = 12
"""Number of candidates that confirmation begins with."""
SIGNIFICANT = 2.0
"""Number of standard deviations of a difference at which a candidate is worse than the leader."""
LARGEST = 512
"""Largest number of candidates that the posterior is fitted to: those with the least losses."""
LEAST_DOCUMENTS = 8
"""Smallest number of documents of a round."""


class Fit(Protocol):
    """Fits a Gaussian process to candidates; see `GaussianProcess` for the arguments."""

    def __call__(self, X_ND: Mask, score_N: Real, noise_N: Real, /) -> GaussianProcess:
        """Return the fitted process."""
        ...


@dataclass(frozen=True)
class Posterior:
    """What is known of the losses of candidates after all scores.

    Attributes:
        mean_N: posterior means.
        sd_N: posterior standard deviations.
    """

    mean_N: Real
    sd_N: Real

    def is_worse(self, candidate: int, leader: int) -> bool:
        """Return whether a candidate is significantly worse than the leader."""
        difference = float(self.mean_N[candidate] - self.mean_N[leader])
        error = math.hypot(float(self.sd_N[candidate]), float(self.sd_N[leader]))
        return bool(difference > SIGNIFICANT * error)


def posterior(fit: Fit, X_ND: Mask, loss_N: Real, noise_N: Real) -> Posterior:
    """Return the posterior of the losses of candidates that were scored.

    Of many candidates the model is fitted to the best. The others keep their own losses.

    Args:
        fit: fits the model.
        X_ND: candidates.
        loss_N: mean losses; less is better.
        noise_N: variance of each mean loss.
    """
    mean_N, sd_N = loss_N.copy(), np.sqrt(noise_N)
    best = np.sort(np.argsort(loss_N, kind="stable")[:LARGEST])
    centre, spread = float(loss_N[best].mean()), float(loss_N[best].std())
    if len(best) < 3 or spread < 1e-12:
        return Posterior(mean_N, sd_N)
    # The model's scores have mean 0 and variance 1.
    scores, noise = (loss_N[best] - centre) / spread, noise_N[best] / spread**2
    means, deviations = fit(X_ND[best], scores, noise).predict(X_ND[best])
    mean_N[best], sd_N[best] = centre + spread * means, spread * deviations
    return Posterior(mean_N, sd_N)


def noise_of_document(loss_KD: Real) -> float:
    """Return the variance of a candidate's loss on one document, without what all candidates share.

    It is the mean square of the residuals of the two-way layout, candidates and documents.

    Args:
        loss_KD: losses of at least two candidates on the same documents, at least two.
    """
    rest_KD = loss_KD - loss_KD.mean(0) - loss_KD.mean(1, keepdims=True) + loss_KD.mean()
    candidates, documents = loss_KD.shape
    return float((rest_KD**2).sum() / ((candidates - 1) * (documents - 1)))


@dataclass(frozen=True)
class Round:
    """A round of a confirmation: candidates, and how many further documents each is scored on.

    Attributes:
        candidates: indices of the candidates, the best first.
        first: number of further documents that earlier rounds have used.
        documents: number of documents of this round.
    """

    candidates: tuple[int, ...]
    first: int
    documents: int


@dataclass
class Confirmation:
    """Scores the best candidates of a search on further documents, in rounds.

    Attributes:
        fit: fits the posterior.
        X_ND: all candidates that were scored.
        loss_N: mean losses. They are updated by each round.
        noise_N: variances of the mean losses. They are updated by each round.
        budget: number of scored documents that all rounds together may take. A document that three
            candidates are scored on counts three times.
        available: number of further documents that there are.
        finalists: number of candidates of the first round.
        left: candidates that have not dropped out, the best first.
        spent: number of scored documents so far.
        used: number of different documents so far.
        separated: whether all others were significantly worse than the winner when they dropped
            out.
        recommended: the candidate with the least posterior mean before the first round.
        first_noise: mean variance of the losses before the first round.
    """

    fit: Fit
    X_ND: Mask
    loss_N: Real
    noise_N: Real
    budget: int
    available: int
    finalists: int = FINALISTS
    left: tuple[int, ...] = ()
    spent: int = 0
    used: int = 0
    separated: bool = True
    _dropped: tuple[int, ...] = ()
    _residuals: float = field(default=0.0, repr=False)
    _freedom: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.loss_N, self.noise_N = self.loss_N.copy(), self.noise_N.copy()
        self.first_noise = float(self.noise_N.mean())
        self.posterior = posterior(self.fit, self.X_ND, self.loss_N, self.noise_N)
        ranked = self._ranked(range(len(self.loss_N)))
        self.recommended = ranked[0]
        self.left = ranked[: self.finalists]
        self._rounds = max(1, math.ceil(math.log2(max(1, len(self.left)))))

    @property
    def winner(self) -> int:
        """The candidate with the least posterior mean among those that are left."""
        return self.left[0]

    @property
    def ranking(self) -> tuple[int, ...]:
        """All finalists, the best first: those that stayed longest before the others."""
        return (*self.left, *self._dropped)

    @property
    def is_complete(self) -> bool:
        """True if all rounds were made."""
        return self._rounds < 1

    @property
    def needed(self) -> int:
        """Smallest budget with which the next round, and those after it, could be made."""
        return self.spent + self._rounds * len(self.left) * LEAST_DOCUMENTS

    def next_round(self, multiple: int = 1) -> Round | None:
        """Return the next round; None if the winner is known, or nothing is left to spend.

        Args:
            multiple: number that the documents of a round are a multiple of.
        """
        if len(self.left) < 2 or self.is_complete:
            return None
        share = (self.budget - self.spent) // self._rounds
        documents = min(share // len(self.left), self.available - self.used)
        documents -= documents % multiple
        if documents < LEAST_DOCUMENTS:
            return None
        return Round(self.left, self.used, documents)

    def add(self, loss_KD: Real) -> None:
        """Take the results of a round.

        Args:
            loss_KD: losses of the round's candidates on its documents, in the order of `Round`.
        """
        candidates = np.array(self.left)
        count, documents = loss_KD.shape
        # 1. Estimate the noise from all rounds so far.
        freedom = (count - 1) * (documents - 1)
        self._residuals += noise_of_document(loss_KD) * freedom
        self._freedom += freedom
        fresh = max(self._residuals / self._freedom, 1e-12) / documents
        # 2. The documents of the round are harder or easier than those before, for all alike.
        mean_K = loss_KD.mean(1)
        mean_K += self.posterior.mean_N[candidates].mean() - mean_K.mean()
        # 3. Combine both means by their precision.
        old_K = self.noise_N[candidates]
        weight_K = old_K / (old_K + fresh)
        self.loss_N[candidates] += weight_K * (mean_K - self.loss_N[candidates])
        self.noise_N[candidates] = old_K * fresh / (old_K + fresh)
        self.posterior = posterior(self.fit, self.X_ND, self.loss_N, self.noise_N)
        # 4. Drop the worse half, and all that are significantly worse than the leader.
        ranked = self._ranked(self.left)
        half = ranked[: max(1, (count + 1) // 2)]
        kept = [one for one in half if not self.posterior.is_worse(one, ranked[0])]
        dropped = [one for one in ranked if one not in kept]
        for one in dropped:
            if not self.posterior.is_worse(one, ranked[0]):
                self.separated = False
        self.left, self._dropped = tuple(kept), (*dropped, *self._dropped)
        self.spent += count * documents
        self.used += documents
        self._rounds -= 1

    def _ranked(self, candidates: Sequence[int] | range) -> tuple[int, ...]:
        """Return candidates by their posterior mean, the best first; of equal ones the earlier."""
        return tuple(sorted(candidates, key=lambda one: (self.posterior.mean_N[one], one)))
