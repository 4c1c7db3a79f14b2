"""The charts of the web pages: positions, ticks, summaries, and the map of dropped layers."""

import math

import pytest

from prunesearch.service.study_points import TrialPoint
from prunesearch.service.web.charts import (
    HEIGHT,
    TOP,
    curve,
    front_chart,
    improvements,
    loss_chart,
    short,
    size,
)
from prunesearch.service.web.layer_map import layer_map


def points(*values: float) -> list[TrialPoint]:
    return [TrialPoint(number, (value,), f"{number}") for number, value in enumerate(values)]


def test_improvements_are_the_trials_that_beat_all_before_them() -> None:
    tried = points(3.0, 4.0, 2.0, math.nan, 2.0, 1.0)
    assert [point.number for point in improvements(tried)] == [0, 2, 5]
    assert [point.number for point in improvements(tried, larger=True)] == [0, 1]


def test_the_line_of_a_curve_goes_down_at_each_improvement_and_on_to_the_last_trial() -> None:
    chart = curve(points(4.0, 2.0, 3.0), "kl", total=5)
    assert chart is not None
    # Along trial 0, down at trial 1, along to trial 2.
    along, down, on = chart.line
    assert along.y1 == along.y2
    assert down.x1 == down.x2
    assert down.y1 < down.y2
    assert on.y1 == on.y2
    assert along.x1 < along.x2 == down.x1 == on.x1 < on.x2 < 100
    # The axis leaves room for the trials that the study shall have.
    assert [tick.label for tick in chart.x_ticks] == ["0", "2", "4"]
    assert "After 3 finished trials the best is 2.000, found by trial 1" in chart.summary


def test_a_few_bad_trials_do_not_press_the_others_together() -> None:
    chart = curve(points(*([1.0, 1.1, 1.2] * 10), 1e6), "kl")
    assert chart is not None
    assert chart.clipped == 1
    above = [dot for dot in chart.dots if dot.kind == "above"]
    assert [dot.y for dot in above] == [TOP]
    spread = [dot.y for dot in chart.dots if dot.kind != "above"]
    assert max(spread) - min(spread) > HEIGHT / 2


def test_a_curve_of_many_trials_has_few_dots_and_each_improvement() -> None:
    tried = points(*(10_000 - number + 50.0 * (number % 7) for number in range(10_000)))
    chart = curve(tried, "kl")
    assert chart is not None
    best = improvements(tried)
    assert len([dot for dot in chart.dots if dot.kind == "best"]) == len(best)
    assert len([dot for dot in chart.dots if dot.kind != "best"]) <= 500


@pytest.mark.parametrize("values", [(), (math.nan,), (math.inf, math.inf)])
def test_there_is_no_curve_without_finite_values(values: tuple[float, ...]) -> None:
    assert curve(points(*values), "kl") is None


@pytest.mark.parametrize("value", [0.0, 1e-12, 5.0, -3.0, 1e15])
def test_equal_values_make_a_chart_too(value: float) -> None:
    chart = curve(points(value, value), "kl")
    assert chart is not None
    for dot in chart.dots:
        assert TOP <= dot.y <= TOP + HEIGHT
    assert chart.y_ticks


def test_the_front_is_joined_from_small_to_large_and_drawn_last() -> None:
    tried = [
        TrialPoint(0, (1.0, 2048.0), "1"),
        TrialPoint(1, (3.0, 1024.0), "1,2"),
        TrialPoint(2, (4.0, 2048.0), "2"),
    ]
    chart = front_chart(tried, tried[:2], "kl", "bytes")
    assert chart is not None
    assert [dot.kind for dot in chart.dots] == ["above", "best", "best"]
    (joined,) = chart.line
    assert joined.x1 < joined.x2
    assert joined.y1 < joined.y2  # less harm lies lower
    assert "from 3.000 at bytes 1.0 KiB to 1.000 at bytes 2.0 KiB" in chart.summary


def test_a_healing_has_a_chart_of_its_losses() -> None:
    chart = loss_chart([(0, 3.0), (10, 2.0), (20, math.nan), (30, 2.5)], "loss")
    assert chart is not None
    assert [dot.kind for dot in chart.dots] == ["other", "best", "other"]
    assert "from 3.000 to 2.500. The lowest is 2.000 at step 10." in chart.summary
    assert loss_chart([(0, 1.0)], "loss") is None


def test_the_map_has_a_cell_for_each_dropped_layer() -> None:
    best = [TrialPoint(5, (0.5,), "1,3a"), TrialPoint(2, (0.7,), "1,2m"), TrialPoint(3, (1.0,), "")]
    shown = layer_map(best, 4)
    assert shown is not None
    assert [row.number for row in shown.rows] == [5, 2]  # the third one cannot be read
    block, attention = shown.rows[0].cells
    assert (block.x, block.width, block.title) == (25, 25, "layer 1")
    assert (attention.x, attention.width) == (75, 12.5)
    assert shown.rows[1].cells[1].title == "MLP of layer 2"
    assert shown.rows[1].cells[1].x == 62.5
    assert shown.halves
    assert shown.always == "1"
    assert layer_map([], 4) is None


@pytest.mark.parametrize(("layers", "size"), [(24, "narrow"), (48, "medium"), (126, "wide")])
def test_a_map_of_many_layers_has_few_labels(layers: int, size: str) -> None:
    shown = layer_map([TrialPoint(0, (1.0,), "0,3")], layers)
    assert shown is not None
    assert shown.size == size
    assert 4 <= len(shown.ticks) <= 8


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.37283, "0.3728"), (0.394, "0.3940"), (1450.0, "1,450"), (661632.0, "661,632"),
        (0.0, "0"), (1.5e-7, "1.5e-07"), (math.inf, "inf"), (-2.5, "-2.500"), (3e13, "3e+13"),
    ],
)  # fmt: skip
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(900, "900 bytes"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB")]
)
def test_sizes_are_in_powers_of_two(value: float, text: str) -> None:
    assert size(value) == text
