"""Baselines of the swarms under equal conditions: the same subsets, history and novelty.

* `Evolution`: the (1 + lambda) search of O. Sieberling et al., "EvoPress", ICML 2025,
  arXiv:2410.14649, sec. 3: the best subset is the only parent, and a child differs by min(U(1, 3),
  U(1, 3)) swaps, each within one kind of unit.
* `Genetic`: tournament selection, uniform set crossover and swap mutation, elitist.
* `Annealing`: S. Kirkpatrick, C. D. Gelatt and M. P. Vecchi, Science 220, 1983, one chain per
  particle, geometric cooling.
* `RandomSearch`: uniform random subsets.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import (
    Real,
    SubsetConstraints,
    drift,
    random_subsets,
    swap,
    top,
)


@dataclass(frozen=True)
class Evolution:
    """EvoPress: mutate the best subset only."""

    most: int = 3  # largest number of swaps
    name: str = "evolution"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` mutants of the best subset."""
        parent_MD = np.broadcast_to(swarm.leader(particle), (count, swarm.units.free_D.size))
        flips_M = np.minimum(
            rng.integers(1, self.most + 1, count), rng.integers(1, self.most + 1, count)
        )
        # Distribute the swaps over the kinds of units, and swap within each kind.
        kinds = np.unique(swarm.units.group_D[swarm.units.free_D])
        flips_MK = rng.multinomial(flips_M, np.full(kinds.size, 1.0 / kinds.size))
        child_MD = np.zeros(parent_MD.shape, dtype=np.bool_)
        for kind, flips_M in zip(kinds, flips_MK.T, strict=True):
            of_kind = SubsetConstraints.of(swarm.units.group_D == kind, 0, swarm.units.k_max)
            free = SubsetConstraints.of(swarm.units.free_D & of_kind.free_D, 0, swarm.units.k_max)
            child_MD |= swap(parent_MD & of_kind.free_D, free, flips_M, rng)
        return Moves(drift(child_MD, swarm.units, rng))


@dataclass(frozen=True)
class Genetic:
    """Genetic algorithm with the study's best distinct subsets as its population."""

    mutation: float = 0.7  # probability of one random swap
    name: str = "ga"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` children of two parents, each the better of two drawn."""
        survivors_ED = swarm.elite_ED[: len(swarm.X_PD)]
        parents = rng.integers(len(survivors_ED), size=(2, 2, count)).min(
            axis=0
        )  # the elite is sorted
        mother_MD, father_MD = survivors_ED[parents[0]], survivors_ED[parents[1]]
        gene_MD = np.where(rng.random(mother_MD.shape) < 0.5, mother_MD, father_MD)
        pool_MD = mother_MD | father_MD
        # Fill or trim the child to the mother's size, at random from the units of its parents.
        child_MD = top(2.0 * gene_MD + pool_MD + rng.random(pool_MD.shape), mother_MD.sum(1))
        mutated_M = (rng.random(count) < self.mutation).astype(np.intp)
        return Moves(drift(swap(child_MD, swarm.units, mutated_M, rng), swarm.units, rng))


@dataclass(frozen=True)
class Annealing:
    """Simulated annealing on the relative loss."""

    hot: float = 0.2  # initial temperature, as a share of the current loss
    cooling: float = 0.9  # per generation
    name: str = "annealing"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` neighbours of the chain's current subset.

        The memory ``from`` is that subset's trial.
        """
        X_D, loss = swarm.X_PD[particle], float(swarm.loss_P[particle])
        here = int(swarm.number_P[particle])
        before = int(swarm.memory_P[particle].get("from", np.array([here]))[0])
        old = float(swarm.view.loss_NO[before, 0])
        # Metropolis rule: keep the last proposal, or go back to the subset before it.
        temperature = self.hot * self.cooling**swarm.generation * max(abs(old), 1e-12)
        accepted = loss <= old or (
            np.isfinite(loss) and rng.random() < np.exp(-(loss - old) / temperature)
        )
        current = here if accepted else before
        chain_MD = np.broadcast_to(swarm.view.X_ND[current], (count, X_D.size))
        Y_MD = drift(
            swap(chain_MD, swarm.units, np.ones(count, dtype=np.intp), rng), swarm.units, rng
        )
        origin: Real = np.full((count, 1), float(current))
        return Moves(Y_MD, {"from": origin})


@dataclass(frozen=True)
class RandomSearch:
    """Uniform random subsets."""

    name: str = "random"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` random subsets."""
        sizes = rng.integers(swarm.units.k_min, swarm.units.k_max + 1, size=count)
        return Moves(random_subsets(swarm.units, sizes, rng))
