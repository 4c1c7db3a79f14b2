"""The posterior that recommends, and the rounds that confirm."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from prunesearch.algorithms.confirmation import (
    Confirmation,
    Posterior,
    noise_of_document,
    posterior,
)
from prunesearch.algorithms.gaussian_process import GaussianProcess
from prunesearch.algorithms.operators import Mask, Real
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.algorithms.surrogate import Surrogate

UNITS = SubsetConstraints.of(np.ones(16, dtype=bool), 5)
HARM = np.random.default_rng(7).gamma(0.6, size=16)


def fit(X_ND: Mask, score_N: Real, noise_N: Real) -> GaussianProcess:
    return Surrogate(X_ND, score_N, None, noise_N)


def accuracies(count: int, seed: int = 0) -> tuple[Mask, Real]:
    """Distinct subsets, and the share of documents that each answers."""
    X_ND = UNITS.random_subsets(np.full(count, 5), np.random.default_rng(seed))
    _, first = np.unique(X_ND, axis=0, return_index=True)
    X_ND = X_ND[np.sort(first)]
    harm_N = X_ND @ HARM
    return X_ND, np.asarray(0.6 - 0.25 * (harm_N - harm_N.min()) / np.ptp(harm_N))


def answers(share_K: Real, documents: int, rng: np.random.Generator) -> Real:
    """Losses on documents that differ in difficulty, the same documents for all candidates."""
    hardness_D = rng.normal(0.0, 0.2, documents)
    right_KD = rng.random((len(share_K), documents)) < share_K[:, None] + hardness_D
    return -right_KD.astype(np.float64)


def started(
    budget: int, seed: int = 0, available: int = 10**6, documents: int = 100
) -> tuple[Confirmation, Real, Real]:
    """A confirmation after a search, with the true and the measured accuracies."""
    X_ND, share_N = accuracies(60)
    loss_ND = answers(share_N, documents, np.random.default_rng(seed))
    noise_N = np.full(len(X_ND), noise_of_document(loss_ND) / documents)
    made = Confirmation(fit, X_ND, loss_ND.mean(1), noise_N, budget, available)
    return made, share_N, -loss_ND.mean(1)


def run(made: Confirmation, share_N: Real, seed: int) -> list[tuple[int, int]]:
    """Run all rounds. Return how many candidates each had, and how many documents."""
    rng = np.random.default_rng([seed, 1])
    rounds = []
    while (planned := made.next_round()) is not None:
        rounds.append((len(planned.candidates), planned.documents))
        made.add(answers(share_N[list(planned.candidates)], planned.documents, rng))
    return rounds


def test_the_noise_of_a_document_leaves_out_what_all_candidates_share() -> None:
    rng = np.random.default_rng(0)
    loss_KD = rng.normal(0, 0.5, (20, 400)) + rng.normal(0, 3, 400) + rng.normal(0, 2, (20, 1))
    assert noise_of_document(loss_KD) == pytest.approx(0.25, rel=0.05)


def test_without_noise_the_best_measured_candidate_is_recommended() -> None:
    X_ND, share_N = accuracies(40)
    made = Confirmation(fit, X_ND, -share_N, np.full(len(X_ND), 1e-12), 0, 0)
    assert made.recommended == made.winner == int(share_N.argmax())
    np.testing.assert_allclose(made.posterior.mean_N, -share_N, atol=1e-3)


def test_the_posterior_is_nearer_to_the_truth_than_the_scores() -> None:
    made, share_N, measured_N = started(0)
    error = np.sqrt(np.mean((made.posterior.mean_N + share_N) ** 2))
    assert error < 0.7 * np.sqrt(
        np.mean((measured_N - share_N - (measured_N - share_N).mean()) ** 2)
    )


def test_equal_losses_and_few_candidates_have_a_posterior() -> None:
    X_ND, _ = accuracies(5)
    for count, loss in ((5, 0.3), (2, 0.1), (1, 0.2)):
        found = posterior(fit, X_ND[:count], np.full(count, loss), np.full(count, 0.01))
        np.testing.assert_allclose(found.mean_N, loss)
        np.testing.assert_allclose(found.sd_N, 0.1)


def test_rounds_halve_the_candidates_and_double_the_documents() -> None:
    made, share_N, _ = started(6_400)
    rounds = run(made, share_N, 0)
    assert rounds[0] == (12, 133)
    for (more, fewer_documents), (fewer, documents) in itertools.pairwise(rounds):
        assert fewer <= (more + 1) // 2
        assert documents >= 2 * fewer_documents
    assert made.spent == sum(count * documents for count, documents in rounds) <= 6_400
    assert made.used == sum(documents for _, documents in rounds)
    assert sorted(made.ranking) == sorted(set(made.ranking))
    assert len(made.ranking) == 12


def test_confirmed_winners_are_better_than_naive_ones() -> None:
    naive, recommended, confirmed = [], [], []
    for seed in range(12):
        made, share_N, measured_N = started(12_000, seed)
        run(made, share_N, seed)
        best = share_N.max()
        naive.append(best - share_N[measured_N.argmax()])
        recommended.append(best - share_N[made.recommended])
        confirmed.append(best - share_N[made.winner])
    assert np.mean(recommended) < np.mean(naive)
    assert np.mean(confirmed) < 0.5 * np.mean(naive)
    assert np.mean(confirmed) < 0.01


def test_a_clear_winner_ends_the_rounds() -> None:
    X_ND, _ = accuracies(30)
    loss_N = np.full(len(X_ND), -0.3)
    loss_N[4] = -0.9
    made = Confirmation(fit, X_ND, loss_N, np.full(len(X_ND), 0.01), 100_000, 10**6)
    share_N = -loss_N
    rounds = run(made, share_N, 0)
    assert made.winner == 4
    assert made.separated
    assert len(rounds) == 1


def test_rounds_end_with_the_documents_of_the_task() -> None:
    made, share_N, _ = started(6_400, available=200)
    rounds = run(made, share_N, 0)
    assert rounds[:1] == [(12, 133)]
    assert made.used <= 200
    assert made.next_round() is None


def test_documents_are_a_multiple_of_the_tasks() -> None:
    made, _, _ = started(6_400)
    planned = made.next_round(7)
    assert planned is not None
    assert planned.documents == 133


def test_the_same_results_give_the_same_rounds() -> None:
    first, share_N, _ = started(3_000)
    second, _, _ = started(3_000)
    assert run(first, share_N, 0) == run(second, share_N, 0)
    assert first.ranking == second.ranking


def test_significance_is_that_of_the_difference() -> None:
    known = Posterior(np.array([0.0, 0.1, 0.3]), np.array([0.06, 0.08, 0.08]))
    is_worse: Callable[[int, int], bool] = known.is_worse
    assert not is_worse(1, 0)
    assert is_worse(2, 0)
