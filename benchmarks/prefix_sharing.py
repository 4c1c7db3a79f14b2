"""How much does a generation save by computing what its candidates share only once?

KL of 20 candidates (8 of SmolLM2's 30 blocks dropped, 512 tokens): one by one with the model's own
forward pass and the whole logits, against one generation in our engine. Populations: uniform
subsets, and generations of a PSO search of 20 particles: its first, one from its middle, and its
last of ten, which is the default of 200 trials.

    python -m benchmarks.prefix_sharing --json benchmarks/results/prefix_sharing.json
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from optuna.trial import TrialState

from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments, precision
from prunesearch.candidate import LayerSubset
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel, load
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
def one_by_one(
    loaded: LoadedModel, windows_BL: torch.Tensor, candidates: Sequence[LayerSubset]
) -> list[float]:
    """Mean KL of each candidate in nats per token, from whole forward passes;
    the dense model's is made once.
    """
    log_p_BLV = torch.log_softmax(
        loaded.model(input_ids=windows_BL, use_cache=False).logits.float(), dim=-1
    )
    p_BLV = log_p_BLV.exp()
    found = []
    for candidate in candidates:
        with pruned(loaded.model, candidate) as model:
            logits_BLV = model(input_ids=windows_BL, use_cache=False).logits
        log_q_BLV = torch.log_softmax(logits_BLV.float(), dim=-1)
        found.append(float((p_BLV * (log_p_BLV - log_q_BLV)).sum(-1).mean()))
    return found


def main() -> None:
    """Run the benchmark."""
    options = arguments("KL of a generation: shared prefixes against one by one")
    transformers.logging.disable_progress_bar()
    record = Record("prefix_sharing", options.size)
    torch.set_num_threads(record.threads)
    tokens, repeats, count = record.by_size((512, 3, 10), (256, 1, 3), (256, 1, 3))
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
    for name, population in populations.items():
        objective = CalibrationObjective(loaded, windows, KL())
        work = [ChunkWork(chunk, population) for chunk in objective.chunks]
        forward = Forward(loaded.model, loaded.layers)
        times: dict[str, list[float]] = {"separate": [], "shared": []}
        with wide_products():
            for _ in range(repeats):
                start = time.perf_counter()
                expected = one_by_one(loaded, windows, population)
                times["separate"].append(time.perf_counter() - start)
                start = time.perf_counter()
                scored = {
                    result.candidate: result.rows for result in objective.score(work, forward)
                }
                times["shared"].append(time.perf_counter() - start)
        ours = [objective.metrics([scored[c]]).values["kl"] for c in population]
        bound = {"random": ">= 1.15", "converged": ">= 2"}.get(name)
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


if __name__ == "__main__":
    main()
