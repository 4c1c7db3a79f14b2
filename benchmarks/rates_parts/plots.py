"""Draws the notes of the searches: best so far, and the rates of each layer."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_STYLE = {
    "pso": ("black", "-"),
    "woa": ("tab:red", "-"),
    "evolution": ("tab:blue", "-"),
    "random": ("tab:gray", "-"),
    "llm": ("tab:green", "-"),
    "llm-shuffled": ("tab:green", "--"),
    "llm-renamed": ("tab:green", ":"),
}


def draw(notes: Mapping[str, Any], document: Path) -> list[Path]:
    """Draw the plots of all searched parts beside a document, and return their files."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    for part in ("search", "large"):
        if part in notes:
            written.append(_anytime(notes[part], _beside(document, part, "anytime")))
            written.append(_allocations(notes[part], _beside(document, part, "allocations")))
    return written


def _beside(document: Path, part: str, kind: str) -> Path:
    return document.with_name(f"{document.stem}_{part}_{kind}.png")


def _anytime(notes: Mapping[str, Any], path: Path) -> Path:
    """Draw the best KL after each evaluation: mean and standard deviation over the seeds."""
    from matplotlib import pyplot

    figure, axes_R = pyplot.subplots(
        1, len(notes), figsize=(6.5 * len(notes), 5.0), layout="constrained", squeeze=False
    )
    for axes, (ratio, found) in zip(axes_R[0], notes.items(), strict=True):
        least = math.inf
        for row in found["rows"]:
            count = min(found["trials"], *(len(study["best"]) for study in row["studies"]))
            best_SN = np.array([study["best"][:count] for study in row["studies"]])
            color, line = _STYLE.get(row["method"], (None, "-."))
            x = np.arange(1, count + 1)
            mean, sd = best_SN.mean(axis=0), best_SN.std(axis=0)
            (drawn,) = axes.plot(x, mean, line, color=color, label=row["method"])
            axes.fill_between(x, mean - sd, mean + sd, color=drawn.get_color(), alpha=0.12)
            least = min(least, float(mean[-1] - sd[-1]))
        # Most fixed allocations are far above all searches, and are left out.
        best_fixed = min(each["kl"] for each in found["fixed"])
        top = best_fixed + max(0.6 * (best_fixed - least), 0.02 * best_fixed)
        for each in found["fixed"]:
            if each["kl"] <= top:
                axes.axhline(each["kl"], color="tab:orange", linewidth=0.6)
                axes.annotate(each["name"], (1, each["kl"]), fontsize=7, color="tab:orange")
        axes.set_ylim(top=top)
        axes.set(xlabel="evaluations", ylabel="best KL (nats per token)", title=f"{ratio} removed")
        axes.grid(visible=True, alpha=0.25)
    axes_R[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _allocations(notes: Mapping[str, Any], path: Path) -> Path:
    """Draw the share that each layer lost, for the fixed allocations and the best of each method."""
    from matplotlib import pyplot

    figure, axes_RK = pyplot.subplots(
        len(notes), 2, figsize=(13.0, 4.2 * len(notes)), layout="constrained", squeeze=False
    )
    for axes_K, (ratio, found) in zip(axes_RK, notes.items(), strict=True):
        named = {each["name"]: each["rates"] for each in found["fixed"]}
        for row in found["rows"]:
            best = min(row["studies"], key=lambda study: float(study["kl"]))
            named[row["method"]] = best["rates"]
        for axes, kind, title in zip(axes_K, (0, 1), ("MLP", "attention"), strict=True):
            rates_ML = np.array([rates[kind] for rates in named.values()])
            image = axes.imshow(rates_ML, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
            axes.set(xlabel="layer", title=f"{title}: share removed, {ratio}")
            axes.set_yticks(range(len(named)), list(named), fontsize=7)
        figure.colorbar(image, ax=axes_K)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
