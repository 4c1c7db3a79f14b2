"""Recording: turns events into the records of runs.

Each study is a run, and each healing is one. A trial of a search is one point, whose step is the
number of finished trials. A step of a healing is one point. Points of one step come together, so
that steps only grow.
"""

import hashlib
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prunesearch import events
from prunesearch.events import Scalar
from prunesearch.runtime.masking import masked_text
from prunesearch.tracking.records import (
    Point,
    Record,
    RunDocument,
    RunEnd,
    RunPoints,
    RunStart,
    RunState,
    RunSummary,
)

_MOST_POINTS = 500  # of a record


@dataclass
class _StudyRun:
    """A run that follows a study."""

    run: str
    maximize: bool
    best: float | None = None

    def improve(self, value: float | None) -> None:
        """Take the value of a complete trial."""
        if value is None or not math.isfinite(value):
            return
        if self.best is None or (value > self.best if self.maximize else value < self.best):
            self.best = value


@dataclass
class _HealingRun:
    """A run that follows a healing, with the metrics of the step that is not recorded yet."""

    run: str
    step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    looks: int = 0  # evaluations that were read
    trained: int = 0  # last step whose training loss was read


class Recorder:
    """Makes records of events. It is a subscriber.

    Args:
        send: function that takes the records, and returns at once.
        now: clock, in seconds since 1970.
    """

    def __init__(
        self, send: Callable[[Record], None], now: Callable[[], float] = time.time
    ) -> None:
        self._send, self._now = send, now
        self._studies: dict[str, _StudyRun] = {}
        self._healings: dict[str, _HealingRun] = {}
        self._group = ""

    def handle(self, event: events.Event) -> None:
        """Record an event. Most kinds of events say nothing about a run."""
        match event:
            case events.StudyOpened():
                self._open_study(event)
            case events.SearchProgress():
                self._add_trial(event)
            case events.TuningProgress():
                self._add_tuning_trial(event)
            case events.StudyFinished():
                if study := self._studies.get(event.study):
                    self._summarise(study.run, event.figures)
            case events.HealOpened():
                self._open_healing(event)
            case events.HealProgress():
                self._add_step(event)
            case events.HealFinished():
                if healing := self._healings.get(event.name):
                    self._record_step(healing)
                    self._summarise(healing.run, event.figures)
            case events.DocumentMade():
                for run in self._runs():
                    self._send(RunDocument(run, event.name, masked_text(event.text)))

    def end(self, state: RunState) -> None:
        """Record the end of every run."""
        for healing in self._healings.values():
            self._record_step(healing)
        for run in self._runs():
            self._send(RunEnd(run, state))
        self._studies, self._healings = {}, {}

    def _runs(self) -> list[str]:
        studies = [study.run for study in self._studies.values()]
        return studies + [healing.run for healing in self._healings.values()]

    # Studies.

    def _open_study(self, event: events.StudyOpened) -> None:
        if event.run is None:
            return
        self._group = event.study
        # 1. Start the run of the tracker, or continue it.
        study = _StudyRun(event.run, event.maximize)
        self._studies[event.study] = study
        parameters = _shown(event.parameters)
        self._send(RunStart(study.run, event.study, event.kind, event.study, parameters))
        if event.recipe:
            self._send(RunDocument(study.run, "recipe.yaml", masked_text(event.recipe)))
        # 2. The tracker may not have all of the trials that earlier commands have finished.
        points = []
        for step, trial in enumerate(event.earlier, 1):
            if trial.complete:
                study.improve(trial.value)
            points.append(self._trial(study, step, trial.number, trial.value, trial.figures))
            points[-1] = Point(step, trial.finished, points[-1].metrics)
        for first in range(0, len(points), _MOST_POINTS):
            self._send(RunPoints(study.run, tuple(points[first : first + _MOST_POINTS])))

    def _add_trial(self, event: events.SearchProgress) -> None:
        study, evaluation = self._studies.get(event.study), event.evaluation
        if study is None or evaluation is None or event.trial is None:
            return
        # All that is known of the trial becomes metrics of one step.
        figures: dict[str, float] = {**evaluation.metrics, **event.costs}
        for name, value in evaluation.stderr.items():
            figures[f"{name}_stderr"] = value
        figures["seconds"], figures["cache_hit"] = evaluation.seconds, float(evaluation.cached)
        figures["saved_seconds"] = evaluation.saved
        # The best trial of a front is not defined.
        if event.best_value is not None:
            study.best = event.best_value
        point = self._trial(study, event.done, event.trial, event.value, figures)
        self._send(RunPoints(study.run, (point,)))

    def _add_tuning_trial(self, event: events.TuningProgress) -> None:
        study = self._studies.get(event.study)
        if study is not None:
            study.improve(event.value)
            point = self._trial(study, event.done, event.trial, event.value, event.figures)
            self._send(RunPoints(study.run, (point,)))

    def _trial(
        self,
        study: _StudyRun,
        step: int,
        number: int,
        value: float | None,
        figures: Mapping[str, float],
    ) -> Point:
        """Return the point of a trial."""
        metrics = {**figures, "trial": float(number)}
        if value is not None:
            metrics["value"] = value
        if study.best is not None:
            metrics["best_value"] = study.best
        return Point(step, self._now(), _finite(metrics))

    # Healings.

    def _open_healing(self, event: events.HealOpened) -> None:
        # The same healing in the same folder is continued, also after a kill.
        place = f"{event.digest} {socket.gethostname()} {event.folder.absolute()}"
        run = hashlib.sha256(place.encode()).hexdigest()[:16]
        name = f"{event.name} {event.digest[:8]}"
        self._healings[event.name] = _HealingRun(run)
        group = self._group or name
        self._send(RunStart(run, name, "healing", group, _shown(event.parameters)))

    def _add_step(self, event: events.HealProgress) -> None:
        healing = self._healings.get(event.name)
        if healing is None or event.phase != "training":
            return
        # The loss of a step comes before its evaluation, in an event of its own.
        if event.loss is not None and event.done > healing.trained:
            healing.trained = event.done
            self._add_metric(healing, event.done, "training_loss", event.loss)
        for place in range(healing.looks, len(event.watched)):
            step, loss = event.watched[place]
            self._add_metric(healing, step, "held_out_loss", loss)
            if place < len(event.held_out):
                self._add_metric(healing, step, "held_out_cross_entropy", event.held_out[place][1])
        healing.looks = len(event.watched)

    def _add_metric(self, healing: _HealingRun, step: int, name: str, value: float) -> None:
        """Add a metric of a step. An earlier step is complete then."""
        # Metrics come one by one, and a tracker takes a step once.
        if step != healing.step:
            self._record_step(healing)
            healing.step = step
        healing.metrics[name] = value

    def _record_step(self, healing: _HealingRun) -> None:
        if healing.metrics:
            point = Point(healing.step, self._now(), _finite(healing.metrics))
            self._send(RunPoints(healing.run, (point,)))
        healing.metrics = {}

    def _summarise(self, run: str, figures: Mapping[str, Scalar]) -> None:
        self._send(RunSummary(run, _shown(figures)))


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out numbers that are not finite, which not every tracker takes."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _shown(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return parameters without secrets, and without numbers that are not finite."""
    shown: dict[str, Scalar] = {}
    for name, value in parameters.items():
        # A text may hold the password of a database.
        if isinstance(value, str):
            shown[name] = masked_text(value)
        elif not isinstance(value, float) or math.isfinite(value):
            shown[name] = value
    return shown


def send_to_all(sends: Sequence[Callable[[Record], None]]) -> Callable[[Record], None]:
    """Return a function that hands a record to several functions."""

    def send(record: Record) -> None:
        for one in sends:
            one(record)

    return send
