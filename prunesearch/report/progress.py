"""Progress of long work on stderr: bars on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prunesearch import events
from prunesearch.errors import InputError
from prunesearch.events import HealProgress, Message, SearchProgress, StageProgress, WorkProgress
from prunesearch.report.healing_progress import HealingLines
from prunesearch.report.removals import Removal
from prunesearch.report.tables import Paragraph, duration
from prunesearch.report.work import work_done
from prunesearch.runtime import stopping
from prunesearch.runtime.masking import printable
from prunesearch.units import noun_for

_EVERY = 5.0  # seconds between plain lines about a study
_EVERY_STAGE = 15.0  # seconds between plain lines about a stage that is counted
_HOLD = 4.0  # seconds that the first stages of a log wait for what comes of them
_BAR, _LEFT = 12, 13  # columns for a bar at least, and for the time left


def _monotonic() -> float:
    """Return the time of this process."""
    return time.monotonic()


class _Clock:
    """Estimates the remaining time of a study from the mean time per trial so far.

    Trials finish in bursts, one generation at a time. So running trials count by the finished share
    of the generation's work. The estimate then neither jumps at a burst nor stands still between
    two.

    Attributes:
        each: seconds per evaluation of this run; None before the first.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.each: float | None = None
        self._now = now
        self._start = now()
        self._run = 0
        self._end: float | None = None

    def read(self, progress: SearchProgress, share: float) -> None:
        """Update the estimate.

        Args:
            progress: progress of the study.
            share: finished share of the work on the running trials.
        """
        now = self._now()
        run = progress.hits + progress.computed
        # The search was started again, as after a crash of its process. Its speed is not known yet.
        if run < self._run:
            self._start = now
            self.each = self._end = None
        self._run = run
        spent = now - self._start
        in_part = share * progress.under_way
        if run:
            self.each = spent / run
        if run + in_part:
            self._end = now + spent / (run + in_part) * max(
                0.0, progress.total - progress.done - in_part
            )

    @property
    def left(self) -> float | None:
        """Remaining seconds; None before the first evaluation."""
        if self._end is None:
            return None
        return max(0.0, self._end - self._now())


