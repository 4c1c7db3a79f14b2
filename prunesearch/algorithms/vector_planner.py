"""Proposals of a swarm on real vectors, with a surrogate that chooses among a particle's moves.

R. G. Regis, "Particle swarm with radial basis function surrogates for expensive black-box
optimization" (OPUS), J. Comput. Sci. 5(1), 2014: a particle makes many moves, and the surrogate
chooses one. Particles take turns in three roles:

* *wide*: moves by the law of motion, mutations of the particle's best position or of its leader's,
  and fresh values of a few coordinates. The surrogate is fitted to the best and the latest trials.
* *near*: mutations of the best position within a region, refined on a surrogate of that region.
  The region grows after generations that find a better trial and shrinks after others (R. G. Regis
  and C. A. Shoemaker, "Combining radial basis function surrogates and dynamic coordinate search"
  (DYCORS), Eng. Optim. 45(5), 2013). It is longer in coordinates that matter less.
* *law*: the first move by the law of motion, whatever the surrogate says.

A move is rated by its predicted value and by its distance to earlier trials, with weights that take
turns (R. G. Regis and C. A. Shoemaker, "A stochastic radial basis function method", INFORMS J.
Comput. 19(4), 2007, sec. 3.2). A move that a surrogate predicts to violate a constraint, or to
fail, comes after all others.

All functions are pure. Coordinates are in [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

from prunesearch.algorithms.base import VectorLaw, VectorState
from prunesearch.algorithms.operators import Counts, Real, generator
from prunesearch.algorithms.vector_model import (
    BROKEN,
    EXACT,
    Evaluated,
    VectorModel,
    failure_of,
)
from prunesearch.algorithms.vector_surrogate import AdditiveTrend, squashed

Role = Literal["wide", "near", "law"]
_TURNS: tuple[Role, ...] = (
    *("wide", "near", "near", "wide", "near", "near", "wide", "near", "near", "law"),
)
_MOVES, _TRIES = 150, 64  # moves of each kind; tries per round of refinement
_WIDE_WEIGHTS, _NEAR_WEIGHTS = (0.3, 0.5, 0.8, 0.95), (0.8, 0.95, 1.0, 1.0)
_WAVES, _ROUNDS = 24, 10  # cosines of the trend; rounds of refinement
_ROUGH, _SMOOTH = 1e-3, 8.0  # smoothing of the wide surrogates
_WIDEST, _FIRST, _NARROWEST = 0.8, 0.4, 1e-7  # half the side of the region
_LARGEST_NEAR = 200  # most trials in the surrogate of the region
_STEEPEST = 30.0  # largest ratio of a coordinate's scale to their mean
_PROBE = 2  # stream of random numbers that are thrown away
_KNOWN = 1e-9  # distance at which two positions are the same
_CROWDED = 0.05  # distance in a generation, as a share of the region, that is avoided


def region_in_turn(generation: int) -> float:
    """Return half the side of the region with several objectives, which takes turns.

    Each particle has another goal in each generation, so success says nothing about the size.
    """
    return _FIRST / 2.0 ** (generation % 4)


def region(least_G: Sequence[float]) -> float:
    """Return half the side of the region around the best trial, as a share of the box.

    It doubles after two generations with a better trial, and halves after two without.

    Args:
        least_G: least loss of each generation so far.
    """
    size, won, lost, best = _FIRST, 0, 0, np.inf
    for generation, least in enumerate(least_G):
        better, best = least < best, min(best, least)
        if generation == 0:
            continue
        won, lost = (won + 1, 0) if better else (0, lost + 1)
        if won == 2:
            size, won = min(2.0 * size, _WIDEST), 0
        if lost == 2:
            size, lost = size / 2.0, 0
        if size < _NARROWEST:
            size = _FIRST
    return size


@dataclass(frozen=True)
class Choice:
    """A position that was chosen, before rounding, and what the law of motion stores with it."""

    x_D: Real
    memory: dict[str, Real]


class VectorPlan:
    """The proposals of one generation, computed slot by slot.

    Args:
        law: law of motion.
        states: state of each particle.
        evaluated: trials that the surrogates are fitted to; None to follow the law of motion alone.
        best_D: position of the best trial.
        size: half the side of the region around the best trial (see `region`).
        seed, generation: what the random numbers depend on, with the slot.
        admissible: function that rounds positions to those that parameters can have.
        taken: positions of this generation so far, rounded; the plan adds its own.
    """

    def __init__(
        self,
        law: VectorLaw,
        states: Sequence[VectorState],
        evaluated: Evaluated | None,
        best_D: Real,
        size: float,
        seed: int,
        generation: int,
        admissible: Callable[[Real], Real],
        taken: list[Real] | None = None,
    ) -> None:
        self._law, self._states, self._size = law, states, size
        self._seed, self._generation, self._admissible = seed, generation, admissible
        self._chosen: dict[int, Choice] = {}
        self._taken = [] if taken is None else taken
        self._evaluated, self._best_D = evaluated, admissible(best_D[None])[0]
        probe = law.step(states[0], 1, generator(seed, generation, 0, _PROBE))
        self._has_velocities = "v" in probe
        if evaluated is not None:
            self._failure = failure_of(evaluated)
            self._wide = self._fit_wide(evaluated)
            self._near, self._scale_D = self._fit_near(evaluated)

    def choose(self, slot: int) -> Choice:
        """Return the proposal of a slot. Those of earlier slots are computed first."""
        for earlier in range(slot + 1):
            if earlier not in self._chosen:
                self._chosen[earlier] = self.alone(earlier)
        return self._chosen[slot]

    def alone(self, slot: int) -> Choice:
        """Compute the proposal of a slot after those that were computed before."""
        rng = generator(self._seed, self._generation, slot)
        state = self._states[slot]
        turn = self._generation * len(self._states) + slot
        role = _TURNS[turn % len(_TURNS)]
        if self._evaluated is None or role == "law":
            choice = self._by_law(state, rng)
        elif role == "wide":
            choice = self._widely(state, turn, rng)
        else:
            choice = self._nearby(state, slot, rng)
        self._taken.append(self._admissible(choice.x_D[None])[0])
        return choice

    def _by_law(self, state: VectorState, rng: np.random.Generator) -> Choice:
        """Return the first move by the law of motion, or the first that may be feasible."""
        if self._evaluated is None or not self._evaluated.limit_NC.size:
            moved = self._law.step(state, 1, rng)
            return Choice(moved["x"][0], {name: rows[0] for name, rows in moved.items()})
        moved = self._law.step(state, _MOVES, rng)
        feasible_M = self._wide[0](self._admissible(moved["x"])) < BROKEN
        first = int(np.argmax(feasible_M))
        return Choice(moved["x"][first], {name: rows[first] for name, rows in moved.items()})

    def _fit_wide(self, evaluated: Evaluated) -> tuple[VectorModel, VectorModel]:
        """Fit a surrogate that follows the values closely, and a smooth one."""
        dims = evaluated.x_ND.shape[1]
        centre_D, scale_D = np.full(dims, 0.5), np.full(dims, 2.0)
        close = VectorModel(evaluated, centre_D, scale_D, _WAVES, _ROUGH, None, self._failure)
        trend = close.value.trend
        smooth = VectorModel(evaluated, centre_D, scale_D, _WAVES, _SMOOTH, trend, self._failure)
        return close, smooth

    def _fit_near(self, evaluated: Evaluated) -> tuple[VectorModel, Real]:
        """Fit a surrogate to the trials around the best one.

        Returns:
            The surrogate, and the scale of each coordinate, large where it matters much.
        """
        best_D = self._best_D
        centred_ND = evaluated.x_ND - best_D
        # A region that is longer where parabolas through all trials change less.
        trend = AdditiveTrend(2.0 * evaluated.x_ND - 1.0, squashed(evaluated.value_N), 0)
        reach = max(0.05, self._size)
        scale_D = _relative(trend.effect(2.0 * best_D - 1.0, reach), trend.share)
        # The same with parabolas through the trials of that region.
        rows = self._around(centred_ND * scale_D)
        u_ND = centred_ND[rows] * scale_D / (2.0 * self._size)
        trend = AdditiveTrend(u_ND, squashed(evaluated.value_N[rows]), 0)
        scale_D = scale_D * _relative(trend.effect(np.zeros(best_D.size), 0.5), trend.share)
        scale_D = np.clip(scale_D / np.exp(np.log(scale_D).mean()), 1.0 / _STEEPEST, _STEEPEST)
        # The surrogate of the final region.
        rows = self._around(centred_ND * scale_D)
        around = Evaluated(
            evaluated.x_ND[rows],
            evaluated.value_N[rows],
            evaluated.limit_NC[rows],
            evaluated.failed_FD,
        )
        per_region_D = scale_D / (2.0 * self._size)
        model = VectorModel(around, best_D, per_region_D, 0, EXACT, None, self._failure)
        return model, scale_D

    def _around(self, offset_ND: Real) -> Counts:
        """Return the trials within twice the region, or the nearest ones if these are few.

        Args:
            offset_ND: distances to the best trial along each coordinate, scaled.
        """
        distance_N = np.abs(offset_ND).max(axis=1)
        inside = int((distance_N < 2.0 * self._size).sum())
        count = max(2 * offset_ND.shape[1] + 2, min(inside, _LARGEST_NEAR))
        return np.argsort(distance_N, kind="stable")[:count]

    def _widely(self, state: VectorState, turn: int, rng: np.random.Generator) -> Choice:
        """Choose among moves by the law of motion, mutations and fresh coordinates."""
        model = self._wide[turn // 3 % 2]
        dims = state.x_D.size
        moved = self._law.step(state, _MOVES, rng)
        # Mutate some coordinates of the particle's best position, or of its leader's.
        from_own_M1 = rng.random((_MOVES, 1)) < 0.5
        base_MD = np.where(from_own_M1, state.own_D, state.leader_D)
        mask_MD = _some(rng, dims, 10.0)
        reach_M1 = 10.0 ** rng.uniform(-2.0, -0.3, (_MOVES, 1))
        mutated_MD = _reflect(base_MD + mask_MD * reach_M1 * rng.standard_normal((_MOVES, dims)))
        # Draw a few coordinates afresh.
        mask_MD = _some(rng, dims, 2.0)
        fresh_MD = np.where(mask_MD, rng.random((_MOVES, dims)), base_MD)
        x_MD = np.concatenate([moved["x"], mutated_MD, fresh_MD])
        weight = _WIDE_WEIGHTS[turn % len(_WIDE_WEIGHTS)]
        x_D, best = self._best(model, x_MD, weight)
        if weight == _WIDE_WEIGHTS[-1]:
            return self._as_move(state, self._polish(model, x_D, rng))
        if best < _MOVES:
            return Choice(x_D, {name: rows[best] for name, rows in moved.items()})
        return self._as_move(state, x_D)

    def _nearby(self, state: VectorState, slot: int, rng: np.random.Generator) -> Choice:
        """Choose among mutations of the best position within the region."""
        dims = state.x_D.size
        mask_MD = _some(rng, dims, 10.0, 2 * _MOVES)
        reach_M1 = 0.5 * self._size * 10.0 ** rng.uniform(-1.0, 0.0, (2 * _MOVES, 1))
        step_MD = mask_MD * reach_M1 / self._scale_D * rng.standard_normal((2 * _MOVES, dims))
        weight = _NEAR_WEIGHTS[slot % len(_NEAR_WEIGHTS)]
        x_D, _ = self._best(self._near, _reflect(self._best_D + step_MD), weight)
        if weight == 1.0:
            x_D = self._refine(x_D, rng)
        return self._as_move(state, x_D)

    def _best(self, model: VectorModel, x_MD: Real, weight: float) -> tuple[Real, int]:
        """Return the move with the best sum of predicted value and distance, and its row.

        Args:
            model: surrogate that predicts the values.
            x_MD: moves.
            weight: weight of the value; the distance has the rest.
        """
        rounded_MD = self._admissible(x_MD)
        value_M = model(rounded_MD)
        distance_M = self._distance(model, rounded_MD)
        possible_M = value_M < BROKEN
        # Scale both to [0, 1]; positions that may be feasible determine the scale.
        scaled_M = value_M - value_M.min()
        if possible_M.any():
            scaled_M = scaled_M / (np.ptp(value_M[possible_M]) or 1.0)
        far_M = (distance_M.max() - distance_M) / (np.ptp(distance_M) or 1.0)
        rating_M = weight * scaled_M + (1.0 - weight) * far_M + 10.0 * (distance_M < _KNOWN)
        if weight == 1.0 and self._taken:
            crowded = _CROWDED * self._size * np.sqrt(x_MD.shape[1]) / 3.0
            rating_M += 0.5 * (cdist(rounded_MD, np.array(self._taken)).min(axis=1) < crowded)
        best = int(np.argmin(np.round(rating_M, 9)))
        return x_MD[best], best

    def _distance(self, model: VectorModel, x_MD: Real) -> Real:
        """Return the distance to the nearest earlier position."""
        evaluated = model.evaluated
        taken_TD = np.array(self._taken).reshape(-1, x_MD.shape[1])
        earlier_ND = np.concatenate([evaluated.x_ND, evaluated.failed_FD, taken_TD])
        return np.asarray(cdist(x_MD, earlier_ND).min(axis=1))

    def _polish(self, model: VectorModel, x_D: Real, rng: np.random.Generator) -> Real:
        """Improve a position on a wide surrogate, one or two coordinates at a time."""
        value = float(model(self._admissible(x_D[None]))[0])
        for _ in range(_ROUNDS):
            mask_MD = _some(rng, x_D.size, 1.5, _TRIES)
            small_MD = np.clip(x_D + 0.05 * rng.standard_normal((_TRIES, x_D.size)), 0.0, 1.0)
            fresh_M1 = rng.random((_TRIES, 1)) < 0.5
            tried_MD = np.where(fresh_M1, rng.random((_TRIES, x_D.size)), small_MD)
            x_D, value = self._improve(model, x_D, value, np.where(mask_MD, tried_MD, x_D))
        return x_D

    def _refine(self, x_D: Real, rng: np.random.Generator) -> Real:
        """Improve a position on the surrogate of the region, in steps that shrink."""
        value, reach = float(self._near(self._admissible(x_D[None]))[0]), 0.25 * self._size
        for _ in range(_ROUNDS):
            mask_MD = _some(rng, x_D.size, max(0.5 * x_D.size, 1.0), _TRIES)
            step_MD = mask_MD * reach / self._scale_D * rng.standard_normal(mask_MD.shape)
            before = value
            x_D, value = self._improve(self._near, x_D, value, np.clip(x_D + step_MD, 0.0, 1.0))
            if value == before:
                reach /= 2.0
        return x_D

    def _improve(
        self, model: VectorModel, x_D: Real, value: float, tried_MD: Real
    ) -> tuple[Real, float]:
        """Return the best of some positions and its value if it is better and new."""
        rounded_MD = self._admissible(tried_MD)
        value_M = model(rounded_MD)
        best = int(np.argmin(value_M))
        if value_M[best] >= value or self._distance(model, rounded_MD[[best]])[0] < _KNOWN:
            return x_D, value
        return tried_MD[best], float(value_M[best])

    def _as_move(self, state: VectorState, x_D: Real) -> Choice:
        """Return a position that the law of motion did not propose, with the velocity of the step
        to it.
        """
        memory = {"x": x_D}
        if self._has_velocities:
            memory["v"] = x_D - state.x_D
        return Choice(x_D, memory)


class FrontPlan:
    """The proposals of one generation with several objectives: each slot has a plan of its own.

    Every particle minimises another scalarisation of the objectives, so it has a surrogate of its
    own, as in J. Knowles, "ParEGO", IEEE TEVC 10(1), 2006.

    Args:
        plan_of: function that returns the plan of a slot; it is given the positions of this
            generation so far.
    """

    def __init__(self, plan_of: Callable[[int, list[Real]], VectorPlan]) -> None:
        self._plan_of = plan_of
        self._chosen: dict[int, Choice] = {}
        self._taken: list[Real] = []

    def choose(self, slot: int) -> Choice:
        """Return the proposal of a slot. Those of earlier slots are computed first."""
        for earlier in range(slot + 1):
            if earlier not in self._chosen:
                self._chosen[earlier] = self.alone(earlier)
        return self._chosen[slot]

    def alone(self, slot: int) -> Choice:
        """Compute the proposal of a slot after those that were computed before."""
        return self._plan_of(slot, self._taken).alone(slot)


def _relative(effect_D: Real, share: float) -> Real:
    """Return the scale of each coordinate, whose geometric mean is 1, from the effect of each.

    The effect of a curved coordinate grows with the square of its length. The less the trend
    predicts, the more equal are the scales.

    Args:
        effect_D: effect of each coordinate, by `AdditiveTrend.effect`.
        share: share of the variance that the trend predicts.
    """
    root_D = np.sqrt(effect_D + 1e-3 * effect_D.max() + 1e-12)
    relative_D = root_D / np.exp(np.log(root_D).mean())
    trusted = min(max(share, 0.0), 1.0)
    return np.asarray(np.clip(relative_D**trusted, 1.0 / _STEEPEST, _STEEPEST))


def _some(rng: np.random.Generator, dims: int, expected: float, rows: int = _MOVES) -> Real:
    """Return rows of zeros and ones with at least one 1, and about `expected` many."""
    mask_MD = rng.random((rows, dims)) < expected / dims
    mask_MD[np.arange(rows), rng.integers(dims, size=rows)] = True
    return mask_MD.astype(np.float64)


def _reflect(x_MD: Real) -> Real:
    """Reflect coordinates at the bounds."""
    x_MD = np.where(x_MD < 0.0, -x_MD, x_MD)
    return np.clip(np.where(x_MD > 1.0, 2.0 - x_MD, x_MD), 0.0, 1.0)
