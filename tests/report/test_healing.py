"""What is printed of a healing."""

from typing import Any

import pytest

from prunesearch.report.healing import _distilled

CURVE = [(0, 0.507), (10, 0.502), (20, None)]


@pytest.mark.parametrize(
    ("loss", "best_step", "expected"),
    [
        (
            "distill",
            10,
            ["the loss that was trained (distill), on held-out text: 0.5070 before, 0.5020 after"],
        ),
        (
            "mix",
            0,
            ["the loss that was trained (mix), on held-out text: 0.5070 before, 0.5070 after"],
        ),
        ("lm", 10, []),
        ("distill", 20, []),
    ],
)
def test_a_distillation_shows_the_loss_that_it_lowers(
    loss: str, best_step: int, expected: list[str]
) -> None:
    report: dict[str, Any] = {"watched_loss": CURVE, "best_step": best_step}
    assert _distilled(report, {"loss": loss}) == expected


def test_a_run_that_is_read_from_its_export_has_no_curves() -> None:
    assert _distilled({"best_step": 10}, {"loss": "distill"}) == []