class ProgressView:
    """Shows events: the current stage, the progress of each study and of a healing, and messages.

    A study gets a bar, the time left, and its best trial with its layers. As a context manager, the
    view subscribes to the events of the ``with`` block.

    Args:
        console: where to draw. None: stderr.
        now: clock of the process that works, in seconds, with which its speed is estimated. None:
            this process works.
    """

    def __init__(
        self, console: Console | None = None, now: Callable[[], float] | None = None
    ) -> None:
        self.console = console or Console(stderr=True)
        self._now = now or _monotonic
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._studies: dict[str, SearchProgress] = {}
        self._clocks: dict[str, _Clock] = {}
        self._work: WorkProgress | None = None
        self._stage: StageProgress | None = None
        self._share = 0.0
        self._begun = ""  # the last stage that was not counted
        self._printed: dict[str, float] = {}
        self._subscription = ExitStack()
        self._held: list[str] | None = []  # the first plain lines; None once they are out
        self._timer: threading.Timer | None = None
        self._healing = HealingLines()

    def __enter__(self) -> Self:
        self._subscription.enter_context(events.subscribed(self.handle))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._subscription.close()
        self._stop()
        if not isinstance(error, InputError):
            self._release()
        elif self._timer is not None:
            self._timer.cancel()

    def handle(self, event: events.Event) -> None:
        """Show an event. Each kind of event has its method below."""
        match event:
            case Message():
                self._print(event.text)
            case StageProgress():
                self._show_stage(event)
            case SearchProgress():
                self._show_search(event)
            case WorkProgress():
                self._show_work(event)
            case HealProgress():
                self._show_healing(event)

    def _print(self, line: str) -> None:
        """Print a line, above the bars if there are any."""
        self._release()
        self.console.print(
            Paragraph(line) if self.console.is_terminal else Text(printable(line)), soft_wrap=True
        )

    def _show_stage(self, stage: StageProgress) -> None:
        """Show a stage: as a bar if it is counted, else as a line."""
        with self._lock:
            if not stage.total:
                self._begin(stage.name)
                return
            self._stage = stage if stage.done < stage.total else None
            self._share = stage.done / stage.total
            for name, progress in self._studies.items():
                self._clocks[name].read(progress, self._share)
            if self.console.is_terminal:
                self._show()
            elif 0 < stage.done < stage.total and self._is_due(
                stage.name, _EVERY_STAGE, at_once=False
            ):
                self._print(f"{stage.name}: {stage.done}/{stage.total} {stage.unit}")

    def _show_search(self, progress: SearchProgress) -> None:
        """Show the progress of a study."""
        with self._lock:
            before = self._studies.get(progress.study)
            if before is not None and progress.under_way > before.under_way:
                self._share = 0.0  # another generation has begun
            self._studies[progress.study] = progress
            self._clocks.setdefault(progress.study, _Clock(self._now)).read(progress, self._share)
            if self.console.is_terminal:
                self._show()
                return
            ended = (
                progress.done == progress.total
                and before is not None
                and before.done < before.total
            )
            if ended or before is None or self._is_due(progress.study, _EVERY):
                self._printed[progress.study] = time.monotonic()
                trials = noun_for(progress.total, "trial")
                line = f"{progress.study}: {progress.done}/{progress.total} {trials}, "
                line += self._describe(progress)
                if left := self._left(progress):
                    line += f", {left}"
                self._print(line)

    def _show_work(self, progress: WorkProgress) -> None:
        """Show the progress of helping with a study."""
        with self._lock:
            self._work = progress
            if self.console.is_terminal:
                self._show()
            elif self._is_due(progress.study, _EVERY):
                trials = noun_for(progress.total, "trial")
                counts = f"{progress.done}/{progress.total} {trials}"
                self._print(f"{progress.study}: {counts}, {work_done(progress)}")

    def _show_healing(self, progress: HealProgress) -> None:
        """Show the progress of a healing: a bar on a terminal, and a line now and then."""
        with self._lock:
            self._healing.read(progress)
            terminal = self.console.is_terminal
            if terminal:
                unit = self._healing.unit(progress)
                self._show_stage(StageProgress(progress.name, progress.done, progress.total, unit))
            line = self._healing.line(progress, terminal=terminal)
            if line is not None:
                self._print(line)

    def _begin(self, name: str) -> None:
        """Print a stage that is not counted.

        The last lines of finished studies stay on the screen.
        """
        self._stage = None
        if name == self._begun:  # several studies go through the same stages
            return
        self._begun = name
        if all(study.done == study.total for study in self._studies.values()):
            self._stop()
        if self._held is None or self.console.is_terminal:
            self._print(name)
            return
        # In a log, refused input shall be one line, so the first stages are held back until work
        # continues.
        self._held.append(name)
        if self._timer is None:
            self._timer = threading.Timer(_HOLD, self._release)
            self._timer.daemon = True
            self._timer.start()

    def _release(self) -> None:
        """Print the lines that were held back."""
        with self._lock:
            held, self._held = self._held, None
            if self._timer is not None:
                self._timer.cancel()
            for line in held or ():
                self._print(line)

    def _is_due(self, name: str, seconds: float, at_once: bool = True) -> bool:
        """Return whether a plain line may be printed, so that lines do not come too often."""
        now = time.monotonic()
        last = self._printed.setdefault(name, float("-inf") if at_once else now)
        if now - last < seconds:
            return False
        self._printed[name] = now
        return True

    def _show(self) -> None:
        """Start to draw bars. This happens late, because downloads draw their own bars before."""
        if self._live is None:
            self._live = Live(
                console=self.console,
                get_renderable=self._picture,
                refresh_per_second=4,
                vertical_overflow="visible",
            )
            self._live.start()
            stopping.drawn(True)

    def _stop(self) -> None:
        """Leave the last picture on the screen and forget its studies."""
        with self._lock:
            live, self._live, self._stage = self._live, None, None
            self._work = None
        if live is not None:  # outside the lock, for which the drawing thread may wait
            live.stop()
            stopping.drawn(False)
        with self._lock:
            self._studies, self._clocks = {}, {}

    def _picture(self) -> RenderableType:
        with self._lock:
            return Group(*self._lines())

    def _lines(self) -> Iterator[RenderableType]:
        for name, progress in self._studies.items():
            name = printable(name)
            left = self._left(progress)
            if not left and progress.done == progress.total:
                left = "done"
            # A long name gets a line of its own.
            if len(name) > self.console.width - _BAR - 30:
                yield Text(name, no_wrap=True, overflow="fold")
                name = " "
            yield _bar(name, progress.done, progress.total, "", left)
            yield Paragraph(f"  {self._describe(progress)}", indent="    ")
        if self._work is not None:
            yield _bar(printable(self._work.study), self._work.done, self._work.total, "", "")
            yield Paragraph(f"  {work_done(self._work)}", indent="    ")
        if self._stage is not None:
            yield _bar(
                f"  {self._stage.name}", self._stage.done, self._stage.total, self._stage.unit, ""
            )
        if stopping.requested():
            yield Paragraph(stopping.STOPPING)

    def _describe(self, progress: SearchProgress) -> str:
        """Describe the best trial of a study and the speed of the search."""
        if progress.front:
            text = f"{progress.front} {noun_for(progress.front, 'trial')} on the front"
        elif progress.best_value is None:
            return "no result yet"
        else:
            left = Removal.of(progress.best_dropped or "").phrase
            text = f"best {progress.best_value:.4f} {left}"
        each = self._clocks[progress.study].each
        if each is None:
            return text
        hits = progress.hits / (progress.hits + progress.computed)
        return f"{text}, {hits:.0%} hits, {each:.2f} s/eval"

    def _left(self, progress: SearchProgress) -> str:
        seconds = self._clocks[progress.study].left
        if seconds is None or progress.done >= progress.total:
            return ""
        return f"{duration(round(seconds))} left"


def _bar(name: str, done: int, total: int, unit: str, left: str) -> Table:
    """Return a line with a bar that fills the remaining width and does not move when the numbers
    change.
    """
    counts = f"{done:>{len(str(total))}}/{total} {unit}".rstrip()
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True, min_width=len(name))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, min_width=len(counts))
    line.add_column(no_wrap=True, min_width=_LEFT)
    line.add_row(Text(name), ProgressBar(total, done), Text(counts), Text(left))
    return line
