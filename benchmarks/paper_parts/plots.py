"""The paper's Figures 5 to 10, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.paper_parts.comparison import Row, Spread
from benchmarks.paper_parts.measuring import Measured
from benchmarks.paper_parts.methods import METHODS, style
from benchmarks.paper_parts.timing import Times
from benchmarks.paper_parts.winners import Trace
from prunesearch.report.figures.styles import FIRST, STYLES

_DPI = 130
_KL_TICKS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8, 10)
_MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v",
    "cross": "P", "x": "X", "star": "*",
}  # fmt: skip
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def draw(
    folder: Path,
    traces: Sequence[Trace],
    rows: Sequence[Row],
    dense: Measured,
    times: Mapping[int, Times],
) -> list[Path]:
    """Draw all figures and return their files.

    Args:
        folder: folder of the files.
        traces: all studies.
        rows: all methods at all k.
        dense: the dense model on the held-out documents.
        times: times by number of dropped blocks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    swarms = [name for name in ("pso", "woa") if any(t.study.method == name for t in traces)]
    numbers = {"pso": (5, 6), "woa": (8, 9)}
    for method in swarms:
        quality, cost = numbers[method]
        own = [trace for trace in traces if trace.study.method == method]
        written.append(_quality(own, folder / f"figure{quality}_{method}_accuracy.png"))
        written.append(_cost(own, times, folder / f"figure{cost}_{method}_cost.png"))
    if swarms:
        both = [trace for trace in traces if trace.study.method in swarms]
        written.append(_drops(both, folder / "figure7_dropped_blocks.png"))
    written.append(_against_size(rows, dense, folder / "figure10_accuracy_and_size.png"))
    for by_kl, name in ((False, "best_so_far.png"), (True, "best_so_far_kl.png")):
        own = [trace for trace in traces if METHODS[trace.study.method].by_kl == by_kl]
        if own:
            written.append(_anytime(own, "KL" if by_kl else "acc_norm", folder / name))
    return written


def _color(method: str) -> str:
    return style(method).light


