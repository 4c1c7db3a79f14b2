"""What the source paper reports, and what its own model makes of it.

P. Ratsapa et al., "Automated Pruning Framework for Large Language Models Using Combinatorial
Optimization", AI 6(5):96, 2025, on Llama-3.1-70B with 80 blocks. The numbers are those of the
abstract and of summaries of it; the cells of Table 4 were not at hand, so they are not repeated
here. Compare with the paper before you cite them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BLOCKS = 80
BLOCK_PARAMETERS = 855_654_400
"""Parameters of one block of Llama-3.1-70B."""
MODEL_PARAMETERS = 70_553_706_496
_BYTES = 2  # of a parameter in 16 bit


@dataclass(frozen=True)
class Reported:
    """What the paper reports of one algorithm.

    Attributes:
        method: name of the algorithm.
        smaller: share of the size that was removed.
        lost_pruned: share of the normalised accuracy that was lost before LoRA; None: not reported
            where we could read it.
        lost_healed: the same after LoRA.
    """

    method: str
    smaller: float
    lost_pruned: float | None
    lost_healed: float


REPORTED: Mapping[str, Reported] = {
    "pso": Reported("pso", 0.1344, 0.193, 0.1272),
    "woa": Reported("woa", 0.1207, None, 0.1483),
}


def gigabytes(dropped: int) -> float:
    """Size of Llama-3.1-70B without some blocks, in 10^9 bytes, in 16 bit."""
    return (MODEL_PARAMETERS - dropped * BLOCK_PARAMETERS) * _BYTES / 1e9


def smaller_by(dropped: int) -> float:
    """Share of the parameters that are in a number of blocks."""
    return dropped * BLOCK_PARAMETERS / MODEL_PARAMETERS


def contradictions() -> list[str]:
    """Return one sentence for each reported number that the paper's own model contradicts."""
    found = []
    sizes = [f"{gigabytes(dropped):.1f}" for dropped in (10, 20, 30, 40)]
    found.append(
        f"A block of Llama-3.1-70B has {BLOCK_PARAMETERS:,} parameters, so without 10, 20, 30 and "
        f"40 of its {BLOCKS} blocks the model has {', '.join(sizes[:-1])} and {sizes[-1]} GB in 16 "
        "bit, whichever blocks are removed."
    )
    for reported in REPORTED.values():
        nearest = round(reported.smaller / smaller_by(1))
        exact = smaller_by(nearest)
        if abs(exact - reported.smaller) > 0.00005:
            found.append(
                f"{reported.method.upper()} is reported to make the model {reported.smaller:.2%} "
                f"smaller. No number of whole blocks does that: {nearest} blocks are {exact:.2%}, "
                f"and {nearest + 1} are {smaller_by(nearest + 1):.2%}."
            )
    first, second = REPORTED.values()
    found.append(
        f"Two searches that remove the same number of equal blocks make the model equally small, "
        f"and {first.smaller:.2%} and {second.smaller:.2%} are reported."
    )
    found.append(
        "Inference times are reported from one run each. For a fixed number of equal blocks the "
        "time does not depend on which blocks are removed, so differences between algorithms are "
        "those of the measurement."
    )
    return found
