"""How much does a generation save by computing what its candidates share only once?

KL of 20 candidates (8 of SmolLM2's 30 blocks dropped, 1,024 tokens): one by one with the model's own
forward pass and the whole logits, against one generation in our engine. Populations: uniform
subsets, and generations of a PSO search of 20 particles: its first, one from its middle, and its
last of ten, which is the default of 200 trials. One candidate alone is timed as well.

The floor is what the products of a candidate's blocks and of the vocabulary head take at this
machine's rate at the model's own shapes: each weight times 1,024 rows. The share of the matmul rate
is the floor of one candidate over its time.

    python -m benchmarks.prefix_sharing --json benchmarks/results/prefix_sharing.json
    python -m benchmarks.prefix_sharing --model FILE.gguf --json OUT.json    # one candidate alone
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from optuna.trial import TrialState
from torch.profiler import ProfilerActivity, profile

from benchmarks.support.inputs import N_LAYERS, model_folder
from benchmarks.support.record import Record, arguments, precision
from prunesearch.candidate import LayerSubset
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.execution.block_code import BlockCode
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import BUILTIN_TEXT, ChunkWork
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import open_session
from prunesearch.studies import persistence

POPULATION = 20
DROPPED = 8


def generations(model: str, count: int) -> list[list[LayerSubset]]:
    """The generations of a PSO search on few tokens: what matters here is which subsets it asks
    for.
    """
    recipe = Recipe(
        model={"path": model, "dtype": precision()},
        data={"tokens": 128, "window": 128},
        search={"drop": str(DROPPED), "population": POPULATION},
    )
    with tempfile.TemporaryDirectory() as scratch:
        options = RunOptions(
            storage=f"sqlite:///{scratch}/study.db",
            cache=f"{scratch}/cache",
            trials=count * POPULATION,
        )
        with open_session(recipe, options) as session:
            run_search(session, recipe, options)
            space = session.loaded.n_layers
        study = persistence.load(
            persistence.open_storage(options.storage, create=False), study_name(recipe)
        )
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        dropped = [
            LayerSubset.parse(t.user_attrs["dropped"], space)
            for t in sorted(trials, key=lambda t: t.number)
        ]
    return [dropped[i : i + POPULATION] for i in range(0, len(dropped), POPULATION)]


@torch.inference_mode()
def log_probabilities(loaded: LoadedModel, windows_BL: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the dense model, from a whole forward pass, shape (B, L, V)."""
    logits_BLV = loaded.model(input_ids=windows_BL, use_cache=False).logits
    return torch.log_softmax(logits_BLV.float(), dim=-1)


@torch.inference_mode()
def compared(
    loaded: LoadedModel,
    windows_BL: torch.Tensor,
    candidate: LayerSubset,
    dense_BLV: torch.Tensor,
) -> float:
    """Mean KL of a candidate in nats per token, from a whole forward pass."""
    with pruned(loaded.model, candidate) as model:
        logits_BLV = model(input_ids=windows_BL, use_cache=False).logits
    log_q_BLV = torch.log_softmax(logits_BLV.float(), dim=-1)
    return float((dense_BLV.exp() * (dense_BLV - log_q_BLV)).sum(-1).mean())


def one_by_one(
    loaded: LoadedModel, windows_BL: torch.Tensor, candidates: Sequence[LayerSubset]
) -> list[float]:
    """Mean KL of each candidate in nats per token; the dense model's pass is made once."""
    dense_BLV = log_probabilities(loaded, windows_BL)
    return [compared(loaded, windows_BL, candidate, dense_BLV) for candidate in candidates]


@torch.inference_mode()
def floor_seconds(loaded: LoadedModel, candidate: LayerSubset, tokens: int) -> float:
    """Least seconds of the products of a candidate's blocks and of the head, of five rounds."""
    weights = []
    for index in candidate.kept:
        for module in blocks_of(loaded.model)[index].modules():
            if isinstance(module, torch.nn.Linear):
                weights.append(module.weight)
    weights.append(loaded.model.get_output_embeddings().weight)
    rows = {w.shape[1]: torch.ones(tokens, w.shape[1], dtype=w.dtype) for w in weights}
    taken = []
    with wide_products():
        for _ in range(5):
            start = time.perf_counter()
            for weight in weights:
                # The head reads few rows at a time, so that its logits stay in the cache.
                at_once = 128 if weight is weights[-1] else tokens
                for part in torch.split(rows[weight.shape[1]], at_once):
                    torch.nn.functional.linear(part, weight)
            taken.append(time.perf_counter() - start)
    return min(taken)


