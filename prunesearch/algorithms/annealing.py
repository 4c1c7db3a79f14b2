"""Simulated annealing.

S. Kirkpatrick, C. D. Gelatt and M. P. Vecchi, "Optimization by simulated annealing", Science 220,
1983. Each particle is a chain of its own, with geometric cooling.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import Real
from prunesearch.algorithms.registry import AlgorithmEntry, register


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
        swapped_MD = swarm.constraints.swap(chain_MD, np.ones(count, dtype=np.intp), rng)
        Y_MD = swarm.constraints.drift(swapped_MD, rng)
        origin: Real = np.full((count, 1), float(current))
        return Moves(Y_MD, {"from": origin})


register(
    AlgorithmEntry(
        "annealing",
        "simulated annealing, one chain per particle",
        order=22,
        algorithm=Annealing,
        origins=("particle", "own best"),
        several_objectives=False,  # a chain compares single losses
    )
)
