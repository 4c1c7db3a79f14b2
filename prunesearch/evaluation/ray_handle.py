"""The driver's side of a worker of Ray."""

import enum
import itertools
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from prunesearch.errors import RunError, one_line
from prunesearch.evaluation.ray_cluster import is_alive
from prunesearch.evaluation.ray_worker import CONTROL, NotLoaded, Place, RayWorker
from prunesearch.evaluation.stretches import Stretch
from prunesearch.evaluation.worker import Build, Content
from prunesearch.objectives.base import ChunkResult

ATTEMPTS = 3  # deaths in a row after which the candidates, or the model, are taken as the cause


@dataclass(frozen=True)
class WorkerResources:
    """What a worker asks Ray for.

    Attributes:
        cpus: number of CPU cores.
        gpus: number of GPUs. A part of a GPU is shared with other workers.
    """

    cpus: int = 1
    gpus: float = 0

    def __str__(self) -> str:
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        if not self.gpus:
            return cpus
        gpus = "1 GPU" if self.gpus == 1 else f"{self.gpus:g} GPUs"
        return f"{cpus} and {gpus}"


@dataclass(frozen=True)
class Died:
    """Message: a worker died. Ray starts it again.

    Attributes:
        rest: what is left of its stretch; None if it had none.
    """

    rest: Stretch | None


@dataclass(frozen=True)
class Refused:
    """Message: a worker has ended for good."""

    reason: RunError


class _Step(enum.Enum):
    """What a worker does."""

    PLACING = "waits until a node has room"
    LOADING = "loads its model"
    IDLE = "waits for candidates"
    SCORING = "scores a stretch"
    ENDED = "has ended"


Message = ChunkResult | Exception | Died | Refused | None


