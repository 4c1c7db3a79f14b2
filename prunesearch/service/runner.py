"""The runner: takes jobs from the queue and runs each in a process of its own.

Several runners, on one host or several, can share a database. Each has a row in `tables.RUNNERS`. A
runner whose process is gone has its jobs taken over by any other.
"""

import os
import platform
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import sqlalchemy
from dbos import DBOS, DBOSConfig
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache.location import shown
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject
from prunesearch.service import queue, workflow
from prunesearch.service.child import PROGRAM
from prunesearch.service.database import open_database
from prunesearch.service.event_log import EventLog
from prunesearch.service.event_writer import EventWriter
from prunesearch.service.job import Job
from prunesearch.service.job_reader import JobReader
from prunesearch.service.roll import Roll
from prunesearch.service.runners import RunnerStarted
from prunesearch.service.running_job import GRACE, InterruptedJob, RunningJob, Surroundings
from prunesearch.service.settings import ServiceSettings
from prunesearch.service.slots import Slots
from prunesearch.service.tables import JOB_RECORDS, workflow_table

LOOK = 0.3
"""Seconds between two looks at the states of jobs."""
PULSE = 2.0
"""Seconds between two signs of life of a runner, and two looks at the others."""
POLL = 0.5
"""Seconds between two looks at the queue."""
ORPHANED = 10.0
"""Seconds after which a job that no thread runs goes back into the queue."""
_MEMORY = 120.0  # seconds for which a failure of the database counts as recent


