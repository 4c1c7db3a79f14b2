"""The options of the command line, and the experiment that they describe."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.paper_parts.documents import split
from benchmarks.paper_parts.experiment import Experiment
from benchmarks.paper_parts.methods import DEFAULT, METHODS
from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record
from prunesearch.config.names import slug
from prunesearch.models.analyze import take_inventory
from prunesearch.objectives.calibration_sources.builtin import HELD_OUT
from tests.support.paths import SHARED
from tests.support.texts import hellaswag_rows, write_lines

_SHARES = (0.125, 0.25, 0.375, 0.5)
"""Shares of the blocks that the paper removes."""
OPTIONS: dict[str, dict[str, Any]] = {
    "--folder": {"type": Path, "help": "where studies, cache and measurements are kept"},
    "--model": {"help": "folder, hub id or .gguf file; default: SmolLM2-135M-Instruct"},
    "--data": {
        "type": Path,
        "default": SHARED / "data",
        "help": "folder with hellaswag_val_a.jsonl.bz2 and wikitext2_valid.txt",
    },
    "--hellaswag": {"type": Path, "help": "another file with HellaSwag documents"},
    "--heal-data": {"help": "text that LoRA is trained on; default: wikitext2_valid.txt of --data"},
    "--samplers": {
        "default": ",".join(DEFAULT),
        "help": f"methods, with commas, of {', '.join(METHODS)}",
    },
    "--ks": {"help": "numbers of blocks, with commas; default: 12.5, 25, 37.5 and 50 %%"},
    "--seeds": {"type": int, "default": 3, "help": "number of seeds"},
    "--trials": {"type": int, "default": 100, "help": "evaluations of a search"},
    "--search-documents": {"type": int, "default": 200, "help": "documents of a search"},
    "--documents": {"type": int, "default": 2000, "help": "documents that winners are scored on"},
    "--heal-steps": {"type": int, "default": 100, "help": "steps of LoRA; 0: no healing"},
    "--heal-batch": {"type": int, "default": 8, "help": "sequences of a step"},
    "--heal-window": {"type": int, "default": 256, "help": "tokens of a sequence"},
    "--healed": {"help": "methods whose winners are healed, with commas; default: all"},
    "--workers": {"type": int, "default": 1, "help": "processes"},
    "--turns": {"type": int, "default": 15, "help": "number of times that each model is timed"},
    "--searched": {
        "action": "store_true",
        "help": "search nothing: measure the studies of --folder that are complete, e.g. those of a GPU",
    },
    "--plan": {"action": "store_true", "help": "only print what would be done, and its time"},
    "--markdown": {"type": Path, "help": "write the tables here"},
}
_QUICK: dict[str, Any] = {
    "samplers": "pso,woa,random,shortgpt,pso-kl,random-kl",
    "ks": "8",
    "seeds": 1,
    "trials": 5,
    "search_documents": 10,
    "documents": 20,
    "heal_steps": 2,
    "heal_batch": 1,
    "healed": "pso",
    "turns": 3,
}
_SMOKE: dict[str, Any] = {
    **_QUICK,
    "ks": "4,15",
    "seeds": 2,
    "search_documents": 3,
    "documents": 5,
    "heal_window": 32,
    "turns": 2,
}


def experiment_of(
    record: Record, options: argparse.Namespace, folder: Path
) -> tuple[Experiment, tuple[int, int]]:
    """Return the experiment, and its numbers of documents.

    Args:
        record: record of the benchmark, which knows the size of the run.
        options: the command line. A quick and a smoke run replace some of them.
        folder: folder of the run.

    Raises:
        SystemExit: an option is wrong, or data are missing.
    """
    for name, value in record.by_size({}, _QUICK, _SMOKE).items():
        setattr(options, name, value)
    smoke = record.size == "smoke"
    model = str(model_folder(record, folder)) if smoke or options.model is None else options.model
    documents = options.hellaswag or options.data / "hellaswag_val_a.jsonl.bz2"
    if smoke:
        documents = write_lines(folder / "hellaswag.jsonl", hellaswag_rows(8))
    heal_data = options.heal_data or str(options.data / "wikitext2_valid.txt")
    if smoke or (options.heal_data is None and not Path(heal_data).exists()):
        heal_data = "builtin"
    n_layers = len(take_inventory(model).blocks)
    search_data, held_out_data = split(
        documents, options.search_documents, options.documents, folder
    )
    methods = _methods(options.samplers, "--samplers")
    experiment = Experiment(
        folder=folder,
        label=slug(Path(model).stem),
        model=model,
        n_layers=n_layers,
        search_data=search_data,
        held_out_data=held_out_data,
        ks=_numbers(options.ks, n_layers),
        methods=methods,
        seeds=options.seeds,
        trials=options.trials,
        healed=_methods(options.healed, "--healed") if options.healed else methods,
        heal_data=heal_data,
        heal_steps=options.heal_steps,
        heal_batch=options.heal_batch,
        heal_window=options.heal_window,
        kl_text=HELD_OUT if smoke else "builtin",
        kl_tokens=64 if smoke else 1024,
        workers=options.workers,
        turns=options.turns,
        window=32 if smoke else 256,
    )
    return experiment, (options.search_documents, options.documents)


def _methods(text: str, option: str) -> tuple[str, ...]:
    """Return the methods that an option names."""
    names = tuple(word.strip() for word in text.split(","))
    for name in names:
        if name not in METHODS:
            raise SystemExit(f"{option} {name}: there are {', '.join(METHODS)}")
    return names


def _numbers(text: str | None, n_layers: int) -> tuple[int, ...]:
    """Return the numbers of blocks to drop, least first.

    Without a request they are the paper's shares; a half is rounded to the even number, as Python
    does it: 4, 8, 11 and 15 of 30.
    """
    if text is None:
        return tuple(sorted({max(1, round(share * n_layers)) for share in _SHARES}))
    found = sorted({int(word) for word in text.split(",")})
    if not found or found[0] < 1 or found[-1] >= n_layers:
        raise SystemExit(f"--ks {text}: the model has {n_layers} blocks")
    return tuple(found)
