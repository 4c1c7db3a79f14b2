from collections.abc import Sequence
from typing import Literal

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, IntDistribution

from prunesearch.studies.importance import layer_importances, ridge


def study_of(
    dropped_TD: np.ndarray,
    values_T: Sequence[float] | np.ndarray,
    direction: Literal["minimize", "maximize"] = "minimize",
    names: str = "drop_{:02d}",
) -> optuna.Study:
    study = optuna.create_study(direction=direction)
    for row, value in zip(dropped_TD, values_T, strict=True):
        params = {names.format(i): int(gone) for i, gone in enumerate(row)}
        distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, 1) for name in params
        }
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=float(value))
        )
    return study


def subsets(trials: int, layers: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dropped_TD = np.zeros((trials, layers))
    for row in dropped_TD:
        row[rng.choice(layers, k, replace=False)] = 1
    return dropped_TD


def test_the_layers_harm_is_found_with_honest_errors() -> None:
    rng = np.random.default_rng(1)
    dropped_TD, harm_D = subsets(200, 20, 5), rng.normal(size=20)
    harm_D -= harm_D.mean()
    found_D, error_D = ridge(dropped_TD, dropped_TD @ harm_D + 0.3 * rng.normal(size=200))
    assert np.abs(found_D - harm_D).max() < 0.2
    assert 0.6 < np.sqrt(np.mean(((found_D - harm_D) / error_D) ** 2)) < 1.6


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_layer_that_must_stay_matters_most_although_it_is_hardly_ever_dropped(
    direction: Literal["minimize", "maximize"],
) -> None:
    """What Optuna's default importance gets wrong."""
    dropped_TD = subsets(120, 8, 3)
    dropped_TD[10:, 0] = 0  # the search has learnt to keep layer 0
    sign = 1.0 if direction == "minimize" else -1.0
    values_T = sign * (8 * dropped_TD[:, 0] + 0.1 * dropped_TD[:, 5] + 1)
    found = layer_importances(study_of(dropped_TD, values_T, direction))
    assert [layer.layer for layer in found] == [str(i) for i in range(8)]
    assert found[0].rank == 1
    assert found[5].rank == 2
    assert found[0].dropped_best == 0
    assert found[0].harm is not None and found[0].harm > 5
    assert found[0].with_ == pytest.approx(values_T[dropped_TD[:, 0] == 1].mean())
    assert found[0].without == pytest.approx(values_T[dropped_TD[:, 0] == 0].mean())


def test_what_no_trial_varies_is_not_known() -> None:
    dropped_TD = subsets(20, 6, 2)
    dropped_TD[:, 3], dropped_TD[:, 4] = 0, 1
    found = layer_importances(study_of(dropped_TD, np.arange(20.0)))
    assert (found[3].harm, found[3].with_, found[3].rank) == (None, None, None)
    assert (found[4].harm, found[4].without, found[4].dropped) == (None, None, 1.0)
    assert layer_importances(optuna.create_study()) == []
    same = layer_importances(study_of(subsets(20, 6, 2), [1.0] * 20))
    assert all(layer.harm == 0 and layer.stderr == 0 for layer in same)
    two = layer_importances(study_of(subsets(2, 6, 2), [1.0, 2.0]))
    assert all(layer.harm is None for layer in two)


@pytest.mark.parametrize(
    ("name", "layer"), [("drop_{:02d}_attn", "3a"), ("drop_{:02d}_mlp", "3m"), ("drop_{:02d}", "3")]
)
def test_layers_are_named_as_the_command_line_takes_them(name: str, layer: str) -> None:
    assert (
        layer_importances(study_of(subsets(9, 6, 2), np.arange(9.0), names=name))[3].layer == layer
    )
