"""How good a subset each algorithm finds with how many evaluations.

    python -m benchmarks.search_quality --landscape FILE --budgets 50,75,100,200 --seeds 30 \\
        --json OUT
    python -m benchmarks.search_quality --live MODEL --drop 8 --budgets 50,100,150 --seeds 5 \\
        --calibration TEXT
    python -m benchmarks.search_quality --family all --seeds 12 --budgets 50,100,200,400 \\
        --runs RUNS.jsonl --json OUT --markdown TABLES.md

A landscape is a table of all subsets of one size: {"n_layers", "k", "rows": [[dropped, value, ...],
...]}; what counts is the excess over its best value. Live, the value is the KL divergence on 4 x
256 calibration tokens, and a cache keeps what was evaluated. `--family` names synthetic landscapes
of `benchmarks.landscapes`, which differ from seed to seed. Budgets count unique evaluations: a subset that
is proposed again costs nothing, and single blocks that a ranking measures count like any other.
PNGs beside OUT show the best so far. The parts are in `benchmarks.search_quality_parts`.
"""

import argparse
from pathlib import Path

import optuna

from benchmarks.search_quality_parts import problems, synthetic
from benchmarks.search_quality_parts.mealpy_runner import mealpy_environment
from benchmarks.search_quality_parts.one_landscape import Kind, add_figures, measure
from benchmarks.search_quality_parts.plots import mean_curves, plot
from benchmarks.search_quality_parts.problem import Problem, Trace
from benchmarks.search_quality_parts.runners import runners, selected
from benchmarks.support.record import Record, arguments
from prunesearch.algorithms.registry import REGISTRY, names_with
from prunesearch.errors import InputError

_LABELS = {"landscape": "mean excess over the best KL", "live": "mean best KL (nats/token)"}
_SMOKE_LANDSCAPES = "trap3x2-k2,upto6-k3"


def main() -> None:
    """Run the benchmark."""
    options = _options()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    record = Record("search_quality", options.size)
    options.seeds = record.by_size(options.seeds, min(options.seeds, 3), 2)
    options.budgets = sorted(int(word) for word in options.budgets.split(","))
    if record.size == "smoke":
        options.budgets = [12, 16]
    if record.size == "smoke" or options.landscape is not None or options.live is not None:
        _on_one_landscape(record, options)
    elif options.synthetic is None:
        raise InputError("give --landscape FILE, --live MODEL or --family NAME")
    if record.size == "smoke":
        options.synthetic, options.algorithms = _SMOKE_LANDSCAPES, None
    if options.synthetic is not None:
        if record.size == "quick":
            options.budgets = [budget for budget in options.budgets if budget <= 100]
        synthetic.compare(record, options, synthetic.all_names(options.synthetic))
    record.notes["seeds"] = options.seeds
    record.finish(options.json)


def _options() -> argparse.Namespace:
    return arguments(
        __doc__ or "",
        {
            "--landscape": {"type": Path, "help": "a table of all subsets"},
            "--live": {"help": "a model folder or Hugging Face id"},
            "--family": {
                "dest": "synthetic",
                "help": "names of synthetic landscapes, separated by commas; `all`: those of "
                "benchmarks.landscapes",
            },
            "--drop": {"default": "8"},
            "--calibration": {"default": "builtin"},
            "--cache": {"default": "storage/cache"},
            "--budgets": {"default": "50,75,100,200"},
            "--seeds": {"type": int, "default": 30},
            "--first-seed": {
                "type": int,
                "default": 0,
                "help": "first seed of a synthetic landscape",
            },
            "--baseline-seeds": {
                "type": int,
                "help": "seeds of the algorithms without a surrogate; default: as many",
            },
            "--algorithms": {
                "help": "names of the rows to run, separated by semicolons; default: all"
            },
            "--runs": {
                "type": Path,
                "help": "keep the runs on synthetic landscapes here, one a line; those that are there are not "
                "repeated",
            },
            "--markdown": {"type": Path, "help": "write the tables of synthetic landscapes here"},
            "--no-mealpy": {"action": "store_true"},
        },
    )


def _on_one_landscape(record: Record, options: argparse.Namespace) -> None:
    """Compare the algorithms on a measured landscape, on a model, or on a tiny landscape."""
    budgets, kind = options.budgets, _kind(options)
    with mealpy_environment(not options.no_mealpy and not record.quick) as python:
        if kind == "live":
            with problems.live(
                options.live, options.drop, options.calibration, options.cache
            ) as problem:
                algorithms = runners(problem, python, live=True)
                seeds = _live_seeds(list(algorithms), options)
                traces = measure(problem, algorithms, budgets[-1], seeds)
            best = min(trace.best[-1] for runs in traces.values() for trace in runs)
        else:
            if record.size == "smoke":
                problem, best = problems.tiny()
            else:
                problem, best = problems.measured(options.landscape)
            algorithms = selected(runners(problem, python, live=False), options.algorithms)
            seeds = dict.fromkeys(algorithms, options.seeds)
            traces = measure(problem, algorithms, budgets[-1], seeds)
    add_figures(record, traces, budgets, best, kind)
    if options.json is not None:
        _draw(options, problem, traces, best if kind == "landscape" else 0.0, kind)


def _kind(options: argparse.Namespace) -> Kind:
    if options.size != "smoke" and options.landscape is None:
        return "live"
    return "landscape"


def _live_seeds(names: list[str], options: argparse.Namespace) -> dict[str, int]:
    """Return how many seeds each algorithm runs with; one that draws nothing needs one."""
    counts = dict.fromkeys(names, options.baseline_seeds or options.seeds)
    counts |= dict.fromkeys(names_with("surrogate"), options.seeds)
    for entry in REGISTRY.entries():
        if entry.name in counts and not entry.random:
            counts[entry.name] = 1
    return counts


def _draw(
    options: argparse.Namespace,
    problem: Problem,
    traces: dict[str, list[Trace]],
    offset: float,
    kind: Kind,
) -> None:
    curves = mean_curves(traces, options.budgets[-1], offset)
    title = f"{problem.space.k} of {problem.space.n_layers} blocks, {options.seeds} seeds"
    plot(options.json.with_suffix(".png"), curves, _LABELS[kind], title)


if __name__ == "__main__":
    main()
