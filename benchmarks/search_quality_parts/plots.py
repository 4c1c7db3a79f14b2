"""The plots: the mean best so far of each algorithm, of one problem or of many."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_quality_parts.problem import Trace
from prunesearch.algorithms.registry import names_with

COLORS = {"pso": "black", "woa": "tab:red"}
BASELINES = {
    "GP trust region": ("tab:blue", "-"),
    "hill-climbing": ("tab:orange", "--"),
    "evolution": ("tab:green", ":"),
    "cmaes": ("tab:brown", "-."),
    "tpe": ("tab:cyan", "--"),
    "random": ("tab:gray", ":"),
}
"""Color and line of the algorithms that a plot of many problems shows beside the swarms."""
_COLUMNS = 4
Curve = np.ndarray[Any, Any]


def mean_curves(
    traces: Mapping[str, Sequence[Trace]], budget: int, offset: float
) -> dict[str, Curve]:
    """Return the mean of each algorithm's runs at each budget, above `offset`.

    Where a run has no whole subset yet, the mean is NaN.
    """
    curves = {}
    for name, runs in traces.items():
        values_RB = [[trace.at(b) - offset for b in range(1, budget + 1)] for trace in runs]
        mean_B = np.mean(values_RB, axis=0)
        curves[name] = np.maximum(np.where(np.isfinite(mean_B), mean_B, np.nan), 1e-5)
    return curves


def plot(path: Path, curves: Mapping[str, Curve], ylabel: str, title: str) -> None:
    """Draw the curves into a PNG file, the best algorithm first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11.0, 6.0), layout="constrained")
    swarms = names_with("surrogate")
    for rank, name in enumerate(sorted(curves, key=lambda name: float(curves[name][-1]))):
        axes.plot(
            np.arange(1, len(curves[name]) + 1),
            curves[name],
            label=name,
            linewidth=2.5 if name in swarms else 1.0,
            color=COLORS.get(name),
            linestyle="-" if name in swarms else ("-", "--", ":", "-.")[rank % 4],
        )
    axes.set(xlabel="unique evaluations", ylabel=ylabel, title=title, yscale="log")
    axes.grid(visible=True, which="both", alpha=0.25)
    figure.legend(fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_many(path: Path, panels: Mapping[str, Mapping[str, Curve]], ylabel: str) -> None:
    """Draw one panel for each problem into a PNG file, with PSO, WOA and the main baselines.

    Args:
        path: the file.
        panels: curves of each problem by its title.
        ylabel: what the curves show.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // _COLUMNS)
    figure, axes = pyplot.subplots(
        rows, _COLUMNS, figsize=(13.0, 2.7 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    lines = {}
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for name in (*BASELINES, *COLORS):
            if name not in curves:
                continue
            color, style = BASELINES.get(name) or (COLORS[name], "-")
            width = 2.2 if name in COLORS else 1.2
            evaluations = np.arange(1, len(curves[name]) + 1)
            (lines[name],) = axis.plot(
                evaluations, curves[name], linewidth=width, color=color, linestyle=style
            )
        axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.grid(visible=True, alpha=0.25)
        axis.tick_params(which="both", labelsize=7)
    figure.supxlabel("unique evaluations", fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines), fontsize=9
    )
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
