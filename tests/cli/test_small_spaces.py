"""Searches with more trials than there are candidates."""

from pathlib import Path

import pytest

from tests.support.cli import run, run_json
from tests.support.models import N_LAYERS


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("sampler", ["pso", "greedy"])
def test_a_study_that_scored_all_candidates_is_whole(
    sampler: str, tiny_folder: Path, prose: Path
) -> None:
    data = ("--calibration", prose, "--tokens", 32, "--window", 16)
    drop = N_LAYERS - 1
    found = run_json(
        "search", tiny_folder, "--drop", drop, "--sampler", sampler, "--trials", 99, *data,
        "--study", "s",
    )  # fmt: skip
    assert found["computed"] >= N_LAYERS - 1
    # There is nothing to resume, and the report does not ask for it.
    assert run_json("study", "resume", "s")["computed"] == 0
    run("report", "s", "--out", "page")
    assert "half-finished" not in Path("page", "report.md").read_text()
