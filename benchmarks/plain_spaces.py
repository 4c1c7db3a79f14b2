"""PSO and WOA over ordinary parameters, beside Optuna's TPE, CMA-ES and NSGA-II.

19 functions of 2 to 20 parameters (float, log, int, step, categorical), 12 seeds, 500 trials, every
sampler with its defaults. Optima are shifted away from the middle of the box, by another amount for
each seed. A run of 500 trials also is the run of 100 and of 200. The *textbook* samplers are PSO and
WOA without the surrogate.

For each function and number of trials, the better of TPE and CMA-ES is the one with the lower
geometric mean. A sampler is significantly worse if a paired t-test of log10 of the regrets says so
at 5 %. Regrets below 1e-8 count as 1e-8, which is solved (as in BBOB, N. Hansen et al., 2009).

Then: two objectives (the hypervolume of 200 trials), constraints (feasible trials among the last 50
of 150), and the sampler's own milliseconds per trial in studies of 100 to 10,000 trials.

    python -m benchmarks.plain_spaces --json benchmarks/results/plain_spaces.json

takes about 40 minutes on one core. Finished runs are kept in `--runs`, so a killed benchmark goes on.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from benchmarks.plain_parts.runs import Runs, ask_ms
from benchmarks.support.plain_problems import FRONTS, PROBLEMS
from benchmarks.support.record import Record, arguments

Real = NDArray[np.float64]
BUDGETS = (100, 200, 500)
OURS = ("pso", "woa")
OPTUNAS = ("tpe", "cmaes")
SAMPLERS = (*OURS, "pso-textbook", "woa-textbook", *OPTUNAS, "random")
_SOLVED = 1e-8


def verdict(ours_S: Real, theirs_S: Real) -> int:
    """Return 1 if our losses are significantly lower, -1 if they are higher, or 0."""
    difference_S = ours_S - theirs_S
    if not difference_S.any() or difference_S.size < 2:
        return 0
    if np.ptp(difference_S) < 1e-12:
        return -int(np.sign(difference_S[0]))
    if ttest_rel(ours_S, theirs_S).pvalue >= 0.05:
        return 0
    return -int(np.sign(difference_S.mean()))


def single_objective(record: Record, runs: Runs, names: Sequence[str], seeds: int) -> None:
    """Record how often each sampler is worse and better than the better of TPE and CMA-ES."""
    trials = record.by_size(500, 100, 20)
    budgets = [budget for budget in BUDGETS if budget <= trials] or [trials]
    regrets: dict[tuple[str, str], Real] = {}  # log10 of the best so far, shape (seeds, trials)
    for seed in range(seeds):
        for name in names:
            for sampler in SAMPLERS:
                losses = runs.losses(name, sampler, seed, trials)
                best_N = np.log10(np.maximum(np.minimum.accumulate(losses), _SOLVED))
                before = regrets.get((name, sampler), np.empty((0, trials)))
                regrets[name, sampler] = np.concatenate([before, best_N[None]])
    table: dict[str, dict[str, list[float]]] = {}
    for name in names:
        table[name] = {}
        for sampler in SAMPLERS:
            mean_N = regrets[name, sampler].mean(axis=0)
            table[name][sampler] = [round(float(mean_N[b - 1]), 3) for b in budgets]
    record.notes["mean_log10_regret"] = {"trials": budgets, "of": table}
    for sampler in SAMPLERS:
        if sampler in OPTUNAS:
            continue
        for budget in budgets:
            verdicts, worse = [], []
            for name in names:
                at = {s: regrets[name, s][:, budget - 1] for s in (sampler, *OPTUNAS)}
                better = min(OPTUNAS, key=lambda s: float(at[s].mean()))
                verdicts.append(verdict(at[sampler], at[better]))
                if verdicts[-1] < 0:
                    worse.append(name)
            bound = "<= 3" if sampler in OURS else None
            record.add(f"{sampler}_worse_at_{budget}", float(verdicts.count(-1)), bound)
            record.add(f"{sampler}_better_at_{budget}", float(verdicts.count(1)))
            record.notes[f"{sampler}_worse_at_{budget}"] = worse
    if record.size == "full":
        _plot(regrets, names)


def _plot(regrets: dict[tuple[str, str], Real], names: Sequence[str]) -> None:
    """Draw the mean of log10 of the regret by trials, one panel per function."""
    figure = Figure(figsize=(15, 12), layout="constrained")
    axes = figure.subplots(4, 5).ravel()
    for axis, name in zip(axes, names, strict=False):
        for sampler in SAMPLERS:
            line = "--" if "textbook" in sampler else "-"
            axis.plot(regrets[name, sampler].mean(axis=0), line, label=sampler)
        axis.set_title(name)
        axis.set_xlabel("trials")
        axis.set_ylabel("log10 of the regret")
    for axis in axes[len(names) :]:
        axis.axis("off")
    # The legend has a panel of its own.
    lines, labels = axes[0].get_legend_handles_labels()
    axes[len(names)].legend(lines, labels, loc="center")
    figure.savefig(Path(__file__).parent / "results" / "plain_spaces.png", dpi=80)


def two_objectives(record: Record, runs: Runs, seeds: int) -> None:
    """Record the hypervolumes of fronts, and how often ours are significantly smaller."""
    trials = record.by_size(200, 100, 20)
    for sampler in OURS:
        record.add(f"{sampler}_fronts_worse", 0.0, "<= 0")
        record.add(f"{sampler}_fronts_better", 0.0)
    for name in FRONTS:
        volume: dict[str, Real] = {}
        for sampler in (*OURS, "tpe", "nsga2", "random"):
            shares = [runs.hypervolume(name, sampler, seed, trials) for seed in range(seeds)]
            volume[sampler] = np.array(shares)
            record.add(f"{name}_{sampler}_hypervolume", float(volume[sampler].mean()))
        better = max(("tpe", "nsga2"), key=lambda s: float(volume[s].mean()))
        for sampler in OURS:
            said = verdict(-volume[sampler], -volume[better])
            record.figures[f"{sampler}_fronts_worse"] += said < 0
            record.figures[f"{sampler}_fronts_better"] += said > 0


def constraints(record: Record, runs: Runs, seeds: int) -> None:
    """Record how many of the last trials are feasible."""
    trials, last = record.by_size((150, 50), (150, 50), (20, 10))
    for sampler in (*OURS, "tpe", "random"):
        counts = [runs.feasible(sampler, seed, trials, last) for seed in range(seeds)]
        bound = ">= 40" if sampler in OURS and last == 50 else None
        record.add(f"{sampler}_feasible_of_last_{last}", float(np.mean(counts)), bound)


def reads(record: Record) -> None:
    """Record the sampler's own time per trial as a study grows."""
    for trials in record.by_size((100, 1000, 5000, 10_000), (100, 1000), (20,)):
        for sampler in OURS:
            record.add(f"{sampler}_ms_a_trial_{trials}_in_memory", ask_ms(sampler, trials, None))
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/s.db"
            record.add(f"pso_ms_a_trial_{trials}_sqlite", ask_ms("pso", trials, url))


def main() -> None:
    """Run the benchmark."""
    extra = {
        "--runs": {
            "type": Path,
            "default": Path("storage/plain_spaces"),
            "help": "folder of the finished runs",
        }
    }
    options = arguments(__doc__ or "", extra)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    record = Record("plain_spaces", options.size)
    names = record.by_size(
        PROBLEMS, ("sphere-5", "rastrigin-10", "hartmann-6", "tuning-8"), ("branin-2",)
    )
    seeds = record.by_size(12, 3, 2)
    with tempfile.TemporaryDirectory() as unkept:
        # A smoke run must not find the runs of another version.
        runs = Runs(Path(unkept) if record.size == "smoke" else options.runs)
        single_objective(record, runs, names, seeds)
        two_objectives(record, runs, seeds)
        constraints(record, runs, seeds)
    reads(record)
    record.finish(options.json)


if __name__ == "__main__":
    main()
