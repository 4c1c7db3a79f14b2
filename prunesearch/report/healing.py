"""Results of healing, for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunesearch.report.export import exported
from prunesearch.report.models import evaluation
from prunesearch.report.search import found
from prunesearch.report.tables import (
    LayerList,
    duration,
    gib,
    table,
)
from prunesearch.units import noun_for
from prunesearch.widths.layer_widths import described

if TYPE_CHECKING:
    from rich.console import Group

    from prunesearch.config.recovery import HealRecipe
    from prunesearch.report.results import (
        FinalistReport,
        HealedReport,
        HealReport,
        RecoveredReport,
    )


def healed(report: "HealReport") -> "list[Group | str]":
    """Show the result of a heal command."""
    recovery = report.recovery
    parts: list[Group | str] = []
    if finalists := recovery.finalists:
        parts.append(_final(finalists))
    if done := recovery.compensation:
        parts.append(
            f"compensation recovered {done.recovered:.1%} of the cross-entropy that pruning "
            f"added, without training"
        )
    if tuning := recovery.tuning:
        params = ", ".join(f"{name} {value:.3g}" for name, value in tuning.params.items())
        parts.append(
            f"study {tuning.study}: {tuning.trials} {noun_for(tuning.trials, 'trial')} finished, "
            f"{tuning.pruned} stopped, "
            f"{tuning.computed} of them now; best {tuning.value:.4f} with {params}"
        )
    if recovery.healed is not None:
        parts += _healing(report, recovery.healed)
    if report.export is None:
        return [*parts, f"{report.out} holds this very export already and was left as it is"]
    return [*parts, *exported(report.export)]


def _final(finalists: "Sequence[FinalistReport]") -> "Group":
    """Show the finalists with their losses before and after a short healing."""
    rows = []
    for place, finalist in enumerate(finalists, 1):
        compensated = "-"
        if finalist.compensated is not None:
            compensated = f"{finalist.compensated:.4f}"
        rows.append(
            (
                place,
                finalist.place,
                f"{finalist.pruned:.4f}",
                compensated,
                f"{finalist.healed:.4f}",
                f"{finalist.seconds:.0f}",
                LayerList(finalist.candidate),
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


def _healing(heal: "HealReport", report: "HealedReport") -> "list[Group | str]":
    """Show the losses and the speed of a training, and how it ended."""
    recovery = heal.recovery
    recipe = recovery.recipe
    assert recipe is not None
    assert recovery.losses is not None
    losses = [(model, "", f"{loss:.4f}") for model, loss in recovery.losses.items()]
    if recovery.compensation is not None:
        losses.append(("compensated", "", f"{report.before:.4f}"))
    losses.append(("healed", str(report.best_step), f"{report.after:.4f}"))
    title = f"Held-out loss (nats/token) {described(recovery.dropped)}"
    parts: list[Group | str] = [
        table(title, ("model", "step", "cross-entropy"), losses),
        *_distilled(report, recipe),
        _trained(report, recipe),
    ]
    if report.diverged:
        parts.append(
            f"training diverged at step {report.steps} and was stopped; step "
            f"{report.best_step} was kept: "
            "try a smaller --lr"
        )
    elif report.stopped_early:
        evaluations = noun_for(recipe.patience, "evaluation was", "evaluations were")
        parts.append(
            f"stopped early: {recipe.patience} {evaluations} no better than step {report.best_step}"
        )
    if report.best_step == 0:
        parts.append("no step was better than the start, whose weights were kept")
    if report.cached:
        where = recovery.work or heal.out  # of a finished export, its own folder
        parts.append(f"nothing was trained: this run was finished before and is kept in {where}")
    elif report.resumed_from:
        parts.append(f"went on from step {report.resumed_from}")
    return parts


def _distilled(report: "HealedReport", recipe: "HealRecipe") -> list[str]:
    """Show the loss that a distillation lowers, which is not the cross-entropy of the table."""
    if recipe.loss == "lm":
        return []
    # A run that was finished before is read from its export, which does not hold the curves.
    losses = dict(report.watched_loss or ())
    before, after = losses.get(0), losses.get(report.best_step)
    if before is None or after is None:
        return []
    return [
        f"the loss that was trained ({recipe.loss}), on held-out text: {before:.4f} before, "
        f"{after:.4f} after"
    ]


def _trained(report: "HealedReport", recipe: "HealRecipe") -> str:
    """Describe the size and the speed of a training."""
    speed = ""
    if report.seconds:
        speed = f", {report.steps / report.seconds:.3g} steps/s"
    return (
        f"{report.steps} of {report.planned} {noun_for(report.planned, 'step')} of "
        f"{recipe.batch_size * recipe.accumulation} × "
        f"{recipe.window} tokens, loss {recipe.loss}, rank {recipe.rank}: "
        f"{report.tokens:,} tokens in "
        f"{duration(report.seconds)}{speed}, peak memory {gib(report.peak_memory)}"
    )


def recovered(report: "RecoveredReport") -> "list[Group | str]":
    """Show a search and the recovery of its best candidate."""
    parts: list[Group | str] = [*found(report.search), *healed(report.heal)]
    if report.evaluation is not None:
        parts += evaluation(report.evaluation)
    return parts
