"""The knee of a front."""

import pytest

from prunesearch.studies.pareto_knee import knee


@pytest.mark.parametrize(
    ("front", "start", "chosen"),
    [
        ([(0.0, 10.0), (0.1, 2.0), (0.5, 1.0), (1.0, 0.0)], (0.0, 10.0), 1),
        # The dense model is far away, so the middle saves most for what it loses.
        ([(0.2, 5.0), (0.5, 1.0), (1.0, 0.0)], (0.0, 10.0), 1),
        ([(0.2, 5.0), (0.9, 1.0), (1.0, 0.0)], (0.0, 10.0), 0),
        # A member that is better than the dense model gains quality as well.
        ([(-0.4, 8.0), (0.9, 1.0), (1.0, 0.0)], (0.0, 10.0), 0),
        ([(0.3, 3.0)], (0.0, 10.0), 0),
        ([(0.3, 3.0)], (0.3, 3.0), 0),
    ],
)
def test_the_knee_saves_most_for_what_it_loses(
    front: list[tuple[float, float]], start: tuple[float, float], chosen: int
) -> None:
    assert knee(front, start) == chosen
