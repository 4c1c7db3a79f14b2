"""Is the reported winner of a noisy search really good?

The best of many noisy scores is mostly a lucky one. A search on a task therefore recommends by a
posterior, and confirms on further documents. Two experiments show what that is worth at equal cost.

1. Synthetic: accuracies of 200 documents, 8 of 32 blocks (the landscape ``acc200-n32-k8``). The
   figures are the true accuracy that is lost against the best known subset, by the naive, the
   recommended and the confirmed winner, at 200 and 400 evaluations' worth of documents,
   confirmation included.
2. Real, with `--data`: HellaSwag, 6 of 30 blocks of SmolLM2-135M-Instruct, at the cost of 60
   candidates on 200 documents each. The winners are measured on 2,000 documents that no search has
   read, beside the winner of a search by KL. Results are kept in `--folder`, so a benchmark that
   was stopped goes on there.

    python -m benchmarks.confirmation --json benchmarks/results/confirmation.json
    python -m benchmarks.confirmation --part real --data hellaswag_val_a.jsonl.bz2 \\
        --folder scratch --json benchmarks/results/confirmation_hellaswag.json
"""

import bz2
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import optuna
import torch
import transformers

from benchmarks.confirmation_parts.real import (
    KL_TRIALS,
    TRIALS,
    RealSettings,
    further_documents,
    in_errors,
    losses_on_unseen,
    winners,
)
from benchmarks.confirmation_parts.synthetic import CHOICES, excesses
from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments, precision
from tests.support.texts import hellaswag_rows, write_lines

LANDSCAPE = "acc200-n32-k8"
SAMPLERS = ("pso", "woa")
TARGETS = {200: "<= 0.01", 400: "<= 0.006"}
"""Largest mean loss of accuracy of the confirmed winner, by budget."""
SEARCHES = ("naive", "recommended", "confirmed", "kl")


def measure_synthetic(record: Record) -> None:
    """Add the figures of the synthetic landscapes."""
    budgets = record.by_size((200, 400), (200, 400), (40,))
    seeds = range(record.by_size(12, 4, 1))
    for sampler in record.by_size(SAMPLERS, SAMPLERS, SAMPLERS[:1]):
        found = [excesses(LANDSCAPE, sampler, seed, budgets) for seed in seeds]
        record.notes[f"synthetic_{sampler}"] = [
            {str(budget): vars(excess) for budget, excess in one.items()} for one in found
        ]
        for budget in budgets:
            for choice in (*CHOICES, "seen"):
                values = [float(getattr(one[budget], choice)) for one in found]
                bound = TARGETS.get(budget) if choice == "confirmed" else None
                name = f"{sampler}_{choice}_at_{budget}"
                record.add(name, round(float(np.mean(values)), 5), bound)
                error = float(np.std(values)) / np.sqrt(len(values))
                record.add(f"{name}_se", round(error, 5))


def measure_real(record: Record, settings: RealSettings, seeds: range, workers: int) -> None:
    """Add the figures of the real model."""
    record.add("hellaswag_seeds", len(seeds))
    if workers > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context) as pool:
            found = list(pool.map(winners, [settings] * len(seeds), seeds))
    else:
        found = [winners(settings, seed) for seed in seeds]
    for seed, chosen_by in zip(seeds, found, strict=True):
        record.notes[f"winners_{seed}"] = {name: getattr(chosen_by, name).text for name in SEARCHES}
        # Confirmation must not have read what counts as unseen.
        used = settings.limit + further_documents(settings, seed)
        assert used <= settings.total - settings.unseen, f"{used} documents were read"
    chosen = [getattr(one, name) for one in found for name in SEARCHES]
    losses = losses_on_unseen(settings, chosen)
    mean_loss = {}
    for name in SEARCHES:
        mean_loss[name] = np.mean([losses[getattr(one, name)] for one in found], axis=0)
        record.add(f"hellaswag_{name}", round(-float(mean_loss[name].mean()), 4))
    dense = next(iter(losses.values()))
    record.add("hellaswag_dense", round(-float(dense.mean()), 4))
    for other, bound in (("naive", ">= 1"), ("kl", ">= -2")):
        better = in_errors(mean_loss[other] - mean_loss["confirmed"])
        record.add(f"hellaswag_confirmed_over_{other}_in_se", round(better, 2), bound)


def real_settings(record: Record, data: Path, folder: Path, threads: int) -> RealSettings:
    """Return the settings of the real experiment; tiny ones for a smoke run."""
    folder.mkdir(parents=True, exist_ok=True)
    if record.size == "smoke":
        data = write_lines(folder / "documents.jsonl", hellaswag_rows(60))
    opener = bz2.open if data.suffix == ".bz2" else open
    with opener(data, "rt") as lines:
        total = sum(1 for _ in lines)
    return RealSettings(
        model_folder(record, folder),
        data.absolute(),
        folder.absolute(),
        6,
        limit=record.by_size(200, 40, 8),
        trials=record.by_size(TRIALS, 20, 10),
        kl_trials=record.by_size(KL_TRIALS, 40, 8),
        unseen=record.by_size(2000, 200, 8),
        total=total,
        dtype=precision(),
        threads=threads,
    )


def main() -> None:
    """Measure and write the document."""
    options = arguments(
        __doc__ or "",
        {
            "--part": {"choices": ("synthetic", "real"), "help": "only this experiment"},
            "--data": {"type": Path, "help": "HellaSwag documents (.jsonl[.bz2])"},
            "--folder": {"type": Path, "help": "keep results here, and go on from them"},
            "--seeds": {"type": int, "help": "seeds of the experiment on real documents"},
            "--threads": {"type": int, "default": 1, "help": "threads of torch"},
            "--workers": {"type": int, "default": 1, "help": "processes, a seed each"},
        },
    )
    record = Record("confirmation", options.size)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if options.part == "real" and options.data is None and options.size != "smoke":
        raise SystemExit("--part real needs --data, a file with HellaSwag documents")
    if options.part != "real":
        measure_synthetic(record)
    if options.part != "synthetic" and (options.data is not None or options.size == "smoke"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.folder or Path(scratch)
            data = options.data or folder
            settings = real_settings(record, data, folder, options.threads)
            seeds = range(options.seeds or record.by_size(5, 1, 1))
            measure_real(record, settings, seeds, options.workers)
    record.finish(options.json)


if __name__ == "__main__":
    main()