class RayHandle:
    """Handle of a worker of Ray: its actor, what it does, and its stretch.

    Args:
        build: see `Build`.
        number: number of the worker.
        content: content of this process. A worker with other content is refused.
        resources: what the worker asks for.
        turns: numbers of stretches.

    Attributes:
        place: where the worker runs; None while no node has room.
    """

    def __init__(
        self,
        build: Build,
        number: int,
        content: Content,
        resources: WorkerResources,
        turns: "itertools.count[int]",
    ) -> None:
        self._number, self._content, self._turns = number, content, turns
        self.place: Place | None = None
        self._stretch: Stretch | None = None
        self._turn = self._deaths = 0
        # Ray's annotations do not know the groups.
        remote: Any = ray.remote
        groups = remote(concurrency_groups={CONTROL: 1})
        self._actor: Any = (
            groups(RayWorker)
            .options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                max_restarts=-1,
                scheduling_strategy="SPREAD",
            )
            .remote(build, number)
        )
        self._find_place()

    @property
    def busy(self) -> bool:
        """True if the worker scores."""
        return self._step is _Step.SCORING

    @property
    def idle(self) -> bool:
        """True if the worker waits for candidates."""
        return self._step is _Step.IDLE

    @property
    def placed(self) -> bool:
        """True if the worker runs on a node."""
        return self._step not in (_Step.PLACING, _Step.ENDED)

    @property
    def ended(self) -> bool:
        """True if the worker does not come again."""
        return self._step is _Step.ENDED

    @property
    def waits_for(self) -> Any:  # noqa: ANN401 (of Ray)
        """What Ray answers next. None: nothing is asked."""
        return None if self._step in (_Step.IDLE, _Step.ENDED) else self._asked

    def assign(self, stretch: Stretch) -> None:
        """Have the worker score a stretch."""
        assert self.idle
        self._stretch, self._turn, self._step = stretch, next(self._turns), _Step.SCORING
        method = self._actor.score.options(num_returns="streaming", max_task_retries=0)
        self._asked = method.remote(stretch.work, self._turn)

    def receive(self) -> Message:
        """Receive what Ray has answered. It must be there already.

        Returns:
            A result; an exception, after which the rest of the stretch is not scored; news of the
            worker. None: the worker can score, or its stretch is done.
        """
        # Take the answer. An exception of Ray says that the worker, or its node, died.
        try:
            if self._step is _Step.SCORING:
                return self._heard(ray.get(next(self._asked)))
            answer = ray.get(self._asked)
        except StopIteration:  # the worker forgot the last word
            return self._heard(None)
        except RayTaskError as error:  # a failure that is not one of scoring
            return self._refuse(f"failed: {one_line(error.cause or error)}")
        except RayError as error:
            return self._bury(error)
        # A worker that has its place loads its model; one that has its model is compared.
        if isinstance(answer, Place):
            self._settle(answer)
            return None
        return self._begin(answer)

    def _heard(self, message: ChunkResult | Exception | NotLoaded | None) -> Message:
        """Note a message about the stretch."""
        assert self._stretch is not None
        if isinstance(message, NotLoaded):
            # It died while it had no stretch, so its candidates are not the cause.
            return self._start_again()
        if isinstance(message, ChunkResult):
            self._stretch.note(message)
        else:
            self._stretch, self._step = None, _Step.IDLE
        return message

    def _find_place(self) -> None:
        """Ask the worker where it is. It answers when Ray has found room and started it."""
        self._step = _Step.PLACING
        self.place = None
        # A pass that goes on, because only the connection was lost, is ended first.
        control = {"concurrency_group": CONTROL, "max_task_retries": -1}
        self._actor.stop.options(**control).remote(self._turn)
        self._asked = self._actor.place.options(**control).remote()

    def _settle(self, place: Place) -> None:
        """Have the worker load its model where Ray has placed it."""
        self.place, self._step = place, _Step.LOADING
        self._asked = self._actor.load.options(max_task_retries=0).remote()

    def _begin(self, answer: Content | RunError) -> Refused | None:
        """Take a worker that has its model. One with other content is ended."""
        if isinstance(answer, RunError):
            return self._refuse(f"cannot start: {answer}")
        difference = answer.unlike(self._content)
        if difference is not None:
            return self._refuse(
                f"has other content than this process ({difference.what}: {difference.digests}): "
                f"nothing of it was used; copy the same model and data to every node, and install "
                f"the same versions"
            )
        self._deaths, self._step = 0, _Step.IDLE
        return None

    def _bury(self, error: RayError) -> Died | Refused:
        """Note that the worker died. Ray has started it again, or does so when there is room."""
        if self._step is _Step.PLACING:
            # Ray repeats this question, so the worker cannot be created at all.
            return self._refuse(f"cannot start: {one_line(error)}")
        # The death of a node says nothing about the candidates.
        counted = self.place is None or is_alive(self.place.node)
        if self._stretch is not None:
            self._stretch.deaths += counted
        else:
            self._deaths += counted
        if self._deaths == ATTEMPTS:
            return self._refuse(
                f"died {ATTEMPTS} times while it loaded its model (out of memory?): give fewer "
                f"`workers`"
            )
        return self._start_again()

    def _start_again(self) -> Died:
        """Have the worker load its model anew. What has no result is handed out again."""
        rest = None
        if self._stretch is not None:
            rest, self._stretch = self._stretch.rest(), None
        self._find_place()
        return Died(rest)

    def _refuse(self, reason: str) -> Refused:
        """End the worker for good."""
        where = "" if self.place is None else f" on node {self.place.host}"
        self.end()
        return Refused(RunError(f"worker {self._number}{where} {reason}"))

    def stop(self) -> None:
        """End the worker's pass at its next block."""
        if self.busy:
            self._actor.stop.options(concurrency_group=CONTROL).remote(self._turn)

    def kill(self) -> None:
        """Kill a worker that does not stop its pass. Ray starts it again."""
        self._stretch = None
        ray.kill(self._actor, no_restart=False)
        self._find_place()

    def end(self) -> None:
        """End the worker."""
        if not self.ended:
            self._stretch, self._step, self.place = None, _Step.ENDED, None
            ray.kill(self._actor)
