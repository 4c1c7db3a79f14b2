"""What is printed of a healing."""

from dataclasses import replace

import pytest

from prunesearch.config.recovery import HealRecipe
from prunesearch.report.healing import _distilled
from prunesearch.report.results import HealedReport, RecoveryReport
from prunesearch.runtime.json_values import as_object, to_json

HEALED = HealedReport(
    digest="d",
    steps=20,
    planned=20,
    best_step=10,
    tokens=100,
    seconds=1.0,
    peak_memory=2**20,
    stopped_early=False,
    diverged=False,
    merge_difference=0.0,
    before=0.5,
    after=0.4,
    watched_loss=((0, 0.507), (10, 0.502), (20, None)),
)


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
    recipe = HealRecipe.of({"loss": loss})
    assert _distilled(replace(HEALED, best_step=best_step), recipe) == expected


def test_a_run_that_is_read_from_its_export_has_no_curves() -> None:
    recipe = HealRecipe(loss="distill")
    report = RecoveryReport("d", dropped="3", recipe=recipe, healed=HEALED.without_curves())
    stored = as_object(to_json(report), "report")
    assert "watched_loss" not in as_object(stored["healed"], "healed")
    earlier = RecoveryReport.of_earlier(stored)
    assert earlier is not None
    assert earlier.healed == replace(HEALED.without_curves(), cached=True)
    assert earlier.recipe == recipe
    assert _distilled(earlier.healed, recipe) == []
    assert RecoveryReport.of_earlier({"digest": "d", "healed": {"steps": 1}}) is None
