"""Does a search on HellaSwag work as in the source paper, and does a second sampler profit from the
first's store?

SmolLM2-135M-Instruct, 6 of 30 blocks, acc_norm of `--limit` HellaSwag documents; PSO, then WOA over
the same cache. The dense accuracy is compared with `lm_eval.simple_evaluate` on the same file and
limit.

    python -m benchmarks.hellaswag --data hellaswag.jsonl.bz2 \\
        --json benchmarks/results/hellaswag.json
"""

import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.support.inputs import hellaswag, model_folder
from benchmarks.support.record import Record, arguments
from benchmarks.support.stock_lm_eval import stock_hellaswag
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import open_session
from prunesearch.report.progress import ProgressView


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        "HellaSwag search with PSO, then WOA on the same cache",
        {"--data": {"type": Path, "help": "HellaSwag .jsonl[.gz|.bz2]"}},
    )
    transformers.logging.disable_progress_bar()
    record = Record("hellaswag", options.size)
    torch.set_num_threads(record.threads)
    with tempfile.TemporaryDirectory() as scratch:
        _search(record, options.data, Path(scratch))
    record.finish(options.json)


def _search(record: Record, given: Path | None, folder: Path) -> None:
    """Search with both samplers over one cache, and compare the dense model with lm-eval."""
    limit, trials = record.by_size((200, 40), (40, 8), (4, 8))
    data = hellaswag(record, given, folder)
    model = str(model_folder(record, folder))
    recipes = [
        Recipe(
            model=model,
            objective={"task": "hellaswag"},
            data={"task_data": str(data), "limit": limit},
            search={"drop": "6", "sampler": sampler},
        )
        for sampler in ("pso", "woa")
    ]
    with ProgressView():
        run = RunOptions(
            storage=f"sqlite:///{folder}/study.db", cache=f"{folder}/cache", trials=trials
        )
        with open_session(recipes[0], run) as session:
            stock = stock_hellaswag(session.loaded, data, limit, 16)
            outcomes = [run_search(session, recipe, run) for recipe in recipes]
    dense = outcomes[0].dense
    for name, value in stock.metrics.items():
        record.add(f"dense_{name}", dense.metrics[name])
        record.add(
            f"dense_{name}_difference_from_lm_eval", abs(dense.metrics[name] - value), "<= 0"
        )
    record.add("dense_seconds_lm_eval", stock.seconds)
    for recipe, outcome in zip(recipes, outcomes, strict=True):
        name = recipe.search.sampler
        record.add(f"{name}_acc_norm", outcome.value)
        record.add(f"{name}_acc_norm_stderr", outcome.best.stderr["acc_norm"])
        record.add(f"{name}_acc", outcome.best.metrics["acc"])
        record.add(f"{name}_evaluated", outcome.result.computed)
        record.add(f"{name}_hits", outcome.result.hits)
        record.add(f"{name}_seconds", outcome.seconds)
        record.add(
            f"{name}_seconds_per_evaluation", outcome.seconds / max(1, outcome.result.computed)
        )
        record.notes[f"{name}_dropped"] = outcome.best.candidate.text
        record.add(f"{name}_latency_ratio", outcome.best_ms / outcome.dense_ms)


if __name__ == "__main__":
    main()