@torch.inference_mode()
def operators(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of the twelve operators that take most of the time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return {event.key: round(event.self_cpu_time_total / 1000, 2) for event in events[:12]}


def score_all(objective: CalibrationObjective, work: list[ChunkWork], forward: Forward) -> None:
    """Score candidates in our engine."""
    for _ in objective.score(work, forward):
        pass


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        "KL of a generation: shared prefixes against one by one",
        {"--model": {"help": "measure one candidate of this model alone, and nothing else"}},
    )
    transformers.logging.disable_progress_bar()
    record = Record("prefix_sharing", options.size)
    torch.set_num_threads(record.threads)
    tokens, repeats, count = record.by_size((1024, 3, 10), (256, 1, 3), (256, 1, 3))
    if options.model is not None:
        _alone(record, load(options.model, dtype=precision()), tokens)
        record.finish(options.json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = str(model_folder(record, Path(scratch)))
        searched = generations(path, count)
        _compare(record, load(path, dtype=precision()), searched, tokens, repeats)
    record.finish(options.json)


def _compare(
    record: Record,
    loaded: LoadedModel,
    searched: list[list[LayerSubset]],
    tokens: int,
    repeats: int,
) -> None:
    """Time uniform subsets and generations of a search, together and one by one."""
    count = len(searched)
    rng = np.random.default_rng(0)
    uniform = [
        LayerSubset.of(
            loaded.n_layers, rng.choice(loaded.n_layers, DROPPED, replace=False).tolist()
        )
        for _ in range(POPULATION)
    ]
    populations = {
        "random": uniform,
        "early": searched[0],
        "middle": searched[count // 2],
        "converged": searched[-1],
    }
    windows = token_windows(BUILTIN_TEXT, loaded.tokenizer, tokens, 256)
    # One candidate alone: the best known to a late generation.
    populations["alone"] = populations["converged"][:1]
    # The blocks are compiled as in a search of 200 trials.
    code = BlockCode("auto", 200 * tokens * loaded.n_layers)
    for name, population in populations.items():
        objective = CalibrationObjective(loaded, windows, KL())
        work = [ChunkWork(chunk, population) for chunk in objective.chunks]
        forward = Forward(loaded.model, loaded.layers, code=code)
        times: dict[str, list[float]] = {"separate": [], "shared": []}
        with wide_products():
            # The first pass measures what is fastest on this machine.
            score_all(objective, work, forward)
            for _ in range(repeats):
                start = time.perf_counter()
                expected = one_by_one(loaded, windows, population)
                times["separate"].append(time.perf_counter() - start)
                # Both sides run the dense model once, so its reference must not be stored.
                objective = CalibrationObjective(loaded, windows, KL())
                start = time.perf_counter()
                scored = {
                    result.candidate: result.rows for result in objective.score(work, forward)
                }
                times["shared"].append(time.perf_counter() - start)
        ours = [objective.metrics([scored[c]]).values["kl"] for c in population]
        bound = {"random": ">= 2.5", "converged": ">= 3.5", "alone": ">= 2"}.get(name)
        medians = {how: statistics.median(spent) for how, spent in times.items()}
        record.add(f"{name}_speedup", medians["separate"] / medians["shared"], bound)
        record.add(f"{name}_layer_forwards_saved", forward.work_counter.saved)
        record.add(f"{name}_seconds_one_by_one", medians["separate"])
        record.add(f"{name}_seconds", medians["shared"])
        record.add(
            f"{name}_largest_relative_difference",
            float(np.max(np.abs(np.divide(ours, expected) - 1))),
        )
        record.notes[name] = [candidate.text for candidate in population]
        if name == "alone":
            _add_share(record, loaded, windows, population[0], code)
    record.notes["blocks"] = {
        "run": code.name,
        "compile seconds": code.seconds,
        "speedup of a block": code.speedup,
    }


def _alone(record: Record, loaded: LoadedModel, tokens: int) -> None:
    """Time one candidate of another model, which drops as large a share of its blocks."""
    rng = np.random.default_rng(0)
    dropped = round(loaded.n_layers * DROPPED / N_LAYERS)
    # The first and the last block stay.
    chosen = 1 + rng.choice(loaded.n_layers - 2, dropped, replace=False)
    candidate = LayerSubset.of(loaded.n_layers, chosen.tolist())
    record.notes["alone"] = candidate.text
    windows = token_windows(BUILTIN_TEXT, loaded.tokenizer, tokens, 256)
    code = BlockCode("auto", 200 * tokens * loaded.n_layers)
    _add_share(record, loaded, windows, candidate, code)


def _add_share(
    record: Record,
    loaded: LoadedModel,
    windows: torch.Tensor,
    candidate: LayerSubset,
    code: BlockCode,
) -> None:
    """Time a candidate against the floor of its products, and against plain transformers.

    The dense model's reference is stored on both sides, as for all later candidates of a search.
    """
    objective = CalibrationObjective(loaded, windows, KL())
    work = [ChunkWork(chunk, [candidate]) for chunk in objective.chunks]
    forward = Forward(loaded.model, loaded.layers, code=code)
    dense_BLV = log_probabilities(loaded, windows)
    ours: list[float] = []
    plain: list[float] = []
    with wide_products():
        # The first pass makes the reference, and measures what is fastest on this machine.
        score_all(objective, work, forward)
        for _ in range(5):
            start = time.perf_counter()
            compared(loaded, windows, candidate, dense_BLV)
            plain.append(time.perf_counter() - start)
            start = time.perf_counter()
            score_all(objective, work, forward)
            ours.append(time.perf_counter() - start)
        record.notes["milliseconds by operator"] = {
            "plain": operators(partial(compared, loaded, windows, candidate, dense_BLV)),
            "ours": operators(partial(score_all, objective, work, forward)),
        }
    floor, median = floor_seconds(loaded, candidate, windows.numel()), statistics.median(ours)
    record.add("alone_floor_seconds", floor)
    record.add("alone_seconds_after_reference", median)
    record.add("alone_seconds_after_reference_plain", statistics.median(plain))
    record.add("alone_speedup_after_reference", statistics.median(plain) / median)
    record.add("alone_share_of_matmul_rate", floor / median, ">= 0.45")


if __name__ == "__main__":
    main()
