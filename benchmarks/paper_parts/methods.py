"""The algorithms of the experiment: a sampler each, with its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.report.figures.styles import FIRST, STYLES, Style


@dataclass(frozen=True)
class Method:
    """One way to choose the blocks.

    Attributes:
        label: what it is, for the page of results.
        sampler: sampler of the product.
        settings: further settings of the section `search`.
        by_kl: whether the fitness is the KL to the dense model on text, instead of the accuracy.
    """

    label: str
    sampler: str
    settings: Mapping[str, str | bool] = field(default_factory=lambda: MappingProxyType({}))
    by_kl: bool = False

    @property
    def random(self) -> bool:
        """Whether another seed gives another result."""
        return REGISTRY.get(self.sampler).random


_PAPERS = MappingProxyType[str, str | bool](
    {"encoding": "slots", "preselect": False, "ranking": "none"}
)
_BY_ACCURACY: Mapping[str, Method] = {
    "pso": Method("PSO as the product has it", "pso"),
    "woa": Method("WOA as the product has it", "woa"),
    "pso-slots": Method("PSO with integer slots, as in the paper", "pso", _PAPERS),
    "woa-slots": Method("WOA with integer slots, as in the paper", "woa", _PAPERS),
    "greedy": Method("greedy (SLEB)", "greedy"),
    "evolution": Method("evolution (EvoPress)", "evolution"),
    "evolution-ranked": Method(
        "evolution that starts from the ranking of PSO", "evolution", {"ranking": "influence"}
    ),
    "random": Method("random", "random"),
    "shortgpt": Method(
        "one-shot by block influence (ShortGPT), then the next",
        "one-shot",
        {"ranking": "influence"},
    ),
    "magnitude": Method(
        "one-shot by magnitude, then the next", "one-shot", {"ranking": "magnitude"}
    ),
    "one-shot": Method("one-shot by the accuracy without each block, then the next", "one-shot"),
}
_ALSO_BY_KL = ("pso", "woa", "greedy", "evolution", "random", "shortgpt", "magnitude")


def _methods() -> dict[str, Method]:
    """Return all methods by name: those with accuracy as fitness, and some of them with KL."""
    found = dict(_BY_ACCURACY)
    for name in _ALSO_BY_KL:
        method = found[name]
        found[f"{name}-kl"] = replace(method, label=f"{method.label}, by KL", by_kl=True)
    return found


METHODS: Mapping[str, Method] = MappingProxyType(_methods())
"""The methods by name. The fitness of those that end in ``-kl`` is the KL to the dense model."""
DEFAULT = ("pso", "woa", "greedy", "evolution", "random", "shortgpt", "magnitude", "one-shot")
KL_RANKING = "kl-ranking"
"""Name of the one candidate that drops the blocks whose removal alone gives the least KL."""
_DRAWN = (
    *DEFAULT, KL_RANKING, "pso-slots", "woa-slots", "evolution-ranked",
    # The same colours again, in the order of the methods that they vary.
    "pso-kl", "woa-kl", "greedy-kl", "evolution-kl", "random-kl", "shortgpt-kl", "magnitude-kl",
)  # fmt: skip


def style(method: str) -> Style:
    """Return the style of a method in figures. The first six have a colour of their own, and the
    others differ in dash and marker too.
    """
    return STYLES[FIRST + _DRAWN.index(method)]
