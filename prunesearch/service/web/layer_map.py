"""Geometry of the map of the layers that the best trials drop. See `charts`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.service.study_points import TrialPoint
from prunesearch.service.web.charts import Tick
from prunesearch.units import plural


@dataclass(frozen=True)
class MapCell:
    """A dropped unit in a row of a layer map.

    Attributes:
        x, width: position and width in percent of the row.
        title: the unit, such as ``attention of layer 7``.
        kind: ``block``, ``attention`` or ``mlp``.
    """

    x: float
    width: float
    title: str
    kind: str


@dataclass(frozen=True)
class MapRow:
    """A trial in a layer map.

    Attributes:
        number: number of the trial.
        value: value of the trial.
        dropped: its dropped layers, as text.
        cells: its dropped layers, as cells.
    """

    number: int
    value: float
    dropped: str
    cells: tuple[MapCell, ...]


@dataclass(frozen=True)
class LayerMap:
    """The map of the layers that the best trials drop.

    Attributes:
        layers: number of layers.
        rows: best trials, the best first.
        ticks: labels of some layers.
        lines: positions of the lines between layers, in percent.
        always: layers that every row drops. It is empty for a single row.
        halves: whether a row drops single sublayers.
        summary: what the map shows, as a sentence.
    """

    layers: int
    rows: tuple[MapRow, ...]
    ticks: tuple[Tick, ...]
    lines: tuple[float, ...]
    always: str
    halves: bool
    summary: str

    @property
    def size(self) -> str:
        """``narrow``, ``medium`` or ``wide``: how much room the columns need."""
        if self.layers <= 32:
            return "narrow"
        return "medium" if self.layers <= 64 else "wide"


def layer_map(best: Sequence[TrialPoint], layers: int) -> LayerMap | None:
    """Return the map of the layers that trials drop.

    Args:
        best: trials, the best first.
        layers: number of layers of the model.

    Returns:
        The map. None without trials whose layers can be read.
    """
    rows: list[MapRow] = []
    common: set[str] | None = None
    for point in best:
        try:
            subset = LayerSubset.parse(point.dropped, layers)
        except InputError:
            continue
        rows.append(MapRow(point.number, point.value, subset.text, _cells(subset)))
        # Layers that all rows have in common.
        words = set(subset.text.split(",")) - {"none"}
        common = words if common is None else common & words
    if not rows or layers < 1:
        return None
    # Eight labels at most fit under the columns of a phone.
    every = max(1, math.ceil(layers / 8))
    ticks = []
    for layer in range(0, layers, every):
        ticks.append(Tick(round(100 * (layer + 0.5) / layers, 3), str(layer)))
    lines = tuple(round(100 * layer / layers, 3) for layer in range(1, layers))
    # One row has nothing in common with others.
    always = ", ".join(sorted(common or (), key=_in_order)) if len(rows) > 1 else ""
    drop = "best trial drops" if len(rows) == 1 else f"{len(rows)} best trials drop"
    summary = f"Layers that the {drop}, of {plural(layers, 'layer')}."
    if always:
        summary += f" All of them drop {always}."
    halves = any(cell.kind != "block" for row in rows for cell in row.cells)
    return LayerMap(layers, tuple(rows), tuple(ticks), lines, always, halves, summary)


def _in_order(word: str) -> tuple[int, str]:
    return int(word.rstrip("am")), word


def _cells(subset: LayerSubset) -> tuple[MapCell, ...]:
    """Return a cell for each dropped layer. Attention is the left half of a layer's column."""
    # Kind, blocks, start and width of a cell in its column, and its name.
    width = 100 / subset.n_layers
    parts = (
        ("block", subset.dropped, 0.0, 1.0, "layer"),
        ("attention", subset.attention, 0.0, 0.5, "attention of layer"),
        ("mlp", subset.mlp, 0.5, 0.5, "MLP of layer"),
    )
    cells = []
    for kind, blocks, offset, share, name in parts:
        for block in blocks:
            x = round(width * (block + offset), 3)
            cells.append(MapCell(x, round(width * share, 3), f"{name} {block}", kind))
    return tuple(cells)
