"""Colours, markers and dashes, the same in all figures.

The colours are those of Okabe and Ito (2008), "Color Universal Design", which readers with any kind
of colour vision can tell apart. Marker and dash differ too, so that a figure can be read without
colours. Yellow is left out for lines, because it is hard to see on white.

An algorithm has the same style in every figure of every report. The six that are compared most
often have six colours. The others follow in the order of the registry of algorithms, with dashed
lines, so a new algorithm needs no line here.
"""

import zlib
from dataclasses import dataclass

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.studies.measurements import BASELINE

MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
_COLOURS = (
    # On a light ground, and on a dark one, where blue and black would be too dark.
    ("#0072B2", "#4093D8"),  # blue
    ("#D55E00", "#E8782A"),  # vermilion
    ("#009E73", "#2BBF96"),  # bluish green
    ("#CC79A7", "#DE94BD"),  # reddish purple
    ("#E69F00", "#E69F00"),  # orange
    ("#56B4E9", "#A9DDFB"),  # sky blue
)


@dataclass(frozen=True)
class Style:
    """The look of a series.

    Attributes:
        light: colour on a light ground, as ``#RRGGBB``.
        dark: colour on a dark ground.
        marker: one of `MARKERS`.
        dash: one of `DASHES`.
    """

    light: str
    dark: str
    marker: str
    dash: str


def _styles() -> tuple[Style, ...]:
    """Return the styles. Style 0 is that of references; the others repeat the colours."""
    styles = [Style("#000000", "#FFFFFF", "x", "dot"), Style("#767676", "#9A9A9A", "circle", "dot")]
    for index in range(4 * len(_COLOURS)):
        light, dark = _COLOURS[index % len(_COLOURS)]
        marker = MARKERS[index % len(MARKERS)]
        styles.append(Style(light, dark, marker, DASHES[index // len(_COLOURS)]))
    return tuple(styles)


STYLES = _styles()
DENSE = 0
"""Style of the dense model."""
NEUTRAL = 1
"""Style of what belongs to no algorithm: all candidates, a diagonal, an allowed region."""
FIRST = 2
"""First of the styles that are told apart by their colours."""
_COMPARED = ("pso", "woa", "evolution", "greedy", "one-shot", "random")
"""Algorithms that are compared most often: those of the paper, and the usual baselines."""
_ROLES = ("healed", "compensated", "exported", "naive-best", "magnitude", "influence", "last")
"""What is drawn beside algorithms, from the last style backwards."""


def style_of(name: str) -> int:
    """Return the number of the style of an algorithm, or of something that is drawn beside them.

    Args:
        name: name of an algorithm, a role of a measurement, such as ``dense`` or
            ``baseline:random``, or any other name. A name that is not known has a style by its
            digest, which is the same in every report.
    """
    name = name.removeprefix(BASELINE)
    others = [known for known in REGISTRY.names() if known not in _COMPARED]
    algorithms = [*_COMPARED, *others]
    if name in algorithms:
        return FIRST + algorithms.index(name) % (len(STYLES) - FIRST)
    if name == "dense":
        return DENSE
    if name in _ROLES:
        return len(STYLES) - 1 - _ROLES.index(name)
    return FIRST + zlib.crc32(name.encode()) % (len(STYLES) - FIRST)


def numbered(index: int) -> int:
    """Return the number of a style for the series of a figure that shows no algorithms."""
    return FIRST + index % (len(STYLES) - FIRST)
