"""The surrogate against the textbook, and against what it is for."""

import numpy as np
import pytest

from prunesearch.algorithms.gaussian_process import LARGEST, GaussianProcess, normal_scores
from prunesearch.algorithms.operators import Mask, Real
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.algorithms.surrogate import Ranking, Surrogate, harm_of

UNITS = SubsetConstraints.of(np.ones(16, dtype=bool), 5)
WEIGHT = np.random.default_rng(7).gamma(0.6, size=16)


def subsets(count: int, seed: int = 0) -> Mask:
    return UNITS.random_subsets(np.full(count, 5), np.random.default_rng(seed))


def loss(X: Mask) -> Real:
    """Additive, with neighbours that are cheaper together."""
    return np.asarray(np.exp(X @ WEIGHT / 2 - 0.3 * (X[:, :-1] & X[:, 1:]).sum(1)))


def covariance(model: Surrogate, A: Mask, B: Mask) -> Real:
    """The module docstring's formula, term by term."""
    a1, a2, r, ar, af = model._amplitudes
    size = model._size
    usual = size * (1 - size / A.shape[1])
    K = np.empty((len(A), len(B)))
    for i, s in enumerate(A):
        for j, t in enumerate(B):
            both = s & t
            K[i, j] = 4.0 + a1 * both.sum() / size + 0.3 * np.exp(-(s ^ t).sum() / 4.0)
            beyond_chance = both.sum() - s.sum() * t.sum() / s.size
            K[i, j] += af * (beyond_chance / usual) ** 2
            K[i, j] += 0.5 * ar * (both[:-2] & both[1:-1] & both[2:]).sum()
            for d in range(1, 5):
                K[i, j] += a2 * r ** (d - 1) * (both[:-d] & both[d:]).sum()
                K[i, j] += (
                    ar * 0.7 ** (d - 1) / size * (s[:-d] & s[d:]).sum() * (t[:-d] & t[d:]).sum()
                )
            if model._ranking is not None:
                K[i, j] += (
                    2.0 * model._ranking.features(s[None])[0] @ model._ranking.features(t[None])[0]
                )
    return K


def dense_posterior(model: Surrogate, X: Mask, Z: Mask, score: Real) -> tuple[Real, Real]:
    """Rasmussen and Williams, eqs. 2.25 and 2.26, by solving the whole system."""
    K = covariance(model, X, X) + 0.1 * np.eye(len(X))
    k = covariance(model, Z, X)
    variance = np.diag(covariance(model, Z, Z) - k @ np.linalg.solve(K, k.T))
    return k[:, : score.size] @ np.linalg.solve(K[: score.size, : score.size], score), variance


def test_known_noise_is_the_noise_of_the_posterior() -> None:
    X, Z = subsets(40), subsets(15, seed=1)
    raw = loss(X)
    score = (raw - raw.mean()) / raw.std()
    noise = np.linspace(0.01, 1.5, 40)  # of one trial to the next, in squared units of the scores
    model = Surrogate(X, score, None, noise)
    scale = model._variance
    K = scale * covariance(model, X, X) + np.diag(noise)
    k = scale * covariance(model, Z, X)
    own = scale * np.diag(covariance(model, Z, Z))
    mean, deviation = model.predict(Z)
    np.testing.assert_allclose(mean, k @ np.linalg.solve(K, score), atol=1e-8)
    variance = own - (k * np.linalg.solve(K, k.T).T).sum(1)
    np.testing.assert_allclose(deviation**2, variance, atol=1e-8)


def test_noisier_trials_are_believed_less() -> None:
    X = subsets(40)
    score = np.random.default_rng(3).normal(size=40)
    score -= score.mean()
    noise = np.where(np.arange(40) < 20, 1e-4, 4.0)
    mean, _ = Surrogate(X, score, None, noise).predict(X)
    error = np.abs(mean - score)
    assert error[:20].mean() < 0.2 * error[20:].mean()


@pytest.mark.parametrize("ranking", [None, Ranking(WEIGHT + 0.1)])
def test_predictions_are_the_posterior(ranking: Ranking | None) -> None:
    X, Z = subsets(40), subsets(15, seed=1)
    score = normal_scores(loss(X))
    model = Surrogate(X, score, ranking)
    mean, deviation = model.predict(Z)
    expected, variance = dense_posterior(model, X, Z, score)
    assert np.allclose(mean, expected)
    assert np.allclose(deviation, np.sqrt(variance * model._variance))
    model.condition_on_pending(Z[0])
    model.condition_on_pending(Z[1])
    mean_after, deviation_after = model.predict(Z)
    expected, variance = dense_posterior(model, np.vstack([X, Z[:2]]), Z, score)
    assert np.allclose(mean_after, mean), "what is under way says nothing about the level"
    assert np.allclose(deviation_after, np.sqrt(variance * model._variance))
    assert (deviation_after <= deviation + 1e-12).all()
    assert deviation_after[0] < deviation[0]


