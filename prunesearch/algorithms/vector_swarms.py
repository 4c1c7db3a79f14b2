"""Swarms of real vectors, with a decoding that turns a vector into a subset.

The vectors live in [0, 1]^D. A law of motion (`algorithms.base.VectorLaw`) moves them, as the paper
on the algorithm has it. There are three decodings:

* `keys`: random keys, J. C. Bean, ORSA J. Comput. 6(2), 1994; the K largest keys are chosen, and
  bests enter the motion as keys, untransformed (K. Boudt and C. Wan, Optim. Lett. 14, 2020, doi
  10.1007/s11590-019-01398-w, sec. 3: with transformed ones the swarm stagnates).
* `slots`: K coordinates, each an integer that names a unit, as in Ratsapa et al., AI 6(5):96, 2025;
  a unit that is named twice is repaired to the next free one.
* `binary`: J. Kennedy and R. Eberhart, SMC 1997: the coordinate's S-shaped transfer 1 / (1 +
  exp(-v)) is the probability that its unit is chosen; the number of units is repaired by dropping
  the least and adding the most probable ones. For a law without velocities the new coordinate takes
  the velocity's place (A. G. Hussien et al., 2017, for WOA).
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves, VectorLaw, VectorState
from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.history import Memory, Swarm
from prunesearch.algorithms.operators import Counts, Mask, Real, top

# Slope of the S-shape: coordinates in [0, 1] become velocities in [-4, 4], Kennedy and Eberhart's
# V_max.
_SLOPE = 8.0


@dataclass(frozen=True)
class VectorSwarm:
    """A law of motion with a decoding.

    Attributes:
        law: law of motion.
        encoding: ``keys``, ``slots`` or ``binary``.
    """

    law: VectorLaw
    encoding: str

    @property
    def name(self) -> str:
        """Law and encoding, such as ``pso-keys``."""
        return f"{self.law.name}-{self.encoding}"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` proposals with their coordinates ``x`` and what else the law stores."""
        constraints = swarm.constraints
        # Read the coordinates of all particles, of the particle's best and of its leader.
        positions = []
        for memory, X_D in zip(swarm.memory_P, swarm.X_PD, strict=True):
            positions.append(self._coordinates(constraints, memory, X_D))
        all_PD = np.stack(positions)
        own_D = self._coordinates(
            constraints, swarm.best_memory_P[particle], swarm.best_X_PD[particle]
        )
        leader_memory = swarm.view.history.memories[int(swarm.leader_P[particle])]
        leader_D = self._coordinates(constraints, leader_memory, swarm.leader(particle))
        x_D = all_PD[particle]
        v_D = swarm.memory_P[particle].get("v", np.zeros(x_D.size))
        # Take a step, and decode it.
        state = VectorState(x_D, v_D, own_D, leader_D, all_PD, swarm.generation)
        moved = self.law.step(state, count, rng)
        return Moves(self._decode(constraints, moved["x"], rng), moved)

    def _coordinates(self, constraints: Constraints, memory: Memory, X_D: Mask) -> Real:
        """Return the stored coordinates, or coordinates that decode to the subset if none were
        stored.
        """
        if "x" in memory:
            return memory["x"]
        if self.encoding == "slots":
            free = np.flatnonzero(constraints.free_D)
            named = np.searchsorted(free, np.flatnonzero(X_D))
            return np.asarray((np.resize(named, constraints.k_max) + 0.5) / free.size)
        return constraints.keys(X_D)

    def _decode(self, constraints: Constraints, x_MD: Real, rng: np.random.Generator) -> Mask:
        """Decode coordinates to subsets that satisfy the constraints."""
        if self.encoding == "slots":
            return np.stack([_name_units(constraints, x_D) for x_D in x_MD])
        if self.encoding == "keys":
            return constraints.from_keys(x_MD, rng)
        score_MD = np.where(constraints.free_D, x_MD, -1.0)
        probability_MD = 1.0 / (1.0 + np.exp(-_SLOPE * (x_MD - 0.5)))
        drawn_MD = (rng.random(x_MD.shape) < probability_MD) & constraints.free_D
        size_M: Counts = np.clip(drawn_MD.sum(axis=1), constraints.k_min, constraints.k_max)
        return top(
            score_MD + 2.0 * drawn_MD, size_M
        )  # drawn units first, each kind by its probability


def _name_units(constraints: Constraints, x_K: Real) -> Mask:
    """Decode integer slots.

    A unit that is already named is replaced by the next free one, cyclically.
    """
    free = np.flatnonzero(constraints.free_D)
    X_D = np.zeros_like(constraints.free_D)
    for slot in np.minimum((x_K * free.size).astype(np.intp), free.size - 1).tolist():
        if X_D[free[slot]] and not constraints.fixed:
            continue
        while X_D[free[slot]]:
            slot = (slot + 1) % free.size
        X_D[free[slot]] = True
    return X_D
