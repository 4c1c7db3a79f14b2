"""The model of a figure, its styles, and thinning."""

import math

import numpy as np
import pytest

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.report.figures.figure import Figure, Heatmap, NumberTable, Panel, Series
from prunesearch.report.figures.styles import DENSE, STYLES, numbered, style_of
from prunesearch.report.figures.thinning import kept_points, thinned, thinning_note


def test_values_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a': 2 values of x and 1 of y"):
        Series("a", [1, 2], [1.0])
    with pytest.raises(ValueError, match="one end of its error"):
        Series("a", [1], [1.0], low=[0.5])
    with pytest.raises(ValueError, match="not of 1 x 2"):
        Heatmap(["a", "b"], ["c"], [[1.0]], "share")
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2"):
        NumberTable(("a", "b"), (("c",),))


def test_every_algorithm_has_a_style_of_its_own() -> None:
    names = [*REGISTRY.names(), "dense", "healed", "magnitude"]
    assert len({style_of(name) for name in names}) == len(names)
    assert style_of("dense") == DENSE
    # Unknown names have a style too, always the same.
    assert style_of("mine") == style_of("mine") >= 2
    # Colours alone repeat; colour, marker and dash together do not.
    assert len(set(STYLES)) == len(STYLES)
    first = [STYLES[numbered(index)] for index in range(6)]
    assert len({style.light for style in first}) == 6


def test_a_long_series_keeps_its_ends_extremes_and_improvements() -> None:
    values = np.sin(np.arange(10_000) / 7.0)
    values[1234], values[4321] = -9.0, 9.0
    kept = kept_points(values.tolist(), keep=[77, 5000], most=500)
    assert len(kept) == 500
    assert {0, 77, 1234, 4321, 5000, 9999} <= set(kept)
    assert kept == sorted(kept) == kept_points(values.tolist(), keep=[77, 5000], most=500)
    assert kept_points([1.0, math.nan], most=500) == [0, 1]


def test_only_points_are_thinned_and_the_caption_says_so() -> None:
    x, y = list(range(3000)), [float(value % 17) for value in range(3000)]
    points = thinned(Series("all", x, y, "points", labels=[str(value) for value in x]))
    assert (len(points.x), points.total) == (2000, 3000)
    assert points.labels is not None
    assert [str(value) for value in points.x] == list(points.labels)
    line = thinned(Series("best", x, y))
    assert len(line.x) == 3000
    panel = Panel("", "evaluations", "loss (nats)", (points, line))
    assert "Of 3,000 points 2,000 are drawn" in thinning_note([panel])
    assert thinning_note([Panel("", "", "", (line,))]) == ""


def test_a_panel_tells_series_from_a_heat_map() -> None:
    heat = Heatmap(["a"], ["b"], [[1.0]], "share")
    panel = Panel("", "", "", (heat,))
    assert panel.heatmap is heat
    assert panel.series == ()
    assert Figure("x", "X", "Caption.", (), (panel,)).table is None
