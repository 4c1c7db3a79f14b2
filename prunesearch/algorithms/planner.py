"""Proposals of a generation: first subsets, moves, pre-selection and novelty.

All functions are pure.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np

from prunesearch.algorithms import pareto
from prunesearch.algorithms.acquisition import Acquisition, ParticleGoal, SurrogateEnsemble
from prunesearch.algorithms.base import Algorithm, Moves
from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.gaussian_process import (
    FEWEST,
    LARGEST,
    LARGEST_NOISY,
    GaussianProcess,
    normal_scores,
)
from prunesearch.algorithms.history import (
    Memory,
    Swarm,
    View,
    gather,
)
from prunesearch.algorithms.operators import Counts, Mask, Real, generator
from prunesearch.algorithms.surrogate import Ranking
from prunesearch.errors import InputError

# Each purpose has its own stream of random numbers, so that one cannot shift another.
_MOVES, _NOVELTY, _REFINE, _LEADERS, _REPAIR = range(5)
_LARGEST_LOSS = 1e100  # beyond it the variance of losses is not a number
_MOST_NOISE = 0.8  # largest share of the scatter of noisy losses that is noise
_DESIGN = 2**31  # stands for the generation number of the first subsets


@dataclass(frozen=True)
class Preselection:
    """Settings of the surrogate that chooses among a particle's moves.

    Attributes:
        proposals: number of moves of each particle.
        rounds: most rounds of local search. Each scans all exchanges of one unit of the best
            subset, at most three times, or tries `proposals` random level switches of widths.
        exploration: number of standard deviations that are subtracted from the mean. A larger one
            explores more.
        min_correlation: leave-one-out correlation of the surrogate below which every other particle
            ignores it.
        caution, trust: old names of `exploration` and `min_correlation`.
    """

    proposals: int = 32
    rounds: int = 8
    exploration: float = 2.0
    min_correlation: float = 0.25
    caution: InitVar[float | None] = None
    trust: InitVar[float | None] = None

    def __post_init__(self, caution: float | None, trust: float | None) -> None:
        """Accept the old names for one release."""
        for old, new, value in (
            ("caution", "exploration", caution),
            ("trust", "min_correlation", trust),
        ):
            if value is not None:
                # The default cannot be told from a value that was given.
                if getattr(self, new) not in (getattr(type(self), new), value):
                    raise InputError(
                        f"{old} {value} and {new} {getattr(self, new)} contradict each other: give "
                        f"{new} only"
                    )
                warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=3)
                object.__setattr__(self, new, value)

    def stored(self) -> dict[str, float]:
        """Return the settings as studies store them, under the names of the first release."""
        return {
            "proposals": self.proposals,
            "rounds": self.rounds,
            "caution": self.exploration,
            "trust": self.min_correlation,
        }


@dataclass(frozen=True)
class Planner:
    """Derives the proposals of a study from its history.

    Attributes:
        algorithm: algorithm that moves a particle.
        constraints: constraints on the subsets.
        seed: seed of the random generator.
        population: number of particles.
        preselection: settings of the surrogate; None to take each particle's first move.
        ranking: prior ranking of the units, or None.
        novelty: never propose a subset twice while there are others.
        first_ED: subsets that are proposed before all others.
    """

    algorithm: Algorithm
    constraints: Constraints
    seed: int
    population: int
    preselection: Preselection | None = field(default_factory=Preselection)
    ranking: Ranking | None = None
    novelty: bool = True
    first_ED: Sequence[Mask] = ()

    def propose(
        self,
        view: View,
        generation: int,
        slots: Sequence[int],
        seen: set[bytes],
        pending: Sequence[Mask] = (),
    ) -> Iterator[tuple[Mask, Memory]]:
        """Propose a subset for some slots of a generation, one at a time.

        The surrogate is fitted for the first slot. Each further slot is computed when it is taken,
        so that no single trial waits for the whole generation.

        Args:
            view: finished trials.
            generation: number of the generation.
            slots: slots to propose for.
            seen: all subsets of the study. The new ones are added.
            pending: subsets that are being evaluated.

        Yields:
            The subset and the memory of each slot.
        """
        leaders = generator(self.seed, generation, 0, _LEADERS)
        swarm = (
            gather(view, self.constraints, generation, self.population, leaders)
            if generation
            else None
        )
        # The surrogate takes the subsets under way into account.
        model = None if swarm is None else self._model(swarm)
        if model is not None:
            for X_D in pending:
                model.condition_on_pending(X_D)
        # Move the particles one by one. Without a swarm to move, propose first subsets.
        for slot in slots:
            index = generation * self.population + slot
            if swarm is None or index < len(self.first_ED):
                yield self._novel(self.first(index), {}, generation, slot, seen)
            else:
                yield self._next(swarm, model, slot, seen)

    def _next(
        self, swarm: Swarm, model: SurrogateEnsemble | None, slot: int, seen: set[bytes]
    ) -> tuple[Mask, Memory]:
        """Propose the next subset of one particle."""
        rng = generator(self.seed, swarm.generation, slot, _MOVES)
        # Without a surrogate, take the first move.
        if model is None or self.preselection is None or self._goes_alone(model, slot):
            moves = self._moves(swarm, slot, 1, rng)
            return self._novel(moves.X_MD[0], moves.recall(0), swarm.generation, slot, seen)
        # With one, make many moves and let it choose.
        moves = self._moves(swarm, slot, self.preselection.proposals, rng)
        refining = generator(self.seed, swarm.generation, slot, _REFINE)
        goal = self._goal(swarm, slot)
        if goal.constraints.fixed:
            sizes_M = np.full(len(moves.X_MD), goal.constraints.k_min)
            resized_MD = self.constraints.resize(moves.X_MD, sizes_M, refining)
            moves = Moves(resized_MD, moves.memory)
        acquisition = Acquisition(
            model,
            goal,
            self.preselection.proposals,
            self.preselection.rounds,
            seen if self.novelty else (),
        )
        best_D, start = acquisition.select(moves.X_MD, refining)
        X_D, memory = self._novel(best_D, moves.recall(start), swarm.generation, slot, seen)
        model.condition_on_pending(X_D)
        return X_D, memory

    def _goes_alone(self, model: SurrogateEnsemble, slot: int) -> bool:
        """Return whether a particle ignores the surrogate: every other one does while the fit is
        poor.
        """
        assert self.preselection is not None
        return slot % 2 == 1 and model.correlation < self.preselection.min_correlation

    def _moves(self, swarm: Swarm, slot: int, count: int, rng: np.random.Generator) -> Moves:
        """Return moves of one particle that satisfy the constraints."""
        moves = self.algorithm.move(swarm, slot, count, rng)
        repairing = generator(self.seed, swarm.generation, slot, _REPAIR)
        return Moves(self.constraints.repaired(moves.X_MD, repairing), moves.memory)

    def _goal(self, swarm: Swarm, slot: int) -> ParticleGoal:
        """Return the goal of a particle.

        If the size is free and is an objective, every other particle searches the best subset of
        one size, because a front needs the best of every size. The sizes take turns. The other
        particles fill the gaps of the front.
        """
        weight_O = pareto.weights(
            slot, swarm.generation, self.population, swarm.view.history.objectives
        )
        if weight_O.size == 1 or self.constraints.fixed or (slot + swarm.generation) % 2:
            return ParticleGoal(self.constraints, weight_O)
        sizes = self.constraints.k_max - self.constraints.k_min + 1
        one_size = self.constraints.of_size(self.constraints.k_min + int(weight_O[0] * sizes))
        return ParticleGoal(one_size, np.eye(weight_O.size)[0])

    def first(self, index: int) -> Mask:
        """Return a first subset.

        It is the same for every algorithm, so that a second search finds it in the cache.
        """
        if index < len(self.first_ED):
            return self.first_ED[index]
        block, place = divmod(index - len(self.first_ED), self.population)
        rng = generator(self.seed, _DESIGN + block, 0)
        X_PD = self.constraints.first_subsets(
            self.population, block, self.ranking, self.first_ED, rng
        )
        return np.asarray(X_PD[place])

    def _novel(
        self, X_D: Mask, memory: Memory, generation: int, slot: int, seen: set[bytes]
    ) -> tuple[Mask, Memory]:
        """Replace a subset that was proposed before by a new one, and remember it."""
        if self.novelty:
            rng = generator(self.seed, generation, slot, _NOVELTY)
            X_D = self.constraints.unseen(X_D, seen, rng)
        seen.add(X_D.tobytes())
        return X_D, memory

    def _model(self, swarm: Swarm) -> SurrogateEnsemble | None:
        """Fit one surrogate per objective to the trials.

        The result is None if there are too few.
        """
        if self.preselection is None:
            return None
        rows, loss_NO = swarm.view.estimated
        error_N = swarm.view.history.error_N[rows]
        noisy = loss_NO.shape[1] == 1 and bool(np.isfinite(error_N).all())
        surrogates: list[GaussianProcess] = []
        for loss_N in loss_NO.T:
            kept = _informative(loss_N, LARGEST_NOISY if noisy else LARGEST)
            X_ND, first = _distinct(swarm.view.X_ND[rows[kept]])
            if len(X_ND) < FEWEST:
                return None
            chosen = kept[first]
            score_N, noise_N = _scores(loss_N[chosen], error_N[chosen] if noisy else None)
            surrogates.append(self.constraints.surrogate(X_ND, score_N, self.ranking, noise_N))
        return SurrogateEnsemble(surrogates, self.preselection.exploration)


def _distinct(X_ND: Mask) -> tuple[Mask, Counts]:
    """Return each subset once, and the index of its first occurrence."""
    first: dict[bytes, int] = {}
    for place, X_D in enumerate(X_ND):
        first.setdefault(X_D.tobytes(), place)
    location = np.array(list(first.values()), dtype=np.intp)
    return X_ND[location], location


def _scores(loss_N: Real, error_N: Real | None) -> tuple[Real, Real | None]:
    """Return what the surrogate is fitted to, and the variance of its noise.

    These are the normal scores of the losses, with noise that is not known. If losses have standard
    errors, they are the losses with mean 0 and variance 1, because errors are on the scale of the
    losses. The variance of all trials is pooled: a trial's own estimate depends on its loss. Errors
    may be shared by all trials, so noise explains at most a part of the scatter.
    """
    if error_N is None or np.abs(loss_N).max() > _LARGEST_LOSS or np.ptp(loss_N) < 1e-12:
        return normal_scores(loss_N), None
    spread = float(loss_N.std())
    noise = min(float((error_N**2).mean()) / spread**2, _MOST_NOISE)
    return (loss_N - loss_N.mean()) / spread, np.full(loss_N.size, noise)


def _informative(loss_N: Real, most: int) -> Counts:
    """Return the trials that the surrogate is fitted to: all, or the best and the latest if there
    are more than `most`.
    """
    if loss_N.size <= most:
        return np.arange(loss_N.size)
    half = most // 2
    best = np.argpartition(loss_N, half - 1)[:half]
    latest = np.ones(loss_N.size, dtype=np.bool_)
    latest[best] = False
    return np.sort(np.concatenate([best, np.flatnonzero(latest)[-half:]]))
