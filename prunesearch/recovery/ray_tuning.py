"""Runs the trials of a tuning study in workers of Ray, each trial in a worker of its own.

The study is asked and told in this process only. A trial whose worker dies is run again. It
continues from its checkpoints if they are on a disk that the nodes share.
"""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import optuna
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from prunesearch.errors import RunError, one_line
from prunesearch.evaluation.ray_cluster import described
from prunesearch.evaluation.ray_handle import WorkerResources
from prunesearch.evaluation.ray_pool import ROOM_SECONDS
from prunesearch.evaluation.ray_worker import NotLoaded, Place
from prunesearch.recovery.ray_trial_worker import (
    CONTROL,
    BuildTrials,
    Losses,
    RayTrialWorker,
    TrialRequest,
)
from prunesearch.recovery.run_folder import Healed
from prunesearch.recovery.tuning import TrialRun
from prunesearch.runtime import stopping
from prunesearch.runtime.closing import Closing

_ATTEMPTS = 3  # deaths in a row after which a trial is taken as the cause
_POLL_SECONDS = 0.2


class RayRunner(Closing):
    """Runs as many trials at once as there are workers; see `tuning.TrialRunner`.

    This process must be connected to Ray; see `ray_cluster.connected`.

    Args:
        build: see `BuildTrials`.
        workers: number of workers.
        resources: what each worker asks for.
        room_seconds: longest time in which some node must have room for a worker.
    """

    def __init__(
        self,
        build: BuildTrials,
        workers: int,
        resources: WorkerResources,
        room_seconds: float = ROOM_SECONDS,
    ) -> None:
        self.at_once = workers
        self._resources, self._room_seconds = resources, room_seconds
        # Ray's annotations do not know the groups.
        remote: Any = ray.remote
        groups = remote(concurrency_groups={CONTROL: 4})(RayTrialWorker)
        options: dict[str, Any] = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_restarts": -1,
            "scheduling_strategy": "SPREAD",
        }
        self._actors: list[Any] = []
        for _ in range(workers):
            self._actors.append(groups.options(**options).remote(build))
        self._turns = itertools.count(1)
        # Trials are reported from several threads.
        self._study = threading.Lock()

    def run(self, runs: Sequence[TrialRun]) -> Sequence[Healed | None]:
        """Run trials at once, and return their results in the same order.

        Raises:
            RunError: a worker cannot start, or it dies repeatedly over one trial.
            StopRequested: a stop was requested. The trials can be resumed.
        """
        # Start each trial in a thread, which talks with the worker of the trial.
        pairs = list(zip(self._actors, runs, strict=False))
        with ThreadPoolExecutor(len(pairs)) as threads:
            futures: list[Future[Healed | None]] = []
            for number, (actor, run) in enumerate(pairs):
                futures.append(threads.submit(self._run_one, number, actor, run))
            # Wait for all of them, and look for a stop meanwhile.
            try:
                left = set(futures)
                while left:
                    stopping.check()
                    done, left = wait(left, _POLL_SECONDS, FIRST_COMPLETED)
                    for future in done:
                        future.result()
            except BaseException:
                # Without their workers the threads end.
                self.close()
                raise
        return [future.result() for future in futures]

    def _run_one(self, number: int, actor: Any, run: TrialRun) -> Healed | None:  # noqa: ANN401
        """Run a trial in a worker, again if the worker dies.

        Raises:
            RunError: see `run`.
        """
        planned = run.planned
        folder = f"{run.folder.parent.name}/{run.folder.name}"
        request = TrialRequest(
            planned.candidate, planned.recipe, planned.name, folder, planned.digest
        )
        for _ in range(_ATTEMPTS):
            where = f"worker {number}"
            # Wait for room, have the model loaded, and run the trial.
            try:
                place: Place = self._placed(actor)
                where = f"worker {number} on node {place.host}"
                problem = ray.get(actor.load.options(max_task_retries=0).remote())
                if problem is not None:
                    raise RunError(f"{where} cannot start: {problem}")
                result = self._talk(actor, request, run)
            except RayTaskError as error:
                raise RunError(f"{where} failed: {one_line(error.cause or error)}") from error
            except RayError:
                continue
            if isinstance(result, NotLoaded):
                continue  # Ray started it again between the two calls
            if isinstance(result, Exception):
                raise RunError(f"{where} {one_line(result)}")
            return result
        raise RunError(
            f"workers died {_ATTEMPTS} times over {planned.name} (out of memory?): give more "
            f"`gpus_per_worker`, or fewer `workers`"
        )

    def _placed(self, actor: Any) -> Place:  # noqa: ANN401 (of Ray)
        """Wait until a worker runs on a node, and return where.

        Raises:
            RunError: no node has room.
        """
        control = {"concurrency_group": CONTROL, "max_task_retries": -1}
        try:
            asked = actor.place.options(**control).remote()
            place: Place = ray.get(asked, timeout=self._room_seconds)
        except GetTimeoutError:
            raise RunError(
                f"no node of the Ray cluster has had room for a worker of {self._resources} for "
                f"{self._room_seconds:.0f} s: it has {described()}; give fewer `workers`, or less "
                f"`gpus_per_worker`"
            ) from None
        return place

    def _talk(
        self,
        actor: Any,  # noqa: ANN401 (of Ray)
        request: TrialRequest,
        run: TrialRun,
    ) -> Healed | Exception | NotLoaded | None:
        """Start a trial, and answer after each evaluation whether it goes on."""
        turn = next(self._turns)
        result = actor.run.options(max_task_retries=0).remote(request, turn)
        control = {"concurrency_group": CONTROL, "max_task_retries": 0}
        while True:
            losses: Losses | None = ray.get(actor.next_losses.options(**control).remote(turn))
            # Without further losses the trial is done.
            if losses is None:
                answer: Healed | Exception | NotLoaded | None = ray.get(result)
                return answer
            actor.answer.options(**control).remote(self._goes_on(run, losses))

    def _goes_on(self, run: TrialRun, losses: Losses) -> bool:
        """Report losses to the pruner, and return whether the trial goes on."""
        with self._study:
            try:
                run.check(losses)
            except optuna.TrialPruned:
                return False
            return True

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            ray.kill(actor)
