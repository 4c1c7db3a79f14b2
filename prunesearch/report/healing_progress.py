"""Progress of a healing as text: a bar's label, and lines for a log."""

import time

from prunesearch.events import HealProgress
from prunesearch.report.tables import duration

_EVERY = 10.0  # seconds between two lines
_UNITS = {"teacher": "sequences asked of the dense model", "training": "steps"}


class HealingLines:
    """Decides when the progress of healings is worth a line, and writes it.

    There is a line after each evaluation on the held-out text. In a log there are also lines in
    between, and one at the end of the teacher's phase.
    """

    def __init__(self) -> None:
        self._printed = float("-inf")
        self._last: tuple[str, str, int] = ("", "", 0)
        self._phase = ("", "")
        self._began = (0.0, 0)  # time of the phase's first event, and its progress at that time
        self._left = ""

    def read(self, progress: HealProgress) -> None:
        """Take note of an event. Call this once for each event, before the other methods."""
        now = time.monotonic()
        if (progress.name, progress.phase) != self._phase:
            self._phase = (progress.name, progress.phase)
            self._began = (now, progress.done)
        self._left = self._time_left(progress, now)

    def unit(self, progress: HealProgress) -> str:
        """Return the label of a bar: what is counted, and the time left."""
        return _UNITS[progress.phase] + self._left

    def line(self, progress: HealProgress, *, terminal: bool) -> str | None:
        """Return a line for an event, or None if it is not due.

        Args:
            progress: the event.
            terminal: True if there is a bar, so that only evaluations need a line.
        """
        state = (progress.name, progress.phase, len(progress.watched))
        evaluated = state != self._last
        if terminal:
            due = evaluated and bool(progress.watched)
        else:
            # Training ends with an evaluation.
            ended = progress.done >= progress.total and progress.phase == "teacher"
            due = evaluated or ended or time.monotonic() - self._printed >= _EVERY
        if not due:
            return None
        self._last, self._printed = state, time.monotonic()
        line = f"{progress.name}: {progress.done}/{progress.total} {_UNITS[progress.phase]}"
        if progress.loss is not None:
            line += f", loss {progress.loss:.4f}"
        if progress.watched:
            first, last = progress.watched[0][1], progress.watched[-1][1]
            best = min(loss for _, loss in progress.watched)
            line += f", held-out {last:.4f} (start {first:.4f}, best {best:.4f})"
        return line + self._left

    def _time_left(self, progress: HealProgress, now: float) -> str:
        """Return the time left at the rate of this phase.

        A resumed training counts from where it continued.
        """
        start, before = self._began
        if progress.done <= before or progress.done >= progress.total:
            return ""
        seconds = (now - start) / (progress.done - before) * (progress.total - progress.done)
        return f", {duration(round(seconds))} left"