def _axes(count: int, width: float = 5.2, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes in at most two columns."""
    columns = min(2, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes_N = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for unused in axes_N[count:]:
        unused.set_visible(False)
    return figure, axes_N[:count]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    return path


def _ks(traces: Sequence[Trace]) -> list[int]:
    return sorted({trace.study.k for trace in traces})


def _quality(traces: Sequence[Trace], path: Path) -> Path:
    """Figures 5 and 8: every candidate, the best so far of each seed, and the worst."""
    ks = _ks(traces)
    method = traces[0].study.method
    figure, axes_N = _axes(len(ks))
    for axes, k in zip(axes_N, ks, strict=True):
        own = [trace for trace in traces if trace.study.k == k]
        for trace in own:
            numbers, values = [], []
            for number, trial in enumerate(trace.evaluations, 1):
                if trial.values:
                    numbers.append(number)
                    values.append(trial.values[0])
            axes.plot(numbers, values, ".", color="0.65", markersize=4)
            worst = int(np.argmin(values))
            axes.plot(numbers[worst], values[worst], "v", color="#D55E00", markersize=7)
            best = trace.best_so_far()
            axes.step(
                range(1, len(best) + 1), best, where="post", color=_color(method), linewidth=1.6
            )
        dense = own[0].data.dense.get("acc_norm")
        if dense is not None:
            axes.axhline(dense, color="black", linestyle=":", linewidth=1)
        axes.set(
            title=f"{k} blocks dropped",
            xlabel="evaluations",
            ylabel="acc_norm on the search documents",
        )
        axes.grid(visible=True, alpha=0.25)
    lines = axes_N[0].get_lines()
    axes_N[0].legend(
        [lines[0], lines[2], lines[1], lines[-1]],
        ["candidate", f"best so far ({method}, one line a seed)", "worst", "dense model"],
        fontsize=7,
    )
    figure.suptitle(f"{method}: searched on")
    return _save(figure, path)


def _cost(traces: Sequence[Trace], times: Mapping[int, Times], path: Path) -> Path:
    """Figures 6 and 9: size and predicted latency of each candidate, and the measured latency."""
    method = traces[0].study.method
    figure, (sizes, latencies) = _axes(2)
    for index, k in enumerate(_ks(traces)):
        color = STYLES[FIRST + index % 6].light
        trace = next(each for each in traces if each.study.k == k)
        numbers, bytes_N, predicted_N = [], [], []
        for number, trial in enumerate(trace.evaluations, 1):
            size, latency = trial.figure("bytes"), trial.figure("latency_ms")
            if size is not None and latency is not None:
                numbers.append(number)
                bytes_N.append(size / 1e6)
                predicted_N.append(latency)
        sizes.plot(numbers, bytes_N, color=color, label=f"k = {k}")
        latencies.plot(numbers, predicted_N, color=color, label=f"k = {k}, predicted")
        if k in times:
            measured = times[k].prefill_ms
            latencies.errorbar(
                max(numbers, default=1) * 1.03,
                measured.mean,
                yerr=0 if math.isnan(measured.stderr) else measured.stderr,
                color=color,
                fmt="D",
                markersize=4,
                capsize=3,
            )
    sizes.set(xlabel="evaluations", ylabel="size (MB)", title="size")
    title = "latency; diamonds: measured, ± error" if times else "latency, predicted"
    latencies.set(xlabel="evaluations", ylabel="prefill (ms)", title=title)
    for axes in (sizes, latencies):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.25)
        axes.legend(fontsize=7)
    figure.suptitle(f"{method}: size and latency of each candidate")
    return _save(figure, path)


def _drops(traces: Sequence[Trace], path: Path) -> Path:
    """Figure 7: how often each block is dropped, by all candidates and by the best tenth."""
    ks = _ks(traces)
    methods = list(dict.fromkeys(trace.study.method for trace in traces))
    figure, axes_N = _axes(len(ks), width=7.0, height=3.4)
    for axes, k in zip(axes_N, ks, strict=True):
        for method in methods:
            every: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = []
            values: list[float] = []
            for trace in traces:
                if (trace.study.k, trace.study.method) != (k, method):
                    continue
                complete = trace.data.complete()
                every.append(trace.data.dropped_shares(complete))
                values += [trial.values[0] for trial in complete]
            dropped_TU = np.concatenate(every)
            best = np.argsort(-np.asarray(values), kind="stable")[: max(5, len(values) // 10)]
            blocks = np.arange(dropped_TU.shape[1])
            color = _color(method)
            axes.plot(blocks, dropped_TU.mean(axis=0), "--", color=color, label=f"{method}: all")
            axes.plot(
                blocks,
                dropped_TU[best].mean(axis=0),
                "-o",
                color=color,
                markersize=3,
                label=f"{method}: best tenth",
            )
        axes.set(
            title=f"{k} blocks dropped",
            xlabel="block",
            ylabel="share of candidates that drop it",
            ylim=(-0.02, 1.02),
        )
        axes.grid(visible=True, alpha=0.25)
    axes_N[0].legend(fontsize=7)
    figure.suptitle("searched on")
    return _save(figure, path)


def _against_size(rows: Sequence[Row], dense: Measured, path: Path) -> Path:
    """Figure 10: held-out accuracy against size, before and after healing."""
    states = [False]
    if any(row.healed for row in rows):
        states.append(True)
    figure, axes_N = _axes(len(states), width=6.4, height=4.8)
    methods = list(dict.fromkeys(row.method for row in rows))
    for axes, healed in zip(axes_N, states, strict=True):
        for index, method in enumerate(methods):
            own = [row for row in rows if row.method == method and row.measured(healed)]
            if not own:
                continue
            look = style(method)
            # Points at one size stand side by side.
            shift = (index - len(methods) / 2) * 0.004 * dense.bytes / 1e6
            sizes = [row.measured(healed)[0].bytes / 1e6 + shift for row in own]
            spreads: list[Spread] = [row.accuracy(healed) for row in own]
            axes.errorbar(
                sizes,
                [spread.mean for spread in spreads],
                yerr=[0 if math.isnan(spread.stderr) else spread.stderr for spread in spreads],
                color=look.light,
                linestyle=_DASHES[look.dash],
                marker=_MARKERS[look.marker],
                markersize=5,
                linewidth=1,
                capsize=2,
                label=method,
            )
        low, high = dense.acc_norm - dense.stderr, dense.acc_norm + dense.stderr
        axes.axhspan(low, high, color="0.85", label="dense ± standard error over documents")
        axes.axhline(dense.acc_norm, color="black", linestyle=":")
        axes.axhline(0.25, color="0.5", linestyle="--", linewidth=0.8, label="guessing")
        axes.set(
            title="after LoRA" if healed else "before LoRA",
            xlabel="size (MB)",
            ylabel="acc_norm on held-out documents",
        )
        axes.grid(visible=True, alpha=0.25)
    handles, labels = axes_N[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    figure.suptitle(
        "held out; bars: standard error over seeds\npoints of one size stand side by side",
        fontsize=10,
    )
    return _save(figure, path)


def _anytime(traces: Sequence[Trace], fitness: str, path: Path) -> Path:
    """All methods with one fitness: the best so far on the data of the search, mean over seeds."""
    ks = _ks(traces)
    figure, axes_N = _axes(len(ks))
    for axes, k in zip(axes_N, ks, strict=True):
        for method in dict.fromkeys(trace.study.method for trace in traces):
            curves = []
            for trace in traces:
                if (trace.study.k, trace.study.method) == (k, method):
                    curves.append(trace.best_so_far())
            if not curves:
                continue
            length = min(map(len, curves))
            mean_N = np.mean([curve[:length] for curve in curves], axis=0)
            # All curves of a figure have one fitness, so each has the look of the method itself.
            look = style(method.removesuffix("-kl"))
            axes.step(
                np.arange(1, length + 1),
                mean_N,
                where="post",
                color=look.light,
                linestyle=_DASHES[look.dash],
                label=method,
            )
        axes.set(
            title=f"{k} blocks dropped",
            xlabel="evaluations",
            ylabel=f"best {fitness} so far" + (" (nats per token)" if fitness == "KL" else ""),
        )
        if fitness == "KL":
            # Greedy takes many times the evaluations, and its first candidates are far off.
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_formatter(NullFormatter())
            low, high = axes.get_ylim()
            axes.set_yticks([tick for tick in _KL_TICKS if low <= tick <= high])
        axes.grid(visible=True, alpha=0.25)
    axes_N[0].legend(fontsize=7)
    figure.suptitle("searched on; mean over seeds")
    return _save(figure, path)
