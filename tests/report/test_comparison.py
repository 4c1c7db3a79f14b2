"""How a comparison of studies is shown."""

import re

import pytest

from prunesearch.report.comparison import comparison
from prunesearch.report.emit import emit
from prunesearch.studies.compared_study import ComparedStudy
from prunesearch.studies.comparison import SamplerMean, StudyComparison
from prunesearch.studies.winner_tests import NotTested, WinnerTest


def row(name: str, best: float | None, **changes: object) -> ComparedStudy:
    """A study of a comparison."""
    facts: dict[str, object] = {
        "study": name, "model": "tiny", "sampler": "pso", "seed": 0, "objective": "kl",
        "metric": "kl", "budget": "2", "params": 100, "best": best, "stderr": 0.012, "dense": 0.0,
        "winner": "3,7a", "front": 0, "evaluations": 1234, "distinct": 1200, "hits": 7,
        "running": 0, "failed": 0, "seconds": 90.0, "saved_seconds": 30.0, "wall_seconds": 100.0,
        "evaluations_to_best": 55, "seconds_to_best": 4.0, "best_at_equal": best,
    }  # fmt: skip
    return ComparedStudy(**{**facts, **changes})  # type: ignore[arg-type]


FOUND = StudyComparison(
    studies=(
        row("[red]<b>a</b>\x1b[31m", 0.25),
        row("b", 0.3, sampler="woa", hits=0),
        row("front", None, front=4, winner=None, evaluations_to_best=None, seconds_to_best=None),
    ),
    equal_evaluations=1234,
    tests=(
        WinnerTest(
            "a", "b", "kl", "fresh", "held out", "measured", 30, -0.05, 0.01, -0.07, -0.03,
            0.001, 0.0005, 0.002,
        ),
    ),
    untested=(NotTested("a", "front", "front has a front and no single winner"),),
    samplers=(
        SamplerMean("pso", "2", "kl", 2, 1234, 0.3, 0.05, -0.1, 0.7),
        SamplerMean("woa", "2", "kl", 1, 1234, 0.3, float("nan"), float("nan"), float("nan")),
    ),
    notes=("study b is not finished: 1 trial is running",),
)  # fmt: skip


def test_everything_is_shown_and_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    emit(False, FOUND, comparison)
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    # Markup stays text, and what could control a terminal is escaped.
    assert "[red]<b>a</b>\\x1b[31m" in shown and "\x1b" not in shown
    assert "0.2500 ± 0.0120" in shown and "1,234" in shown and "4 on the front" in shown
    assert "best after 1,234 evaluations" in shown
    # The second winner is better, so the test is turned around.
    assert re.search(
        r"^b +a +KL to dense \(nats/token\) +30 +0\.0500 ± 0\.0100 ", shown, re.MULTILINE
    )
    assert "0.0300 to 0.0700" in shown and "fresh, held out" in shown
    assert "not tested: a and front: front has a front and no single winner" in shown
    assert "-0.1000 to 0.7000" in shown and lines["note:"].endswith("1 trial is running")


def test_a_document_holds_all_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    emit(True, FOUND, comparison)
    shown = capsys.readouterr().out
    assert '"equal_evaluations": 1234' in shown and '"differ": true' in shown
    assert '"stderr": null' in shown and '"p_corrected": 0.002' in shown
