"""Does our engine give lm-eval's numbers, and how much faster?

SmolLM2-135M-Instruct, `--limit` HellaSwag documents. Parity: every request's log-likelihood against
`lm_eval.simple_evaluate`, in float32 and in bfloat16. Speed: the dense model, and a generation of
16 candidates as in a late PSO search (8 of 30 blocks dropped), against simple_evaluate at its best
batch size, both with the model in memory. Where the CPU has no 16-bit products (see
`prunesearch.models.bf16_cpu`), lm-eval is also timed with our way round that, so that the gain of
the engine itself can be seen.

    python -m benchmarks.scoring --data hellaswag.jsonl.bz2 --json benchmarks/results/scoring.json
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from benchmarks.support.inputs import hellaswag, model_folder
from benchmarks.support.record import Record, arguments
from benchmarks.support.stock_lm_eval import Stock, stock_hellaswag
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.execution.block_code import BlockCode
from prunesearch.models.bf16_cpu import wide_products, widens
from prunesearch.models.loading import LoadedModel, load
from prunesearch.objectives.base import numbers_of
from prunesearch.objectives.task import TaskObjective

DROPPED = 8
GENERATION = 16
KINDS = {  # profiler events by what they do
    "matrix products": ("aten::addmm", "aten::mm", "aten::mkldnn_linear", "aten::linear", "mkldnn"),
    "attention": (
        "aten::_scaled_dot_product",
        "aten::scaled_dot",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_softmax",
    ),
    "reading of the vocabulary": (
        "aten::_log_softmax",
        "aten::logsumexp",
        "aten::exp",
        "aten::sub",
        "aten::sum",
        "aten::amax",
        "aten::argmax",
        "aten::index",
        "aten::gather",
    ),
    "copies and conversions": (
        "aten::copy_",
        "aten::_to_copy",
        "aten::cat",
        "aten::clone",
        "aten::index_put",
    ),
    "elementwise": (
        "aten::mul",
        "aten::add",
        "aten::silu",
        "aten::pow",
        "aten::mean",
        "aten::rsqrt",
        "aten::neg",
    ),
}


def late_generation(n_layers: int, seed: int) -> list[LayerSubset]:
    """A generation round a leader: each drops what the leader drops, but for one to three swaps.

    So are PSO's late generations (see `benchmarks.prefix_sharing`, which takes them from a search):
    the leader is the best subset known of SmolLM2.
    """
    leader = {12, 13, 14, 16, 17, 18, 25, 26}
    rng = np.random.default_rng(seed)
    found: dict[LayerSubset, None] = {LayerSubset.of(n_layers, leader): None}
    while len(found) < GENERATION:
        swaps = int(min(rng.integers(1, 4), rng.integers(1, 4)))
        out = rng.choice(sorted(leader), swaps, replace=False)
        into = rng.choice(sorted(set(range(2, n_layers - 1)) - leader), swaps, replace=False)
        found[LayerSubset.of(n_layers, leader - set(out.tolist()) | set(into.tolist()))] = None
    return list(found)


def engine_seconds(
    loaded: LoadedModel, objective: TaskObjective, candidates: Sequence[LayerSubset]
) -> tuple[float, list[dict[str, float]]]:
    """Time of evaluating candidates through a new store, metrics included; and the metrics."""
    with tempfile.TemporaryDirectory() as scratch, EvaluationCache(scratch) as cache:
        # As in a search of 200 trials.
        tokens = sum(chunk.tokens for chunk in objective.chunks)
        code = BlockCode("auto", 200 * tokens * loaded.n_layers)
        engine = LocalEngine(loaded, objective, cache, code=code)
        start = time.perf_counter()
        evaluations = engine.evaluate_now(candidates)
        return time.perf_counter() - start, [dict(e.metrics) for e in evaluations]


def log_likelihoods(loaded: LoadedModel, objective: TaskObjective) -> list[float]:
    """Our answer to every request, for the dense model."""
    dense = LayerSubset.of(loaded.n_layers)
    with tempfile.TemporaryDirectory() as scratch, EvaluationCache(scratch) as cache:
        engine = LocalEngine(loaded, objective, cache)
        scored = {}
        for result in engine.results.get((c, dense) for c in objective.chunks):
            scored[result.chunk.index] = numbers_of(result.rows)
    return [value for chunk in objective.chunks for value, _ in scored[chunk.index]]


def add_parity(
    record: Record, name: str, ours: Sequence[float], theirs: Stock, bound: str | None
) -> None:
    """Largest and mean difference between two lists of log-likelihoods."""
    away = np.abs(np.subtract(ours, theirs.log_likelihoods))
    record.add(f"{name}_largest_difference", float(away.max()), bound)
    record.add(f"{name}_mean_difference", float(away.mean()))


def profiled(objective: TaskObjective, loaded: LoadedModel) -> dict[str, float]:
    """Shares of the time of scoring the dense model once, by kind of work."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        engine_seconds(loaded, objective, [LayerSubset.of(loaded.n_layers)])
    shares = dict.fromkeys([*KINDS, "other"], 0.0)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    for event in events:
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), "other")
        shares[kind] += event.self_cpu_time_total / total
    return {kind: round(share, 4) for kind, share in shares.items()}


