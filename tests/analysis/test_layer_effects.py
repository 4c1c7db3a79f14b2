"""Effects of dropping units, and of dropping pairs of them."""

import numpy as np
import pytest

from prunesearch.analysis.layer_effects import layer_effects

RNG = np.random.default_rng(3)


def subsets(trials: int, units: int, dropped: int) -> np.ndarray:
    """Trials that drop random subsets of one size."""
    order = np.argsort(RNG.random((trials, units)), axis=1)
    return (order < dropped).astype(float)


def test_exact_sums_are_found_again() -> None:
    dropped = subsets(200, 8, 3)
    cost = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = layer_effects(dropped, dropped @ cost, with_pairs=False)
    assert found.effect == pytest.approx(tuple(cost - cost.mean()), abs=0.02)
    assert found.explained > 0.999 and found.pairs == () and np.isnan(found.explained_with_pairs)


def test_the_posterior_is_that_of_the_formula() -> None:
    """With the strength that was chosen, mean and covariance are those of the formula."""
    dropped = (RNG.random((40, 3)) < 0.5).astype(float)
    losses = dropped @ np.array([1.0, -1.0, 0.5]) + RNG.normal(size=40)
    found = layer_effects(dropped, losses, with_pairs=False)
    x, y = dropped - dropped.mean(0), (losses - losses.mean()) / losses.std()
    best = None
    for power in np.arange(-3, 5.01, 0.5):
        strength = 10.0**power
        inverse = np.linalg.inv(x.T @ x + strength * np.eye(3))
        weight = inverse @ x.T @ y
        noise = (y @ y - y @ x @ weight) / 39
        evidence = np.linalg.slogdet(strength * inverse)[1] / 2 - 39 / 2 * np.log(noise)
        if best is None or evidence > best[0]:
            best = evidence, weight, noise * inverse
    assert best is not None
    centre = np.eye(3) - 1 / 3
    error = losses.std() * np.sqrt((centre @ best[2] @ centre).diagonal())
    assert found.effect == pytest.approx(tuple(losses.std() * centre @ best[1]), abs=1e-4)
    assert found.stderr == pytest.approx(tuple(error), rel=1e-4)


def test_pairs_are_found_and_their_errors_are_honest() -> None:
    dropped = subsets(1500, 10, 4)
    cost, together = RNG.normal(size=10), np.triu(RNG.normal(size=(10, 10)), 1)
    exact = dropped @ cost + np.einsum("ti,ij,tj->t", dropped, together, dropped)
    found = layer_effects(dropped, exact + 0.5 * RNG.normal(size=1500))
    assert len(found.pairs) == 45 and found.noise == pytest.approx(0.5, rel=0.15)
    assert found.explained_with_pairs > 0.9 > found.explained
    one = found.pairs[0]
    assert (one.first, one.second) == (0, 1)
    assert one.together == int((dropped[:, 0] * dropped[:, 1]).sum())
    # Double differences of pairs are identified although all trials drop equally many.
    true = together + together.T
    fitted = np.zeros((10, 10))
    for pair in found.pairs:
        fitted[pair.first, pair.second] = fitted[pair.second, pair.first] = pair.effect

    def contrast(matrix: np.ndarray) -> float:
        return float(matrix[0, 1] - matrix[1, 2] + matrix[2, 3] - matrix[3, 0])

    spread = 2 * max(pair.stderr for pair in found.pairs)
    assert abs(contrast(fitted) - contrast(true)) < 3 * spread


def test_pure_noise_explains_nothing() -> None:
    dropped = subsets(300, 8, 3)
    found = layer_effects(dropped, RNG.normal(size=300))
    assert found.explained < 0.05 and found.explained_with_pairs < 0.05
    assert max(np.abs(found.effect)) < 0.3


def test_units_that_do_not_vary_have_no_effect() -> None:
    dropped = np.array([[1.0, t % 2, 0.0, (t + 1) % 2] for t in range(12)])
    found = layer_effects(dropped, [float(t % 2) for t in range(12)])
    assert np.isnan([found.effect[0], found.effect[2]]).all()
    assert found.effect[1] == pytest.approx(0.5, abs=0.05)
    assert found.pairs == ()  # the two units are never dropped together


@pytest.mark.parametrize("trials", [0, 1, 4])
def test_few_trials_tell_nothing(trials: int) -> None:
    found = layer_effects(subsets(trials, 4, 2), np.arange(float(trials)))
    assert np.isnan(found.effect).all() and np.isnan(found.explained)


def test_equal_losses_tell_nothing() -> None:
    assert np.isnan(layer_effects(subsets(20, 4, 2), np.ones(20)).effect).all()
