"""Samplers read the standard errors of trials, and fit their surrogate with the noise."""

import numpy as np
import optuna
import pytest

from prunesearch.algorithms.operators import Mask, Real
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.algorithms.surrogate import Ranking, Surrogate
from prunesearch.samplers import annotate, build
from prunesearch.space import SearchSpace
from prunesearch.studies.recommendation import STANDARD_ERROR_ATTR

SPACE = SearchSpace(8, 3)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Real, Real | None]]:
    """The scores and the noise that surrogates are fitted to."""
    found: list[tuple[Real, Real | None]] = []

    def fit(
        _: SubsetConstraints, X_ND: Mask, score_N: Real, ranking: Ranking | None,
        noise_N: Real | None = None,
    ) -> Surrogate:  # fmt: skip
        found.append((score_N, noise_N))
        return Surrogate(X_ND, score_N, ranking, noise_N)

    monkeypatch.setattr(SubsetConstraints, "surrogate", fit)
    return found


def searched(*errors: object) -> list[str]:
    """Return the candidates of a search. Its trials take turns in their standard errors."""
    study = optuna.create_study()
    sampler = build("pso", SPACE, seed=1, population=8)
    rng = np.random.default_rng(0)
    candidates = []
    for trial in range(24):
        proposal = sampler.ask(study)
        if errors:
            error = errors[trial % len(errors)]
            annotate(study, proposal.number, {STANDARD_ERROR_ATTR: error})  # type: ignore[dict-item]
        loss = sum(proposal.candidate.dropped) / 20 + float(rng.normal(0, 0.1))
        study.tell(proposal.number, loss)
        candidates.append(proposal.candidate.text)
    return candidates


def test_the_surrogate_knows_the_noise_of_trials(
    fitted: list[tuple[Real, Real | None]],
) -> None:
    searched(0.08, 0.12)
    assert fitted
    for score_N, noise_N in fitted:
        assert noise_N is not None
        # Losses with mean 0 and variance 1, and the variance of both errors pooled.
        assert (score_N.mean(), score_N.var()) == pytest.approx((0.0, 1.0), abs=1e-9)
        assert len(set(noise_N.tolist())) == 1
        assert 0.05 < noise_N[0] <= 0.8


@pytest.mark.parametrize("errors", [(), (0.1, 0.0), (0.1, True), (0.1, "0.1"), (float("nan"),)])
def test_without_an_error_of_each_trial_the_noise_is_not_known(
    fitted: list[tuple[Real, Real | None]], errors: tuple[object, ...]
) -> None:
    assert searched(*errors) == searched()
    assert {noise_N is None for _, noise_N in fitted} == {True}


@pytest.mark.parametrize("value", [float("inf"), -1e308, 0.0])
def test_extreme_losses_with_errors_are_ranked(value: float) -> None:
    study = optuna.create_study()
    sampler = build("pso", SPACE, seed=1, population=8)
    for trial in range(24):
        proposal = sampler.ask(study)
        annotate(study, proposal.number, {STANDARD_ERROR_ATTR: 0.1})
        study.tell(proposal.number, value if trial % 3 else 0.0)
    assert len(study.trials) == 24