@pytest.mark.parametrize("ranking", [None, Ranking(WEIGHT + 0.1)])
def test_changes_by_single_units_are_those_of_the_covariance(ranking: Ranking | None) -> None:
    X = subsets(40)
    X[:5, 3] = True  # other sizes too
    model = Surrogate(X, normal_scores(loss(X)), ranking)
    # All parts of the covariance, whatever the evidence chose.
    model._amplitudes = (1.0, 0.2, 0.9, 0.2, 0.5)
    model._scale_F = np.sqrt(np.repeat(model._shares(model._amplitudes), np.diff(model._ends(16))))
    model._F_QF = model._features(X) * model._scale_F
    for here in X[3:7]:
        out, into = np.flatnonzero(here), np.flatnonzero(~here)
        found = model._flips(here, out, into)
        expected = GaussianProcess._flips(model, here, out, into)
        for name, value in vars(expected).items():
            np.testing.assert_allclose(getattr(found, name), value, atol=1e-12, err_msg=name)


def test_all_exchanges_are_predicted_nearly_as_one_by_one() -> None:
    X = subsets(60)
    model = Surrogate(X, normal_scores(loss(X)), None)
    here = X[0]
    out, into = np.flatnonzero(here), np.flatnonzero(~here)
    mean, deviation = model.predict_exchanges(here, out, into)
    assert mean.shape == deviation.shape == (out.size + 1, into.size + 1)
    # A single unit that leaves or joins, and no change at all, are exact.
    for place, unit in enumerate(out):
        fewer = here & (np.arange(16) != unit)
        exact = model.predict(fewer[None])
        assert mean[place, -1] == pytest.approx(exact[0][0])
        assert deviation[place, -1] == pytest.approx(exact[1][0])
    assert mean[-1, -1] == pytest.approx(model.predict(here[None])[0][0])
    # Both at once.
    both = np.repeat(here[None], out.size * into.size, axis=0)
    rows = np.arange(len(both))
    both[rows, np.repeat(out, into.size)] = False
    both[rows, np.tile(into, out.size)] = True
    exact_mean, exact_deviation = model.predict(both)
    bound = (mean - 2.0 * deviation)[:-1, :-1].ravel()
    exact_bound = exact_mean - 2.0 * exact_deviation
    assert np.corrcoef(bound, exact_bound)[0, 1] > 0.9
    assert np.argmin(exact_bound) in np.argsort(bound)[:8]


def test_pairs_at_any_distance_are_learned_where_they_matter() -> None:
    X, Z = subsets(120), subsets(300, seed=2)
    weight = np.triu(np.random.default_rng(5).normal(size=(16, 16)), 1)

    def interacting(subset: Mask) -> Real:
        return np.asarray(np.einsum("ni,ij,nj->n", subset * 1.0, weight, subset * 1.0))

    dense = Surrogate(X, normal_scores(interacting(X)), None)
    assert dense._amplitudes[-1] > 0.0
    assert np.corrcoef(dense.predict(Z)[0], interacting(Z))[0, 1] > 0.5
    assert Surrogate(X, normal_scores(X @ WEIGHT), None)._amplitudes[-1] == 0.0


def test_correlation_is_the_leave_one_out_correlation() -> None:
    X = subsets(30)
    score = normal_scores(loss(X))
    model = Surrogate(X, score, None)
    predicted = []
    for left in range(30):
        rest = np.delete(np.arange(30), left)
        noise = 0.1
        K = covariance(model, X[rest], X[rest]) + noise * np.eye(29)
        k = covariance(model, X[left : left + 1], X[rest])
        predicted.append(float((k @ np.linalg.solve(K, score[rest]))[0]))
    assert model.correlation == pytest.approx(np.corrcoef(predicted, score)[0, 1])


def test_it_learns_what_matters() -> None:
    X, Z = subsets(60), subsets(300, seed=2)
    mean, _ = Surrogate(X, normal_scores(loss(X)), None).predict(Z)
    assert np.corrcoef(mean, np.log(loss(Z)))[0, 1] > 0.8
    noise = np.random.default_rng(0).random(60)
    assert Surrogate(X, normal_scores(noise), None).correlation < 0.25, (
        "there is nothing to learn from noise"
    )


def test_a_ranking_helps_while_little_is_known_and_a_wrong_one_is_outvoted() -> None:
    Z = subsets(300, seed=2)
    truth = np.log(loss(Z))

    def fit(count: int, ranking: Ranking | None) -> float:
        X = subsets(count)
        return float(
            np.corrcoef(Surrogate(X, normal_scores(loss(X)), ranking).predict(Z)[0], truth)[0, 1]
        )

    right, wrong = Ranking(np.exp(WEIGHT)), Ranking(np.exp(-WEIGHT))
    assert fit(8, right) > fit(8, None) + 0.05
    assert fit(120, wrong) > 0.8


def test_normal_scores_see_ranks_alone() -> None:
    values = np.array([3.0, -1.0, 3.0, 100.0])
    assert np.allclose(normal_scores(values), normal_scores(np.array([0.3, 0.1, 0.3, 0.4])))
    scores = normal_scores(values)
    assert scores[0] == scores[2]
    assert scores[1] < scores[0] < scores[3]
    assert np.allclose(harm_of(np.array([1.0, 2.0])), [1.0, 2.0])
    assert (harm_of(np.array([-1.0, 0.0, 5.0])) > 0).all()


def test_the_largest_fit_is_fast_enough_to_be_in_the_loop() -> None:
    assert LARGEST <= 256, (
        "the fit is cubic in it: see benchmarks/sampler_overhead.py before raising it"
    )
