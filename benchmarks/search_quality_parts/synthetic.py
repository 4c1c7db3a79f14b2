"""The comparison on synthetic landscapes, from the options to the page's tables and plots."""

import argparse
from pathlib import Path

from benchmarks.landscapes import NAMES, landscape
from benchmarks.search_quality_parts.plots import mean_curves, plot, plot_many
from benchmarks.search_quality_parts.problem import Trace
from benchmarks.search_quality_parts.synthetic_results import add_figures, known_values, table_of
from benchmarks.search_quality_parts.synthetic_runs import RunFile, measure
from benchmarks.search_quality_parts.synthetic_tables import markdown
from benchmarks.support.record import Record


def compare(record: Record, options: argparse.Namespace, names: list[str]) -> None:
    """Run the comparison, and add its figures to the record.

    Args:
        record: the record.
        options: options of the command.
        names: names of the landscapes.

    Raises:
        UnknownNameError: the landscape or the algorithm is unknown.
    """
    for name in names:
        landscape(name, 0)  # refuses an unknown name before anything runs
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    budgets = options.budgets
    file = RunFile(options.runs)
    measure(names, seeds, budgets[-1], options.algorithms, file)
    tables = {}
    for name in names:
        tables[_short(name)] = table_of(name, seeds, budgets, file)
    add_figures(record, tables, seeds, budgets)
    if options.markdown is not None:
        options.markdown.write_text(markdown(tables, budgets, len(seeds)))
    if options.json is not None:
        _draw(options.json.with_suffix(".png"), names, seeds, budgets[-1], file)


def all_names(words: str) -> list[str]:
    """Return the landscapes that a command names; ``all`` stands for `NAMES`."""
    if words == "all":
        return list(NAMES)
    return [word.strip() for word in words.split(",")]


def _short(name: str) -> str:
    """Return the name of a landscape; of a table, the name of its file."""
    return Path(name).stem if name.endswith(".json") else name


def _draw(path: Path, names: list[str], seeds: range, budget: int, file: RunFile) -> None:
    """Draw the mean excess so far of each algorithm, one panel for each landscape."""
    panels = {}
    for name in names:
        runs = file.complete(name, seeds)
        traces = {}
        for algorithm, own in runs.items():
            traces[algorithm] = [Trace(run.best) for run in own]
        # The mean of differences is the difference of the means.
        offset = float(known_values(name, seeds, runs).mean())
        searched = landscape(name, seeds[0])
        size = f"{searched.k} of {searched.n}" if searched.fixed else f"up to {searched.k}"
        panels[f"{_short(name)}: {size} units"] = mean_curves(traces, budget, offset)
    label = f"mean excess over the best known, {len(seeds)} seeds"
    # One landscape has room for all algorithms.
    if len(panels) == 1:
        ((title, curves),) = panels.items()
        plot(path, curves, label, title)
    else:
        plot_many(path, panels, label)
