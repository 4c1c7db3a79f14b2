"""Progress and results of healing, for people."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prunesearch import events
from prunesearch.report.progress import ProgressView
from prunesearch.report.render import evaluation, exported, found
from prunesearch.report.tables import (
    Layers,
    duration,
    gib,
    table,
)

if TYPE_CHECKING:
    from rich.console import Group

_EVERY = 10.0  # seconds between two lines


class Standing(Protocol):
    """Progress of healing (see `heal.HealProgress`)."""

    @property
    def phase(self) -> str:
        """``teacher``, ``compensation`` or ``training``."""

    @property
    def done(self) -> int:
        """Number of finished sequences or steps."""

    @property
    def total(self) -> int:
        """Total number of sequences or steps."""

    @property
    def loss(self) -> float | None:
        """Loss of the last step."""

    @property
    def watched(self) -> Sequence[tuple[int, float]]:
        """Steps and losses on the held-out text."""


class HealingView:
    """Shows the progress of healing.

    On a terminal it shows a bar, and a line for each evaluation on the held-out text. Elsewhere it
    prints plain lines.

    Args:
        view: display of all progress.
    """

    def __init__(self, view: ProgressView | None = None) -> None:
        self._view = view or ProgressView()
        self._printed = float("-inf")
        self._said: tuple[str, str, int] = ("", "", 0)
        self._phase = ("", "")
        self._began = (0.0, 0)  # time of the phase's first event, and its progress at that time

    def say(self, line: str) -> None:
        """Print a line."""
        self._view.say(line)

    def progress(self, name: str, progress: Standing) -> None:
        """Show the progress of one candidate's healing."""
        now = time.monotonic()
        if (name, progress.phase) != self._phase:
            self._phase, self._began = (name, progress.phase), (now, progress.done)
        if progress.phase == "compensation":
            self.say(f"{name}: compensating")
            return
        left = self._left(progress, now)
        what = "sequences asked of the dense model" if progress.phase == "teacher" else "steps"
        terminal = self._view.console.is_terminal
        if terminal:
            self._view.stage(events.Stage(name, progress.done, progress.total, what + left))
        state = (name, progress.phase, len(progress.watched))
        looked = state != self._said
        # Print a line after each evaluation, and now and then outside a terminal. Training ends
        # with an evaluation.
        ended = progress.done >= progress.total and progress.phase == "teacher"
        due = not terminal and (now - self._printed >= _EVERY or ended)
        if not (due or looked) or (terminal and not progress.watched):
            return
        self._said, self._printed = state, now
        line = f"{name}: {progress.done}/{progress.total} {what}"
        if progress.loss is not None:
            line += f", loss {progress.loss:.4f}"
        if progress.watched:
            best = min(loss for _, loss in progress.watched)
            line += f", held-out {progress.watched[-1][1]:.4f} (start {progress.watched[0][1]:.4f}, best {best:.4f})"
        self.say(line + left)

    def _left(self, progress: Standing, now: float) -> str:
        """Return the time left at the rate of this phase.

        A resumed training counts from where it continued.
        """
        start, before = self._began
        if progress.done <= before or progress.done >= progress.total:
            return ""
        seconds = (now - start) / (progress.done - before) * (progress.total - progress.done)
        return f", {duration(round(seconds))} left"


def healed(document: Mapping[str, Any]) -> "list[Group | str]":
    """Show the result of a heal command."""
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
    if document["export"] is None:
        return [*parts, f"{document['out']} holds this very export already and was left as it is"]
    return [*parts, *exported(document["export"])]


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
                Layers(finalist["candidate"]),
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


def recovered(document: Mapping[str, Any]) -> "list[Group | str]":
    """Show a search and the recovery of its best candidate."""
    parts: list[Group | str] = [*found(document), *healed(document)]
    if "evaluation" in document:
        parts += evaluation(document["evaluation"])
    return parts
