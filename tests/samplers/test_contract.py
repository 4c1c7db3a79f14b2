"""Optuna's own contract suites for samplers, over plain parameters."""

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from prunesearch import PSOSampler, WOASampler


def _suites(make: Callable[[], BaseSampler]) -> type:
    class Contract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
        @pytest.fixture
        def sampler(self) -> Callable[[], BaseSampler]:
            return make

    return Contract


class TestPSO(_suites(PSOSampler)):  # type: ignore[misc]
    """Every suite, with the sampler as a user gets it."""


class TestWOA(_suites(WOASampler)):  # type: ignore[misc]
    """Every suite, with the sampler as a user gets it."""


class TestSmallSwarm(_suites(lambda: PSOSampler(population=3))):  # type: ignore[misc]
    """With generations that end in the middle of every test."""


class TestAsynchronous(_suites(lambda: WOASampler(population=3, asynchronous=True))):  # type: ignore[misc]
    """Without generations."""
