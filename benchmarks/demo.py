"""Does the demo keep its promises: six minutes from nothing, forty seconds when run again?

Runs the command in an empty folder, download included; then again there; then once more with the
study deleted and only the evaluation cache kept.

    python -m benchmarks.demo --json benchmarks/results/demo.json
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments
from tests.support.cli import run_json


def run(
    folder: Path, trials: int | None, model: Path | None, threads: int
) -> tuple[dict[str, Any], float]:
    """Run the demo in a folder; return its document and the wall time with start-up.

    Args:
        folder: where to run it.
        trials: number of trials; None for the demo's own.
        model: a tiny model, with which this process runs the command, because starts of processes
            take most of the time of a smoke run. None for the demo's own model.
        threads: number of torch threads.
    """
    words = ["demo", "--threads", str(threads)]
    words += [] if trials is None else ["--trials", str(trials)]
    start = time.perf_counter()
    if model is not None:
        with contextlib.chdir(folder):
            return run_json(*words, model), time.perf_counter() - start
    command = [sys.executable, "-m", "prunesearch.cli.main", *words, "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    options = arguments("The demo, from nothing and again")
    record = Record("demo", options.size)
    trials = record.by_size(None, 32, 8)
    with tempfile.TemporaryDirectory() as scratch:
        # The demo fetches its model itself; only a smoke run names another.
        model = model_folder(record, Path(scratch)) if record.size == "smoke" else None
        first, seconds = run(Path(scratch), trials, model, record.threads)
        record.add("first_run_seconds", seconds, "<= 70")
        again, seconds = run(Path(scratch), trials, model, record.threads)
        record.add("second_run_seconds", seconds, "<= 10")
        record.add(
            "second_run_evaluated", sum(search["computed"] for search in again["searches"]), "== 0"
        )
        (Path(scratch) / "storage" / "study.db").unlink()
        cached, seconds = run(Path(scratch), trials, model, record.threads)
        record.add("study_deleted_run_seconds", seconds, "<= 40")
        record.add(
            "study_deleted_run_evaluated",
            sum(search["computed"] for search in cached["searches"]),
            "== 0",
        )
    for search in first["searches"]:
        name = search["sampler"]
        record.add(f"{name}_kl", search["value"])
        record.add(f"{name}_evaluated", search["computed"])
        record.add(f"{name}_hits", search["hits"])
        record.add(f"{name}_seconds", search["seconds"])
        record.notes[f"{name}_dropped"] = search["best"]["dropped"]
    for name, value in first["pruned"].items():
        record.add(f"dense_{name}", first["dense"][name])
        record.add(f"pruned_{name}", value)
    record.notes["identical_when_resumed_or_cached"] = (
        first["best"]["dropped"] == again["best"]["dropped"] == (cached["best"]["dropped"])
    )
    record.finish(options.json)


if __name__ == "__main__":
    main()
