"""What does it cost a search to be tracked, and what does a server that is dead or silent cost?

PSO searches on SmolLM2 (8 of 30 blocks), each without a cache of another one: untracked, followed
by TensorBoard and MLflow in a folder, and by MLflow at a port where nobody listens and at a server
that accepts connections and never answers. All run one after the other on one loaded model, with an
untracked search before and after each tracked one, because the speed of a machine drifts. The
figures are the medians over the rounds of the time of a tracked search divided by the mean of its
two untracked neighbours, less one. The time that the command waits for trackers at its end is given
apart.

    python -m benchmarks.tracking --json benchmarks/results/tracking.json
"""

import socket
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers

from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments, precision
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.models.loading import LoadedModel, load
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import Session
from prunesearch.tracking.opening import tracked

BOUND = "<= 0.02"


@dataclass
class Times:
    """Seconds of each round: of the search, of the wait for trackers after it, and the mean of the
    untracked searches before and after it.
    """

    search: list[float] = field(default_factory=list)
    wait: list[float] = field(default_factory=list)
    untracked: list[float] = field(default_factory=list)


def timed(
    loaded: LoadedModel, recipe: Recipe, trials: int, track: str, to: str | None
) -> tuple[float, float]:
    """Search once with a cache and a study of its own.

    Args:
        loaded: the model.
        recipe: recipe of the search.
        trials: number of trials.
        track: names of trackers; empty for none.
        to: where they write.

    Returns:
        Seconds of the search, and of the wait for the trackers.
    """
    with tempfile.TemporaryDirectory() as scratch:
        values = {"storage": f"sqlite:///{scratch}/study.db", "cache": f"{scratch}/cache"}
        places = {} if not track else {"track": track, "track_to": to or f"{scratch}/tracking"}
        options = RunOptions.of({**values, **places, "trials": trials})
        windows = token_windows(
            BUILTIN_TEXT, loaded.tokenizer, recipe.data.tokens, recipe.data.window
        )
        objective = CalibrationObjective(loaded, windows, KL())
        with EvaluationCache(options.cache) as cache:
            session = Session(loaded, objective, LocalEngine(loaded, objective, cache), cache)
            began = time.perf_counter()
            with tracked(options.track, options.track_to):
                run_search(session, recipe, options)
                searched = time.perf_counter()
            return searched - began, time.perf_counter() - searched


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    transformers.logging.disable_progress_bar()
    record = Record("tracking", options.size)
    torch.set_num_threads(record.threads)
    rounds, trials, tokens = record.by_size((3, 45, 1024), (3, 20, 512), (1, 4, 64))
    with (
        tempfile.TemporaryDirectory() as scratch,
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.socket() as unused,
    ):
        # A port that is bound and on which nobody listens.
        unused.bind(("127.0.0.1", 0))
        kinds: dict[str, tuple[str, str | None]] = {
            "tensorboard": ("tensorboard", None),
            "mlflow": ("mlflow", None),
            "dead_port": ("mlflow", f"http://127.0.0.1:{unused.getsockname()[1]}"),
            "silent_server": ("mlflow", f"http://127.0.0.1:{silent.getsockname()[1]}"),
        }
        path = str(model_folder(record, Path(scratch)))
        loaded = load(path, dtype=precision())
        recipe = Recipe(
            model={"path": path, "dtype": precision()},
            data={"tokens": tokens, "window": min(tokens, 256)},
            search={"drop": "8", "population": min(20, trials)},
        )
        times = {name: Times() for name in kinds}
        timed(loaded, recipe, trials, "", None)  # the first search warms up
        before, _ = timed(loaded, recipe, trials, "", None)
        for round_number in range(rounds):
            for place in range(len(kinds)):
                name = list(kinds)[(place + round_number) % len(kinds)]
                searched, waited = timed(loaded, recipe, trials, *kinds[name])
                after, _ = timed(loaded, recipe, trials, "", None)
                times[name].search.append(searched)
                times[name].wait.append(waited)
                times[name].untracked.append((before + after) / 2)
                before = after
    _add(record, times)
    record.finish(options.json)


def _add(record: Record, times: Mapping[str, Times]) -> None:
    """Add the figures of each kind of tracking."""
    untracked = [seconds for measured in times.values() for seconds in measured.untracked]
    record.add("untracked_seconds", statistics.median(untracked))
    for name, measured in times.items():
        overheads = []
        for seconds, without in zip(measured.search, measured.untracked, strict=True):
            overheads.append(seconds / without - 1)
        record.add(f"{name}_overhead", statistics.median(overheads), BOUND)
        record.add(f"{name}_wait_seconds", statistics.median(measured.wait))
        record.notes[name] = {"overheads": overheads, **asdict(measured)}


if __name__ == "__main__":
    main()