class Runner:
    """Runs jobs until it is stopped. There is one runner in a process.

    Args:
        settings: settings of the service.
        program: command of the process of a job. Tests give a quick one.
    """

    def __init__(self, settings: ServiceSettings, program: Sequence[str] = PROGRAM) -> None:
        self.id = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._settings = settings
        self._slots = Slots(settings.slots)
        self._around = Surroundings(settings, self._slots, program, self._database_failed)
        self._engine = open_database(settings.database)
        self._log, self._reader = EventLog(self._engine), JobReader(self._engine)
        self._roll = Roll(self._engine, self.id, self._slots)
        self._workflows = workflow_table(self._engine.dialect.name)
        self._running: dict[str, RunningJob] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        # Number of threads that run a job or wait for it.
        self._begun: defaultdict[str, int] = defaultdict(int)
        # Number of times that the queue gave a job to a thread of this process.
        self._turns: defaultdict[str, int] = defaultdict(int)
        # Jobs that the queue says are ours and that no thread runs, and since when.
        self._orphans: dict[str, float] = {}
        self._guard, self._ending = threading.Lock(), threading.Event()
        self._failed_at: float | None = None
        self._configured: DBOSConfig | None = None
        self._watcher = threading.Thread(target=self._watch, name="runner", daemon=True)

    def start(self) -> RunnerStarted:
        """Start to take jobs.

        Raises:
            StorageError: the database cannot be used.
        """
        # The client makes the tables of the queue. A queue that is there at the launch is looked at
        # at once.
        client = queue.open_client(self._settings.database)
        client.register_queue(
            queue.QUEUE, worker_concurrency=self._slots.count, polling_interval_sec=POLL
        )
        queue.close_client(client)
        self._roll.sign()
        workflow.attach(self._attend)
        self._configured = queue.configuration(self._settings.database, self.id)
        DBOS(config=self._configured)
        DBOS.launch()
        self._watcher.start()
        database = shown(self._settings.database)
        return RunnerStarted(self.id, os.getpid(), database, self._slots.count)

    def wait(self) -> None:
        """Wait until another thread stops the runner.

        Raises:
            StopRequested: a signal asks for the end.
        """
        stopping.wait_for(self._ending)

    def stop(self, grace: float = 15.0) -> None:
        """Interrupt all jobs and end. The jobs go on in another runner, or in the next one.

        Args:
            grace: seconds in which the processes of the jobs may end by themselves.
        """
        self._ending.set()
        with self._guard:
            jobs = list(self._running.values())
        for job in jobs:
            job.interrupt(grace)
        # The threads of the workflows end the processes.
        # One that waits for the database is given up.
        deadline = time.monotonic() + grace + 15
        while self._running and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._configured is not None:
            queue.close(self._configured)
        workflow.attach(None)
        self._watcher.join(timeout=5)
        # Without the database, the others see that the process is gone.
        with suppress(SQLAlchemyError):
            self._log.tell_states()
            self._roll.leave()
        self._engine.dispose()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @contextmanager
    def _attend(self, job: str, request: JsonObject) -> Iterator[RunningJob]:
        """Run a job inside the block.

        A job that was paused may be resumed while its process still runs. Then the queue gives it
        to a second thread. The first one ends its process, and the second one waits for that.
        """
        with self._guard:
            lock, earlier = self._locks[job], self._running.get(job)
            self._begun[job] += 1
            self._turns[job] += 1
            turn = self._turns[job]
        if earlier is not None:
            earlier.interrupt(GRACE)
        try:
            with lock:
                # Only the last thread that the queue gave the job to owns it.
                if self._turns[job] != turn:
                    raise InterruptedJob
                with self._run(job, request) as running:
                    yield running
        finally:
            with self._guard:
                self._begun[job] -= 1

    @contextmanager
    def _run(self, job: str, request: JsonObject) -> Iterator[RunningJob]:
        """Run a job inside the block. No other thread of this process runs it."""
        found = self._find(job)
        writer = EventWriter(self._log, job, found.stages, found.progress)
        if any(stage.state != "waiting" for stage in found.stages):
            writer.put("message", {"text": "the job goes on where it was interrupted"})
        running = RunningJob(job, request, writer, self._around)
        with self._guard:
            self._running[job] = running
        try:
            # A runner that ends interrupts the jobs that it knows.
            if self._ending.is_set():
                raise InterruptedJob
            yield running
        finally:
            running.close()
            with self._guard:
                del self._running[job]

    def _find(self, job: str) -> Job:
        """Return a job. While the database does not answer, wait for it.

        Raises:
            InterruptedJob: the runner ends.
        """
        while not self._ending.is_set():
            try:
                return self._reader.job(job)
            except SQLAlchemyError:
                self._ending.wait(1.0)
        raise InterruptedJob

    def _watch(self) -> None:
        """Look at the states of jobs and at the other runners until the runner ends."""
        last_pulse = 0.0
        while not self._ending.wait(LOOK):
            try:
                self._log.tell_states()
                self._follow()
                if time.monotonic() - last_pulse >= PULSE:
                    last_pulse = time.monotonic()
                    self._roll.sign()
                    self._take_over()
            except SQLAlchemyError:
                self._failed_at = time.monotonic()
                self._roll.forget_silence()
                self._orphans.clear()

    def _database_failed(self) -> bool:
        """Return whether the database did not answer lately."""
        return self._failed_at is not None and time.monotonic() - self._failed_at < _MEMORY

    def _follow(self) -> None:
        """Do what the states of the running jobs demand: interrupt or stop them."""
        with self._guard:
            running = dict(self._running)
        if not running:
            return
        workflows, records = self._workflows.c, JOB_RECORDS.c
        query = (
            sqlalchemy.select(
                records.job, records.stop_asked, workflows.status, workflows.executor_id
            )
            .join(self._workflows, workflows.workflow_uuid == records.job)
            .where(records.job.in_(list(running)))
        )
        with self._engine.connect().execution_options(reading=True) as connection:
            rows = {row.job: row for row in connection.execute(query)}
        for job, run in running.items():
            row = rows.get(job)
            # The job was deleted, paused or cancelled, or another runner has taken it over.
            if row is None or row.status == "CANCELLED":
                run.interrupt(GRACE)
            elif row.status == "PENDING" and row.executor_id != self.id:
                run.interrupt(0.0)
            elif row.stop_asked:
                run.stop()

    def _take_over(self) -> None:
        """Put the jobs of runners that are gone back into the queue."""
        workflows = self._workflows.c
        query = sqlalchemy.select(workflows.workflow_uuid, workflows.executor_id)
        query = query.where(workflows.status == "PENDING", workflows.name == queue.WORKFLOW)
        with self._engine.connect().execution_options(reading=True) as connection:
            owners = {row.workflow_uuid: row.executor_id for row in connection.execute(query)}
        gone = self._roll.gone(set(owners.values()) - {self.id})
        if gone:
            # DBOS has no public function for it.
            DBOS._recover_pending_workflows(sorted(gone))
            self._roll.strike(gone)
        self._adopt([job for job, owner in owners.items() if owner == self.id])

    def _adopt(self, jobs: Sequence[str]) -> None:
        """Put own jobs back into the queue that no thread runs.

        If the database crashes just after a job was taken from the queue, the runner may not have
        seen that it was.
        """
        with self._guard:
            idle = {job for job in jobs if not self._begun[job]}
        for job in list(self._orphans):
            if job not in idle:
                del self._orphans[job]
        for job in idle:
            since = self._orphans.setdefault(job, time.monotonic())
            if time.monotonic() - since > ORPHANED:
                del self._orphans[job]
                DBOS.resume_workflow(job, queue_name=queue.QUEUE)
