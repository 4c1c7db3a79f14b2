"""Load on a service: clients that submit, list and follow jobs, and the proof that nothing was
lost.
"""

import secrets
import threading
import time
from collections import Counter
from pathlib import Path

from benchmarks.support.running_service import MODEL, RunningService
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import ServerError
from prunesearch.pipeline.run import report_of
from prunesearch.pipeline.state import Request
from prunesearch.service.following import follow
from prunesearch.service.job import FINAL, Job, JobRequest
from prunesearch.service.jobs import Jobs
from prunesearch.studies import persistence

SAMPLERS = ("pso", "woa", "evolution")
Trials = list[tuple[int, dict[str, object], object, str]]
"""Number, parameters, values and state of each trial of a study."""


class JobLoad:
    """Clients of a service, in threads.

    Args:
        service: the service.
        trials: trials of each job.
        tokens: tokens of text on which a candidate is scored.

    Attributes:
        keys: job that was acknowledged for each idempotency key.
        conflicts: keys for which the server acknowledged a second job.
        seen: sequence numbers of the events that the follower of each job saw.
        failures: what went wrong in a thread.
    """

    def __init__(self, service: RunningService, trials: int, tokens: int) -> None:
        self._service, self._trials, self._tokens = service, trials, tokens
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._requests: dict[str, JobRequest] = {}
        self._started_followers: set[str] = set()
        self.keys: dict[str, str] = {}
        self.conflicts: list[str] = []
        self.seen: dict[str, list[int]] = {}
        self.failures: list[str] = []
        self.lists = 0

    def recipe(self, number: int) -> Recipe:
        """Return the recipe of a job. Each has a study of its own."""
        return Recipe(
            model=MODEL,
            drop="5",
            sampler=SAMPLERS[number % len(SAMPLERS)],
            seed=number,
            tokens=self._tokens,
            window=64,
            population=5,
        )

    def submit(self) -> str:
        """Submit a job until it is acknowledged, and follow it. Return its identifier."""
        with self._lock:
            number = len(self._requests)
            key = f"key-{number}-{secrets.token_hex(4)}"
            document = self.recipe(number).document()
            self._requests[key] = JobRequest(document, "search", self._trials)
        job = self._acknowledged(key)
        self._start(self._follow, job)
        return job

    def _acknowledged(self, key: str) -> str:
        """Send a submission until there is a reply."""
        with self._service.client() as client:
            while True:
                try:
                    job, _ = client.submit(self._requests[key], key)
                except ServerError:
                    time.sleep(0.1)
                    continue
                with self._lock:
                    if self.keys.setdefault(key, job.id) != job.id:
                        self.conflicts.append(key)
                return job.id

    def start(self) -> None:
        """Start the clients that list jobs and that repeat submissions."""
        self._start(self._list)
        self._start(self._repeat)

    def _start(self, target: object, *arguments: str) -> None:
        def guarded() -> None:
            try:
                target(*arguments)  # type: ignore[operator]
            except Exception as error:  # noqa: BLE001 (the benchmark reports it)
                self.failures.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _list(self) -> None:
        with self._service.client() as client:
            while not self._ended.wait(0.2):
                try:
                    client.jobs(limit=20)
                    self.lists += 1
                except ServerError:
                    continue

    def _repeat(self) -> None:
        """Send submissions again, as clients do that did not get the reply."""
        while not self._ended.wait(1.0):
            with self._lock:
                known = list(self.keys)
            if known:
                self._acknowledged(secrets.choice(known))

    def _follow(self, job: str) -> None:
        seen = self.seen.setdefault(job, [])
        with self._service.client() as client:
            for event in follow(client, job):
                seen.append(event.seq)

    def end(self, patience: float) -> None:
        """Wait until the followers saw the end of their jobs, and stop the other clients."""
        self._ended.set()
        end = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.failures.append("a client did not end")

    def wait(self, jobs: Jobs, patience: float) -> list[Job]:
        """Wait until all jobs have ended, and return them.

        Raises:
            TimeoutError: they have not within `patience` seconds.
        """
        end = time.monotonic() + patience
        while time.monotonic() < end:
            found = [jobs.get(job) for job in self.keys.values()]
            if all(job.state in FINAL for job in found):
                return found
            time.sleep(0.2)
        states = Counter(jobs.get(job).state for job in self.keys.values())
        raise TimeoutError(f"jobs have not ended: {dict(states)}")

    def stored(self, jobs: Jobs) -> int:
        """Return the number of jobs in the database."""
        return sum(jobs.counts().values())

    def missed_and_doubled(self, jobs: Jobs) -> tuple[int, int]:
        """Compare what the followers saw with the events in the database."""
        missed = doubled = 0
        for job, seen in self.seen.items():
            stored = stored_events(jobs, job)
            missed += len(set(stored) - set(seen))
            doubled += len(seen) - len(set(seen))
        return missed, doubled

    def lost_evaluations(self, jobs: Jobs) -> int:
        """Return the number of told trials that their study does not have, or has otherwise."""
        lost = 0
        for job in self.keys.values():
            values = set()
            for _, _, value, state in trials_of(
                self._service.settings.storage, jobs.get(job).study
            ):
                if state == "COMPLETE":
                    values.add(str(value))
            told = set()
            after = 0
            while events := jobs.events(job, after, 1000):
                for event in events:
                    if event.kind == "search" and event.data.get("value") is not None:
                        told.add(str([event.data["value"]]))
                after = events[-1].seq
            lost += len(told - values)
        return lost

    def differing(self, jobs: Jobs, scratch: Path, most: int) -> int:
        """Return how many studies differ from those of an undisturbed local run.

        Args:
            jobs: the jobs of the service.
            scratch: folder for the local runs.
            most: number of studies that are compared.
        """
        options = RunOptions(
            storage=f"sqlite:///{scratch / 'local.db'}",
            cache=str(scratch / "local-cache"),
            trials=self._trials,
            threads=1,
        )
        model = str(self._service.settings.models[0] / MODEL)
        differing = 0
        for number, job in list(enumerate(self.keys.values()))[:most]:
            recipe = self.recipe(number).with_changes(model=model)
            report_of("search", Request(options, (recipe,)))
            study = jobs.get(job).study
            ours = trials_of(self._service.settings.storage, study)
            differing += ours != trials_of(options.storage, study)
        return differing


def stored_events(jobs: Jobs, job: str) -> list[int]:
    """Return the sequence numbers of a job's events in the database."""
    numbers: list[int] = []
    while events := jobs.events(job, numbers[-1] if numbers else 0, 1000):
        numbers += [event.seq for event in events]
    return numbers


def trials_of(storage: str, study: str) -> Trials:
    """Return the trials of a study, without times."""
    found = persistence.load(persistence.open_storage(storage, create=False), study)
    trials: Trials = []
    for trial in found.get_trials(deepcopy=False):
        trials.append((trial.number, dict(trial.params), trial.values, trial.state.name))
    return trials
