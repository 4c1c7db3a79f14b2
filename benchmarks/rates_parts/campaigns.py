"""The campaigns of a full, a quick and a smoke run, from the options of the command line."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rates_parts.campaign import VARIANTS, Campaign, Optimizer
from benchmarks.rates_parts.tiny import random_reply, tiny_campaign
from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record
from tests.support.chat_endpoint import chat_endpoint
from tests.support.paths import SHARED

_SAMPLERS = ("random", "evolution", "pso", "woa", *VARIANTS)
_LARGE_SAMPLERS = ("random", "evolution", "pso", "woa", "llm")
OPTIONS: dict[str, dict[str, Any]] = {
    "--folder": {"type": Path, "help": "where studies, cache and figures are kept"},
    "--data": {
        "type": Path,
        "default": SHARED / "data",
        "help": "folder with wikitext2_valid.txt, wikitext2_test_a.txt and "
        "hellaswag_val_a.jsonl.bz2",
    },
    "--optimizer": {"type": Path, "help": "GGUF file of the language model that proposes"},
    "--llm-url": {"help": "an endpoint that serves it already, instead of --optimizer"},
    "--llm-model": {"default": "optimizer", "help": "name of the model of --llm-url"},
    "--large-model": {"type": Path, "help": "GGUF file of the model of the part `large`"},
    "--samplers": {"help": "only these, with commas"},
    "--ratios": {"default": "20%,40%", "help": "shares to remove, with commas"},
    "--seeds": {"type": int, "default": 3, "help": "number of seeds"},
    "--trials": {"type": int, "default": 100, "help": "evaluations of a search"},
    "--llm-trials": {
        "type": int,
        "default": 40,
        "help": "evaluations of a search that asks a language model",
    },
    "--long-trials": {
        "type": int,
        "default": 300,
        "help": "evaluations of `evolution`, which is compared at equal seconds too",
    },
    "--tokens": {"type": int, "default": 4096, "help": "tokens that candidates are scored on"},
    "--documents": {"type": int, "default": 200, "help": "HellaSwag documents"},
    "--workers": {"type": int, "default": 1, "help": "processes that search"},
    "--slots": {"type": int, "default": 4, "help": "searches that ask the language model at once"},
    "--large-seeds": {"type": int, "default": 2, "help": "number of seeds of the part `large`"},
    "--large-trials": {"type": int, "default": 60, "help": "evaluations of the part `large`"},
    "--markdown": {"type": Path, "help": "write the tables of the page of results here"},
}


@contextmanager
def opened(record: Record, options: argparse.Namespace, folder: Path) -> Iterator[Campaign]:
    """Yield the campaign of a run. Data that a smoke run needs is made in the folder."""
    with ExitStack() as stack:
        if record.size == "smoke":
            yield _smoke(folder, stack)
            return
        campaign = _full(record, options, folder)
        if record.size == "quick":
            campaign = _quick(campaign)
        yield campaign


def _full(record: Record, options: argparse.Namespace, folder: Path) -> Campaign:
    """Return the campaign of the options."""
    optimizer = None
    if options.llm_url is not None:
        optimizer = Optimizer(options.llm_model, options.llm_url)
    elif options.optimizer is not None:
        optimizer = Optimizer(options.optimizer.stem, file=options.optimizer)
    samplers = _SAMPLERS
    if options.samplers is not None:
        samplers = tuple(options.samplers.split(","))
    data: Path = options.data
    campaign = Campaign(
        folder=folder,
        label="smollm2",
        model=str(model_folder(record, folder)),
        calibration=data / "wikitext2_valid.txt",
        test=data / "wikitext2_test_a.txt",
        documents=data / "hellaswag_val_a.jsonl.bz2",
        ratios=tuple(options.ratios.split(",")),
        seeds=tuple(range(options.seeds)),
        trials=options.trials,
        llm_trials=min(options.llm_trials, options.trials),
        long_trials=options.long_trials,
        tokens=options.tokens,
        test_tokens=8192,
        limit=options.documents,
        samplers=samplers,
        optimizer=optimizer,
        workers=options.workers,
        slots=options.slots,
    )
    if options.large_model is None:
        return campaign
    large = replace(
        campaign,
        label="large",
        model=str(options.large_model),
        ratios=("25%",),
        seeds=tuple(range(options.large_seeds)),
        trials=options.large_trials,
        llm_trials=options.large_trials,
        long_trials=options.large_trials,
        tokens=2048,
        test_tokens=4096,
        limit=min(100, options.documents),
        samplers=tuple(name for name in _LARGE_SAMPLERS if name in samplers),
    )
    return replace(campaign, large=large)


def _quick(campaign: Campaign) -> Campaign:
    """Return a campaign that takes minutes."""
    return replace(
        campaign,
        label="quick",
        ratios=("20%",),
        seeds=(0,),
        trials=24,
        llm_trials=24,
        long_trials=24,
        tokens=256,
        test_tokens=1024,
        limit=10,
        samplers=("random", "evolution", "pso"),
        large=None,
    )


# A smoke run.


def _smoke(folder: Path, stack: ExitStack) -> Campaign:
    """Return a campaign on a tiny model, with an endpoint that follows a script."""
    served = stack.enter_context(chat_endpoint(lambda number, body: random_reply(str(number))))
    return replace(tiny_campaign(folder), optimizer=Optimizer("scripted", served.url))