@contextlib.contextmanager
def arithmetic(wide: bool) -> Iterator[None]:
    """Ours, or torch's own."""
    with wide_products() if wide else contextlib.nullcontext():
        yield


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        "Parity with lm-eval and speed against it",
        {
            "--data": {"type": Path, "help": "HellaSwag .jsonl[.gz|.bz2]"},
            "--limit": {"type": int, "default": 200, "help": "documents"},
        },
    )
    transformers.logging.disable_progress_bar()
    record = Record("scoring", options.size)
    torch.set_num_threads(record.threads)
    with tempfile.TemporaryDirectory() as scratch:
        data = hellaswag(record, options.data, Path(scratch))
        model = str(model_folder(record, Path(scratch)))
        _compare(record, model, data, record.by_size(options.limit, 8, 4))
    record.finish(options.json)


def _compare(record: Record, path: str, data: Path, limit: int) -> None:
    """Score with the engine and with lm-eval, in float32 and as stored."""
    record.notes["documents"] = limit
    record.notes["16-bit products"] = (
        "through float32" if widens() else "by the CPU's own instructions"
    )
    loaded = load(path, dtype="float32")
    objective = TaskObjective(loaded, "hellaswag", data=str(data), limit=limit)
    theirs = stock_hellaswag(loaded, data, limit, 16)
    seconds, (ours,) = engine_seconds(loaded, objective, [LayerSubset.of(loaded.n_layers)])
    add_parity(record, "float32", log_likelihoods(loaded, objective), theirs, "<= 0.001")
    for metric in ("acc", "acc_norm"):
        record.add(
            f"float32_{metric}_difference", abs(ours[metric] - theirs.metrics[metric]), "<= 0"
        )
    record.add("float32_seconds_lm_eval", theirs.seconds)
    record.add("float32_seconds", seconds)
    record.add("float32_speedup", theirs.seconds / seconds)

    loaded = load(path)
    objective = TaskObjective(loaded, "hellaswag", data=str(data), limit=limit)
    few = max(4, limit // 10)
    tried = {}
    for size in (16, 64):
        with arithmetic(widens()):
            tried[size] = stock_hellaswag(loaded, data, few, size).seconds
    best = min(tried, key=lambda size: tried[size])
    record.notes["lm-eval batch size"] = best
    with arithmetic(widens()):
        alone, many = (stock_hellaswag(loaded, data, limit, size) for size in (1, 64))
        same = many if best == 64 else stock_hellaswag(loaded, data, limit, best)
    plain = stock_hellaswag(loaded, data, limit, best) if widens() else same
    dense_seconds, _ = engine_seconds(loaded, objective, [LayerSubset.of(loaded.n_layers)])
    answers = log_likelihoods(loaded, objective)
    add_parity(record, "bfloat16_lm_eval_1_against_64", alone.log_likelihoods, many, None)
    for name, stock in (("1", alone), ("64", many)):
        add_parity(record, f"bfloat16_against_lm_eval_{name}", answers, stock, None)
    own = record.figures["bfloat16_lm_eval_1_against_64_mean_difference"]
    nearer = min(
        record.figures[f"bfloat16_against_lm_eval_{name}_mean_difference"] for name in ("1", "64")
    )
    record.add(
        "bfloat16_mean_difference_over_lm_evals_own",
        nearer / own if own else float(nearer > 0),
        "<= 1",
    )
    tokens = sum(len(c) + len(t) - 1 for _, c, t in objective._lm.requests)
    packed = sum(batch.batch.tokens for batch in objective.laid_out())
    record.add("tokens_one_sequence_per_choice", tokens)
    record.add("tokens_read", packed)
    record.add("fewer_tokens", tokens / packed, ">= 1.9")
    record.add("dense_seconds_lm_eval", plain.seconds)
    record.add("dense_seconds", dense_seconds)
    record.add("dense_speedup", plain.seconds / dense_seconds, ">= 4")
    late = late_generation(loaded.n_layers, seed=0)
    late_seconds, _ = engine_seconds(loaded, objective, late)
    record.add("generation_seconds_per_candidate", late_seconds / len(late))
    record.add("generation_speedup_per_candidate", plain.seconds * len(late) / late_seconds, ">= 6")
    if widens():
        record.add("dense_seconds_lm_eval_same_products", same.seconds)
        record.add("dense_speedup_same_products", same.seconds / dense_seconds)
        record.add(
            "generation_speedup_per_candidate_same_products",
            same.seconds * len(late) / late_seconds,
        )
    record.notes["time of the dense model by kind"] = profiled(objective, loaded)


if __name__ == "__main__":
    main()
