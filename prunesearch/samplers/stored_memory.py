"""An algorithm's memory as it is stored with a trial."""

from collections.abc import Mapping

import numpy as np

from prunesearch.algorithms.history import Memory
from prunesearch.algorithms.operators import Real
from prunesearch.studies import study_columns

STATE_ATTR = study_columns.STATE_ATTR


def pack(memory: Memory) -> dict[str, dict[str, float]]:
    """Convert an algorithm's memory to JSON values: sparse vectors by name."""
    packed = {}
    for name, values in memory.items():
        sparse: dict[str, float] = {"n": len(values)}
        for index, value in enumerate(values.tolist()):
            if value:
                sparse[str(index)] = value
        packed[name] = sparse
    return packed


def unpack(stored: Mapping[str, Mapping[str, float]], own: bool) -> dict[str, Real]:
    """Invert `pack`.

    Args:
        stored: JSON values that `pack` returned.
        own: whether this algorithm stored them. If not, the result is empty.
    """
    memory: dict[str, Real] = {}
    if not own:
        return memory
    for name, values in stored.items():
        vector = np.zeros(int(values["n"]))
        for index, value in values.items():
            if index != "n":
                vector[int(index)] = value
        memory[name] = vector
    return memory
