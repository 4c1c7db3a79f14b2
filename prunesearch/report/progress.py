"""Progress of searches: rich bars on a terminal, plain lines elsewhere; always on stderr."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.table import Column

from prunesearch.candidate import Evaluation

_EVERY = 5.0  # seconds between plain lines


@dataclass(frozen=True)
class Progress:
    """Where a study stands.

    Attributes:
        done, total: finished trials, and how many there shall be.
        hits, computed: how this run's evaluations came about.
        best_value, best_dropped: the study's best trial, None while there is none.
        evaluation: the one just told, or None at the start.
    """

    study: str
    done: int
    total: int
    hits: int = 0
    computed: int = 0
    best_value: float | None = None
    best_dropped: str | None = None
    evaluation: Evaluation | None = None


class ProgressView:
    """Shows each study's progress: a bar, the best so far with its layers, hit rate and seconds per evaluation."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, ratio=1, overflow="ellipsis")),
            expand=True,
            console=self._console,
            transient=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, highlight=False, soft_wrap=not self._console.is_terminal)

    def progress(self, progress: Progress) -> None:
        """Show where a study stands."""
        self._started.setdefault(progress.study, time.monotonic())
        state = self._describe(progress)
        if self._console.is_terminal:
            task = self._tasks.get(progress.study)
            if task is None:
                self._bars.start()  # not before: a running display breaks the bars that downloads draw
                task = self._bars.add_task(
                    _short(progress.study), total=progress.total, completed=progress.done, state=""
                )
                self._tasks[progress.study] = task
            self._bars.update(task, completed=progress.done, total=progress.total, state=state)
            return
        now, last = time.monotonic(), self._printed.get(progress.study, float("-inf"))
        if progress.done == progress.total or now - last >= _EVERY:
            self._printed[progress.study] = now
            self.say(f"{progress.study}: {progress.done}/{progress.total} trials, {state}{self._left(progress)}")

    def _describe(self, progress: Progress) -> str:
        run = progress.hits + progress.computed
        if progress.best_value is None:
            return "no result yet"
        text = f"best {progress.best_value:.4f} without {progress.best_dropped}"
        if run:
            seconds = (time.monotonic() - self._started[progress.study]) / run
            text += f", {progress.hits / run:.0%} hits, {seconds:.2f} s/eval"
        return text

    def _left(self, progress: Progress) -> str:
        run = progress.hits + progress.computed
        if not run or progress.done == progress.total:
            return ""
        spent = time.monotonic() - self._started[progress.study]
        return f", {spent / run * (progress.total - progress.done):.0f} s left"


def _short(name: str, limit: int = 22) -> str:
    """A study's name cut to its end, which says what is searched."""
    return name if len(name) <= limit else "…" + name[-limit + 1 :]
