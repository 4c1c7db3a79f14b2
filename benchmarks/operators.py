"""Where does the time of scoring go, by kind of operator?

KL of one candidate of SmolLM2 (8 of 30 blocks dropped): the products alone, plain transformers, and
our engine. HellaSwag of the dense model: lm-eval and our engine. ``--before`` names the document of
an earlier version, whose bars are drawn too.

    python -m benchmarks.operators --data hellaswag.jsonl.bz2 --json benchmarks/results/operators.json
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from benchmarks.prefix_sharing import DROPPED, compared, floor_seconds, log_probabilities, score_all
from benchmarks.scoring import KINDS, engine_seconds
from benchmarks.support.inputs import hellaswag, model_folder
from benchmarks.support.record import Record, arguments, precision
from benchmarks.support.stock_lm_eval import stock_hellaswag
from prunesearch.candidate import LayerSubset
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel, load
from prunesearch.objectives.base import BUILTIN_TEXT, ChunkWork
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.task import TaskObjective

KINDS_OF_TIME = (*KINDS, "other")
BATCH = 64
"""Sequences of a batch of lm-eval."""


@torch.inference_mode()
def seconds_by_kind(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of a piece of work by kind of operator. It is run once before, to warm up."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    found = dict.fromkeys(KINDS_OF_TIME, 0.0)
    for event in profiler.key_averages():
        # The first kind that knows the operator counts it.
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), "other")
        found[kind] += event.self_cpu_time_total / 1e6
    return found


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        "Time of scoring by kind of operator",
        {
            "--data": {"type": Path, "help": "HellaSwag .jsonl[.gz|.bz2]"},
            "--before": {"type": Path, "help": "document of an earlier version"},
        },
    )
    transformers.logging.disable_progress_bar()
    record = Record("operators", options.size)
    torch.set_num_threads(record.threads)
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load(str(model_folder(record, Path(scratch))), dtype=precision())
        data = hellaswag(record, options.data, Path(scratch))
        with wide_products():
            bars = {
                "KL of a candidate": _calibration(record, loaded),
                "HellaSwag, dense": _task(record, loaded, data),
            }
    for task, of_task in bars.items():
        for name, kinds in of_task.items():
            record.add(f"{task}: {name}, seconds".replace(" ", "_"), sum(kinds.values()))
    record.notes["seconds by kind"] = bars
    if options.before is not None:
        _join(bars, json.loads(options.before.read_text())["notes"]["seconds by kind"])
    if options.json is not None:
        print(f"wrote {_draw(bars, options.json.with_suffix('.png'))}")
    record.finish(options.json)


def _calibration(record: Record, loaded: LoadedModel) -> dict[str, dict[str, float]]:
    """Profile KL of one candidate. The dense model's reference is stored on both sides."""
    tokens, window = record.by_size((1024, 256), (512, 256), (64, 32))
    windows = token_windows(BUILTIN_TEXT, loaded.tokenizer, tokens, window)
    dropped = range(2, 2 + min(DROPPED, loaded.n_layers - 3))
    candidate = LayerSubset.of(loaded.n_layers, dropped)
    objective = CalibrationObjective(loaded, windows, KL())
    work = [ChunkWork(chunk, [candidate]) for chunk in objective.chunks]
    forward = Forward(loaded.model, loaded.layers)
    floor = dict.fromkeys(KINDS_OF_TIME, 0.0)
    floor["matrix products"] = floor_seconds(loaded, candidate, windows.numel())
    dense_BLV = log_probabilities(loaded, windows)
    return {
        "products alone": floor,
        "plain transformers": seconds_by_kind(
            partial(compared, loaded, windows, candidate, dense_BLV)
        ),
        "prunesearch": seconds_by_kind(partial(score_all, objective, work, forward)),
    }


def _task(record: Record, loaded: LoadedModel, data: Path) -> dict[str, dict[str, float]]:
    """Profile HellaSwag of the dense model."""
    limit = record.by_size(32, 8, 2)
    objective = TaskObjective(loaded, "hellaswag", data=str(data), limit=limit)
    dense = [LayerSubset.of(loaded.n_layers)]
    return {
        "lm-eval": seconds_by_kind(partial(stock_hellaswag, loaded, data, limit, BATCH)),
        "prunesearch": seconds_by_kind(partial(engine_seconds, loaded, objective, dense)),
    }


def _join(
    bars: dict[str, dict[str, dict[str, float]]],
    earlier: Mapping[str, Mapping[str, dict[str, float]]],
) -> None:
    """Put the bars of an earlier version before those of this one."""
    for task, of_task in bars.items():
        now = of_task.pop("prunesearch")
        of_task["prunesearch, before"] = earlier[task]["prunesearch"]
        of_task["prunesearch"] = now


def _draw(bars: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> Path:
    """Draw stacked bars, one panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes_T = pyplot.subplots(1, len(bars), figsize=(13.0, 4.8), layout="constrained")
    colors = pyplot.get_cmap("viridis").resampled(len(KINDS_OF_TIME))
    for axes, (task, of_task) in zip(axes_T, bars.items(), strict=True):
        bottom = [0.0] * len(of_task)
        for number, kind in enumerate(KINDS_OF_TIME):
            heights = [kinds[kind] for kinds in of_task.values()]
            axes.bar(list(of_task), heights, bottom=bottom, color=colors(number), label=kind)
            bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
        for place, height in enumerate(bottom):
            axes.annotate(f"{height:.2f} s", (place, height), ha="center", va="bottom")
        axes.set_title(task)
        axes.set_ylabel("time (s)")
        axes.margins(y=0.12)
        axes.tick_params(axis="x", labelrotation=12)
    axes_T[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
