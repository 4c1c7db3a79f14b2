"""Accuracy on sampled documents: how good the naive, the recommended and the confirmed winner are.

The answers of a subset to further documents are independent draws with its true accuracy: the
documents have no difficulty of their own, so pairing helps nothing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from benchmarks.landscapes import Landscape, best_known, landscape
from benchmarks.landscapes.noise import generator_of
from prunesearch.algorithms.confirmation import Confirmation
from prunesearch.algorithms.gaussian_process import GaussianProcess
from prunesearch.algorithms.operators import Mask, Real
from prunesearch.algorithms.surrogate import Surrogate
from prunesearch.config.run_options import CONFIRM
from prunesearch.samplers import GenerationPendingError, Proposal, SubsetSampler, annotate, build
from prunesearch.studies.recommendation import STANDARD_ERROR_ATTR

DOCUMENTS = 200
"""Documents of one evaluation."""
CHOICES = ("naive", "recommended", "confirmed")


@dataclass(frozen=True)
class Excess:
    """How much accuracy is lost by reporting a subset instead of the best known one.

    Attributes:
        naive: of the best measured subset of a search that spends the whole budget.
        recommended: of the best by the posterior, after the trials that confirmation leaves.
        confirmed: of the winner of the confirmation that follows them.
        seen: of the truly best subset that was evaluated.
    """

    naive: float
    recommended: float
    confirmed: float
    seen: float


def excesses(name: str, sampler: str, seed: int, budgets: Sequence[int]) -> dict[int, Excess]:
    """Search a landscape, and decide at several budgets.

    Args:
        name: name of the landscape.
        sampler: name of the sampler.
        seed: seed of the landscape and of the sampler.
        budgets: evaluations' worth of documents, confirmation included.
    """
    searched = landscape(name, seed)
    best = best_known(name, seed)
    ranking = [float(harm) for harm in searched.rankings["good"]]
    X_ND, loss_N = evaluated(
        searched, build(sampler, searched.space, seed=seed, ranking=ranking), max(budgets)
    )
    true_N = searched.true(X_ND)
    found = {}
    for budget in budgets:
        trials = round(budget * (1.0 - CONFIRM))
        made = decided(
            X_ND[:trials], loss_N[:trials], true_N[:trials], (budget - trials) * DOCUMENTS, seed
        )
        found[budget] = Excess(
            naive=float(true_N[loss_N[:budget].argmin()] - best),
            recommended=float(true_N[made.recommended] - best),
            confirmed=float(true_N[made.winner] - best),
            seen=float(true_N[:trials].min() - best),
        )
    return found


def evaluated(searched: Landscape, sampler: SubsetSampler, budget: int) -> tuple[Mask, Real]:
    """Search until `budget` different subsets are evaluated. Return them and their losses.

    The trials have standard errors, as those of `prunesearch search` have.
    """
    study = optuna.create_study()
    found: dict[bytes, tuple[Mask, float]] = {}
    while len(found) < budget:
        batch: list[Proposal] = []
        while len(batch) < sampler.batch:
            try:
                batch.append(sampler.ask(study))
            except GenerationPendingError:
                break
        for proposal in batch:
            X_D = np.zeros(searched.n, dtype=np.bool_)
            X_D[list(searched.space.units_of(proposal.candidate))] = True
            loss = float(searched.loss(X_D[None])[0])
            error = np.sqrt(-loss * (1.0 + loss) / (DOCUMENTS - 1))
            annotate(study, proposal.number, {STANDARD_ERROR_ATTR: float(f"{error:.4g}")})
            study.tell(proposal.number, loss)
            found.setdefault(X_D.tobytes(), (X_D, loss))
    kept = list(found.values())[:budget]
    return np.array([X_D for X_D, _ in kept]), np.array([loss for _, loss in kept])


def decided(X_ND: Mask, loss_N: Real, true_N: Real, budget: int, seed: int) -> Confirmation:
    """Confirm the best of some subsets within a budget of scored documents."""
    mean = float(-loss_N.mean())
    noise_N = np.full(len(X_ND), mean * (1.0 - mean) / DOCUMENTS)
    made = Confirmation(fit, X_ND, loss_N, noise_N, budget, available=budget)
    streams = [generator_of(X_D, b"further%d" % seed) for X_D in X_ND]
    while (planned := made.next_round()) is not None:
        rows = []
        for place in planned.candidates:
            rows.append(streams[place].random(planned.documents) < -true_N[place])
        made.add(-np.array(rows, dtype=np.float64))
    return made


def fit(X_ND: Mask, score_N: Real, noise_N: Real) -> GaussianProcess:
    """Fit the product's surrogate."""
    return Surrogate(X_ND, score_N, None, noise_N)
