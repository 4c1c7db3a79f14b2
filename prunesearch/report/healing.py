"""Results of healing, for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunesearch.report.export import exported
from prunesearch.report.models import evaluation
from prunesearch.report.search import found
from prunesearch.report.tables import (
    LayerList,
    duration,
    gib,
    table,
)
from prunesearch.runtime.json_values import as_object, to_json

if TYPE_CHECKING:
    from rich.console import Group

    from prunesearch.report.results import HealReport, RecoveredReport


def healed(report: "HealReport") -> "list[Group | str]":
    """Show the result of a heal command."""
    # The stages of an earlier, equal export are JSON values. Those of this command become the same.
    document: Mapping[str, Any] = as_object(to_json(report), "heal")
    parts: list[Group | str] = []
    if finalists := document.get("finalists"):
        parts.append(_final(finalists))
    if done := document.get("compensation"):
        parts.append(
            f"compensation recovered {done['recovered']:.1%} of the log-perplexity that pruning "
            f"lost, without training"
        )
    if tuning := document.get("tuning"):
        params = ", ".join(f"{name} {value:.3g}" for name, value in tuning["params"].items())
        parts.append(
            f"study {tuning['study']}: {tuning['trials']} trials finished, {tuning['pruned']} "
            f"stopped, "
            f"{tuning['computed']} of them now; best {tuning['value']:.4f} with {params}"
        )
    if "healed" in document:
        parts += _healing(document)
    if report.export is None:
        return [*parts, f"{report.out} holds this very export already and was left as it is"]
    return [*parts, *exported(report.export)]


def _final(finalists: Sequence[Mapping[str, Any]]) -> "Group":
    """Show the finalists with their losses before and after a short healing."""
    rows = []
    for place, finalist in enumerate(finalists, 1):
        compensated = "-"
        if finalist["compensated"] is not None:
            compensated = f"{finalist['compensated']:.4f}"
        rows.append(
            (
                place,
                finalist["place"],
                f"{finalist['pruned']:.4f}",
                compensated,
                f"{finalist['healed']:.4f}",
                f"{finalist['seconds']:.0f}",
                LayerList(finalist["candidate"]),
            )
        )
    columns = (
        "place",
        "in the search",
        "pruned",
        "compensated",
        "healed",
        "seconds",
        "layers dropped",
    )
    return table("Finalists, with the held-out loss (nats/token)", columns, rows)


def _healing(document: Mapping[str, Any]) -> "list[Group | str]":
    """Show the losses and the speed of a training, and how it ended."""
    report, recipe = document["healed"], document["recipe"]
    losses = [(model, "", f"{loss:.4f}") for model, loss in document["losses"].items()]
    if "compensation" in document:
        losses.append(("compensated", "", f"{report['before']:.4f}"))
    losses.append(("healed", str(report["best_step"]), f"{report['after']:.4f}"))
    title = f"Held-out loss (nats/token) without layers {document['dropped']}"
    parts: list[Group | str] = [
        table(title, ("model", "step", "cross-entropy"), losses),
        *_distilled(report, recipe),
        _trained(report, recipe),
    ]
    if report["diverged"]:
        parts.append(
            f"training diverged at step {report['steps']} and was stopped; step "
            f"{report['best_step']} was kept: "
            "try a smaller --lr"
        )
    elif report["stopped_early"]:
        parts.append(
            f"stopped early: {recipe['patience']} looks were no better than step "
            f"{report['best_step']}"
        )
    if report["best_step"] == 0:
        parts.append("no step was better than the start, whose weights were kept")
    if report["cached"]:
        where = document.get("work", document["out"])  # of a finished export, its own folder
        parts.append(f"nothing was trained: this run was finished before and is kept in {where}")
    elif report["resumed_from"]:
        parts.append(f"went on from step {report['resumed_from']}")
    return parts


def _distilled(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """Show the loss that a distillation lowers, which is not the cross-entropy of the table."""
    if recipe["loss"] == "lm":
        return []
    # A run that was finished before is read from its export, which does not hold the curves.
    losses = dict(report.get("watched_loss", ()))
    before, after = losses.get(0), losses.get(report["best_step"])
    if before is None or after is None:
        return []
    return [
        f"the loss that was trained ({recipe['loss']}), on held-out text: {before:.4f} before, "
        f"{after:.4f} after"
    ]


def _trained(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Describe the size and the speed of a training."""
    speed = ""
    if report["seconds"]:
        speed = f", {report['steps'] / report['seconds']:.3g} steps/s"
    return (
        f"{report['steps']} of {report['planned']} steps of "
        f"{recipe['batch_size'] * recipe['accumulation']} × "
        f"{recipe['window']} tokens, loss {recipe['loss']}, rank {recipe['rank']}: "
        f"{report['tokens']:,} tokens in "
        f"{duration(report['seconds'])}{speed}, peak memory {gib(report['peak_memory'])}"
    )


def recovered(report: "RecoveredReport") -> "list[Group | str]":
    """Show a search and the recovery of its best candidate."""
    parts: list[Group | str] = [*found(report.search), *healed(report.heal)]
    if report.evaluation is not None:
        parts += evaluation(report.evaluation)
    return parts
