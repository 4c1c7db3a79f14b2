"""Events: what long work reports while it runs.

Code that works publishes events with `tell`. Progress bars, logs and tests subscribe with
`subscribed`. There is no other way, so that a new subscriber sees everything::

    with events.subscribed(print):
        prunesearch.run(recipe)

A handler is called in the thread that does the work, so it should return quickly. A handler that
raises an `Exception` does not stop the work: the failure is logged once, and the handler receives
no further events. A `BaseException` passes. A handler can therefore stop the work, and keep what is
finished, by raising `KeyboardInterrupt`, as Ctrl-C does.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from prunesearch.candidate import Evaluation
from prunesearch.errors import one_line

_log = logging.getLogger(__name__)
Scalar: TypeAlias = bool | int | float | str
"""Value of a parameter or a figure."""


@dataclass(frozen=True)
class Message:
    """A line of text for the user.

    Attributes:
        text: the line, without a line break.
    """

    text: str


@dataclass(frozen=True)
class StageProgress:
    """A step of long work, and the progress in it.

    Attributes:
        name: name of the step, such as ``loading the model``.
        done, total: number of finished units, and of all units. A total of 0 means that the units
            are not counted.
        unit: name of the counted units, in the plural.
    """

    name: str
    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True)
class SearchProgress:
    """Progress of a study. It is published when the study is opened and after each trial.

    Attributes:
        study: name of the study.
        done, total: number of finished trials, and of all trials that the study shall have.
        hits, computed: evaluations of this run that were found in the cache, or were computed.
        best_value, best_dropped: value and dropped layers of the best trial; None if there is none.
        evaluation: evaluation of the last trial, or None at the start.
        under_way: number of trials that are being evaluated.
        front: number of non-dominated trials of a Pareto study, which has no best trial; 0 for
            other studies.
        value: first value of the last trial; None at the start, and if the trial failed.
        trial: number of the last trial; None at the start.
        costs: costs of the last trial's candidate, such as ``params`` and ``bytes``.
    """

    study: str
    done: int
    total: int
    hits: int = 0
    computed: int = 0
    best_value: float | None = None
    best_dropped: str | None = None
    evaluation: Evaluation | None = None
    under_way: int = 0
    front: int = 0
    value: float | None = None
    trial: int | None = None
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ToldTrial:
    """A trial that an earlier command has finished.

    Attributes:
        number: number of the trial.
        value: its first value; None if it failed.
        complete: whether it can be the best one. A pruned trial cannot.
        finished: time at which it was finished, in seconds since 1970.
        figures: its metrics, costs and times by name.
    """

    number: int
    value: float | None
    complete: bool
    finished: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class StudyOpened:
    """A study is open, and its new trials are about to be run.

    Attributes:
        study: name of the study.
        kind: ``search`` for a search of candidates, ``tuning`` for one of hyper-parameters.
        run: identifier of the study in experiment trackers. None: the command does not track.
        parameters: what describes the study: its recipe, versions, and digests of model and data.
        recipe: recipe of the search as YAML text; empty for a tuning.
        maximize: whether larger values are better.
        earlier: the trials that are finished already, in the order in which they were finished.
    """

    study: str
    kind: Literal["search", "tuning"]
    run: str | None
    parameters: Mapping[str, Scalar]
    recipe: str = ""
    maximize: bool = False
    earlier: Sequence[ToldTrial] = ()


@dataclass(frozen=True)
class StudyFinished:
    """A study has the trials that were asked for.

    Attributes:
        study: name of the study.
        figures: what was found: the best candidate, and its figures beside the dense model's.
    """

    study: str
    figures: Mapping[str, Scalar]


@dataclass(frozen=True)
class TuningProgress:
    """A trial of a tuning was told.

    Attributes:
        study: name of the study.
        done: number of finished trials of the study.
        trial: number of the trial.
        value: lowest loss of the trial on the held-out text; None if it was pruned.
        figures: its hyper-parameters, and other numbers.
    """

    study: str
    done: int
    trial: int
    value: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class HealOpened:
    """A healing is about to train.

    Attributes:
        name: name of the healing, as in `HealProgress`.
        digest: digest of everything that determines the result.
        folder: folder of its files.
        parameters: its recipe, and what is healed.
    """

    name: str
    digest: str
    folder: Path
    parameters: Mapping[str, Scalar]


@dataclass(frozen=True)
class HealFinished:
    """A healing has trained.

    Attributes:
        name: name of the healing.
        figures: what was found: the best step, and losses in nats per token.
    """

    name: str
    figures: Mapping[str, Scalar]


@dataclass(frozen=True)
class DocumentMade:
    """A text about the results of a command is ready.

    Attributes:
        name: name of a file for it, such as ``report.json``.
        text: the text.
    """

    name: str
    text: str


@dataclass(frozen=True)
class WorkProgress:
    """Progress of a process that helps with somebody's study.

    Attributes:
        study: name of the study.
        done, total: number of finished trials of the study, and of all trials that it shall have.
        results: number of results that this process has scored for the study: one for each
            candidate and chunk of the data.
        candidates: number of candidates that these results belong to.
        running: number of trials that the study is evaluating.
        writer: description of the process that is searching the study; None if there is none.
    """

    study: str
    done: int
    total: int
    results: int = 0
    candidates: int = 0
    running: int = 0
    writer: str | None = None


@dataclass(frozen=True)
class HealProgress:
    """Progress of a healing.

    Attributes:
        name: name of the healing: ``heal``, ``trial 3`` of a tuning, or ``without 3,7`` of a
            finalist.
        phase: ``teacher`` counts sequences whose teacher logits are computed, ``training`` counts
            steps.
        done, total: number of finished units of the phase, and of all units.
        loss: training loss of the last step, in nats per token.
        watched: step and loss of every evaluation on the held-out text so far.
        held_out: step and next-token cross-entropy of these evaluations.
    """

    name: str
    phase: Literal["teacher", "training"]
    done: int
    total: int
    loss: float | None = None
    watched: Sequence[tuple[int, float]] = ()
    held_out: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class StageStarted:
    """A stage of the pipeline begins.

    Attributes:
        stage: name of the stage, as in `pipeline.stages`.
    """

    stage: str


@dataclass(frozen=True)
class StageFinished:
    """A stage of the pipeline has ended, or is not wanted.

    Attributes:
        stage: name of the stage.
        seconds: duration.
        skipped: whether the command does not want the stage.
    """

    stage: str
    seconds: float = 0.0
    skipped: bool = False


Event = (
    Message
    | StageProgress
    | SearchProgress
    | WorkProgress
    | HealProgress
    | StageStarted
    | StageFinished
    | StudyOpened
    | StudyFinished
    | TuningProgress
    | HealOpened
    | HealFinished
    | DocumentMade
)
EventHandler = Callable[[Event], None]
"""Function that receives events."""


class _Subscription:
    """A handler, which is skipped once it has failed."""

    def __init__(self, handler: EventHandler) -> None:
        self._handler, self._failed = handler, False

    def send(self, event: Event) -> None:
        """Call the handler. Its failure is logged and does not reach the work."""
        if self._failed:
            return
        try:
            self._handler(event)
        except Exception as error:  # noqa: BLE001 (a handler's failure must not stop the work)
            self._failed = True
            _log.warning(
                "a subscriber of events failed and gets no more of them: %s: %s",
                type(error).__name__,
                one_line(error),
            )


_subscriptions: ContextVar[tuple[_Subscription, ...]] = ContextVar("subscriptions", default=())


@contextmanager
def subscribed(handler: EventHandler) -> Iterator[None]:
    """Send the events of a ``with`` block to a handler, including those of its threads and tasks.

    Blocks can be nested. Each handler receives all events.
    """
    token = _subscriptions.set((*_subscriptions.get(), _Subscription(handler)))
    try:
        yield
    finally:
        _subscriptions.reset(token)


def tell(event: Event) -> None:
    """Publish an event. Without a subscriber, nothing happens."""
    for subscription in _subscriptions.get():
        subscription.send(event)


def tell_or_log(text: str) -> None:
    """Publish a message. Without a subscriber, log it as a warning."""
    if _subscriptions.get():
        tell(Message(text))
    else:
        _log.warning("%s", text)
