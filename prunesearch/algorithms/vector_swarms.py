"""PSO and WOA as in their papers: on real vectors, with a decoding that turns a vector into a
subset.

The vectors live in [0, 1]^D. Two laws of motion:

* PSO. J. Kennedy and R. Eberhart, ICNN 1995, with the constriction of M. Clerc and J. Kennedy, IEEE
  TEVC 6(1), 2002:
      v <- w v + c1 r1 (p - x) + c2 r2 (g - x),   x <- x + v          w = .729, c1 = c2 = 1.496
  Bounds reflect nothing: a coordinate that leaves is set to the bound and its velocity to zero.
* WOA. S. Mirjalili and A. Lewis, Adv. Eng. Softw. 95, 2016, doi 10.1016/j.advengsoft.2016.01.008,
  eqs. 2.1 to 2.8.

and three decodings:

* `keys`: random keys, J. C. Bean, ORSA J. Comput. 6(2), 1994; the K largest keys are chosen, and
  bests enter the motion as keys, untransformed (K. Boudt and C. Wan, Optim. Lett. 14, 2020, doi
  10.1007/s11590-019-01398-w, sec. 3: with transformed ones the swarm stagnates).
* `slots`: K coordinates, each an integer that names a unit, as in Ratsapa et al., AI 6(5):96, 2025;
  a unit that is named twice is repaired to the next free one.
* `binary`: J. Kennedy and R. Eberhart, SMC 1997: the coordinate's S-shaped transfer 1 / (1 +
  exp(-v)) is the probability that its unit is chosen; the number of units is repaired by dropping
  the least and adding the most probable ones. For WOA the new coordinate takes the velocity's place
  (A. G. Hussien et al., 2017).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Memory, Swarm
from prunesearch.algorithms.operators import (
    Counts,
    Mask,
    Real,
    SubsetConstraints,
    top,
)

Form = Literal["keys", "slots", "binary"]
W, C = 0.729, 1.496
_SLOPE = 8.0  # of the S-shape: coordinates in [0, 1] become velocities in [-4, 4], Kennedy and Eberhart's V_max


def pso_step(
    x_D: Real, v_D: Real, own_D: Real, leader_D: Real, count: int, rng: np.random.Generator
) -> tuple[Real, Real]:
    """Take one step of canonical PSO, `count` times independently.

    Returns:
        Positions and velocities, each of shape (M, D).
    """
    shape = (count, x_D.size)
    v_MD = (
        W * v_D + C * rng.random(shape) * (own_D - x_D) + C * rng.random(shape) * (leader_D - x_D)
    )
    x_MD = x_D + v_MD
    outside_MD = (x_MD < 0.0) | (x_MD > 1.0)
    return np.clip(x_MD, 0.0, 1.0), np.where(outside_MD, 0.0, v_MD)


def woa_step(
    x_D: Real,
    leader_D: Real,
    others_PD: Real,
    generation: int,
    cycle: int,
    count: int,
    rng: np.random.Generator,
) -> Real:
    """Take one step of WOA, `count` times independently, and return positions of shape (M, D).

    `a` falls from 2 to 0 over `cycle` generations and starts again.
    """
    shape = (count, x_D.size)
    a = 2.0 * (1.0 - (max(generation, 1) - 1) % cycle / cycle)
    A_MD = 2.0 * a * rng.random(shape) - a  # eq. 2.3
    C_MD = 2.0 * rng.random(shape)  # eq. 2.4
    random_MD = others_PD[rng.integers(len(others_PD), size=count)]
    goal_MD = np.where(
        np.abs(A_MD) >= 1.0, random_MD, leader_D
    )  # in each coordinate, A being a vector
    closing_MD = goal_MD - A_MD * np.abs(C_MD * goal_MD - x_D)  # eqs. 2.1, 2.2 and 2.7, 2.8
    l_M = rng.uniform(-1.0, 1.0, size=(count, 1))
    spiral_MD = (
        np.abs(leader_D - x_D) * np.exp(l_M) * np.cos(2.0 * np.pi * l_M) + leader_D
    )  # eq. 2.5 with b = 1
    return np.clip(
        np.where(rng.random((count, 1)) < 0.5, closing_MD, spiral_MD), 0.0, 1.0
    )  # eq. 2.6


@dataclass(frozen=True)
class VectorSwarm:
    """A law of motion with a decoding.

    Attributes:
        law: ``pso`` or ``woa``.
        form: ``keys``, ``slots`` or ``binary``.
        cycle: number of generations in which WOA's a falls from 2 to 0.
    """

    law: Literal["pso", "woa"]
    form: Form
    cycle: int = 10

    @property
    def name(self) -> str:
        """Law and encoding, such as ``pso-keys``."""
        return f"{self.law}-{self.form}"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` proposals with their coordinates ``x`` and velocities ``v``."""
        x_D = self._coordinates(swarm.units, swarm.memory_P[particle], swarm.X_PD[particle])
        leader_D = self._coordinates(
            swarm.units,
            swarm.view.history.memories[int(swarm.leader_P[particle])],
            swarm.leader(particle),
        )
        if self.law == "woa":
            others = []
            for memory, other_D in zip(swarm.memory_P, swarm.X_PD, strict=True):
                others.append(self._coordinates(swarm.units, memory, other_D))
            x_MD = woa_step(
                x_D, leader_D, np.stack(others), swarm.generation, self.cycle, count, rng
            )
            return Moves(self._decode(swarm.units, x_MD, rng), {"x": x_MD})
        own_D = self._coordinates(
            swarm.units, swarm.best_memory_P[particle], swarm.best_X_PD[particle]
        )
        v_D = swarm.memory_P[particle].get("v", np.zeros(x_D.size))
        x_MD, v_MD = pso_step(x_D, v_D, own_D, leader_D, count, rng)
        return Moves(self._decode(swarm.units, x_MD, rng), {"x": x_MD, "v": v_MD})

    def _coordinates(self, units: SubsetConstraints, memory: Memory, X_D: Mask) -> Real:
        """Return the stored coordinates, or coordinates that decode to the subset if none were
        stored.
        """
        if "x" in memory:
            return memory["x"]
        if self.form == "slots":
            free = np.flatnonzero(units.free_D)
            named = np.searchsorted(free, np.flatnonzero(X_D))
            return np.asarray((np.resize(named, units.k_max) + 0.5) / free.size)
        return np.where(X_D, 0.75, 0.25)

    def _decode(self, units: SubsetConstraints, x_MD: Real, rng: np.random.Generator) -> Mask:
        """Decode coordinates to subsets that satisfy the constraints."""
        if self.form == "slots":
            return np.stack([_name_units(units, x_D) for x_D in x_MD])
        score_MD = np.where(units.free_D, x_MD, -1.0)
        if self.form == "keys":
            sizes = (x_MD[:, units.free_D] > 0.5).sum(axis=1)
            return top(score_MD, np.clip(sizes, units.k_min, units.k_max))
        probability_MD = 1.0 / (1.0 + np.exp(-_SLOPE * (x_MD - 0.5)))
        drawn_MD = (rng.random(x_MD.shape) < probability_MD) & units.free_D
        size_M: Counts = np.clip(drawn_MD.sum(axis=1), units.k_min, units.k_max)
        return top(
            score_MD + 2.0 * drawn_MD, size_M
        )  # drawn units first, each kind by its probability


def _name_units(units: SubsetConstraints, x_K: Real) -> Mask:
    """Decode integer slots.

    A unit that is already named is replaced by the next free one, cyclically.
    """
    free = np.flatnonzero(units.free_D)
    X_D = np.zeros_like(units.free_D)
    for slot in np.minimum((x_K * free.size).astype(np.intp), free.size - 1).tolist():
        if X_D[free[slot]] and not units.fixed:
            continue
        while X_D[free[slot]]:
            slot = (slot + 1) % free.size
        X_D[free[slot]] = True
    return X_D
