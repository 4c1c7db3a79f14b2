"""50 event streams, which lose their connection again and again, beside 20 requests a second on a
database of 10,000 trials. How long do requests take, is an event missed or doubled, and does the
memory grow?

The events are written as a runner writes them, without one: nothing else shall use the processor.
The latency of a request counts from the moment at which it was due.
"""

import asyncio
import random
import statistics
import time
import uuid
from pathlib import Path

import httpx2
import sqlalchemy

from benchmarks.support.job_load import JobLoad, stored_events
from benchmarks.support.record import Record
from benchmarks.support.running_service import MODEL, RunningService
from prunesearch.config.run_options import RunOptions
from prunesearch.pipeline.run import report_of
from prunesearch.pipeline.state import Request
from prunesearch.service.database import open_database
from prunesearch.service.event_log import EventLog, NewEvent
from prunesearch.service.job import FINAL, JobRequest
from prunesearch.service.jobs import Jobs
from prunesearch.studies import persistence

_JOBS = 5
_PER_SECOND = 20  # requests
_EVENTS_PER_SECOND = 4  # of each job
_LONGEST_CONNECTION = 12.0  # seconds until a stream's connection is cut
_WARM_UP = 0.2  # share of the time in which nothing is measured
_STUDY = "large"
_PARTS = {
    "trial_params": "param_id",
    "trial_values": "trial_value_id",
    "trial_user_attributes": "trial_user_attribute_id",
    "trial_system_attributes": "trial_system_attribute_id",
}
"""Tables of Optuna with the parts of a trial, and their primary keys."""


class Streams:
    """Clients of a service in one event loop.

    Args:
        service: the service.
        jobs: identifiers of the jobs that are followed.
        seconds: how long requests are sent.
    """

    def __init__(self, service: RunningService, jobs: list[str], seconds: float) -> None:
        self._service, self._jobs, self._seconds = service, jobs, seconds
        self.latencies: list[float] = []
        self.by_path: dict[str, list[float]] = {}
        self.refused: list[str] = []
        self.memory: list[tuple[float, int]] = []
        self.connections = 0
        self._start = 0.0

    async def run(self, count: int, log: EventLog, jobs: Jobs) -> list[tuple[str, list[int]]]:
        """Follow the jobs with `count` streams; return the job of each and what it saw."""
        headers = {"Authorization": f"Bearer {self._service.token}"}
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=self._service.url,
            headers=headers,
            timeout=60,
            limits=limits,
            trust_env=False,
        ) as client:
            seen: list[tuple[str, list[int]]] = []
            followers = []
            for number in range(count):
                job = self._jobs[number % len(self._jobs)]
                seen.append((job, []))
                followers.append(asyncio.create_task(self._follow(client, *seen[-1], number)))
            writing = asyncio.create_task(self._write(log))
            watching = asyncio.create_task(self._watch_memory())
            await self._ask(client)
            await asyncio.gather(writing, watching)
            # The streams end with their jobs.
            for job in self._jobs:
                await asyncio.to_thread(jobs.cancel, job)
            await asyncio.wait_for(asyncio.gather(*followers), 60)
        return seen

    async def _follow(
        self, client: httpx2.AsyncClient, job: str, seen: list[int], number: int
    ) -> None:
        """Follow a job. The connection is cut at random times."""
        generator = random.Random(number)
        while True:
            self.connections += 1
            last = seen[-1] if seen else 0
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
            path = f"/v1/jobs/{job}/events"
            try:
                async with asyncio.timeout(generator.uniform(0.5, _LONGEST_CONNECTION)):
                    async with client.stream("GET", path, headers=headers) as response:
                        if response.status_code == 204:
                            return
                        response.raise_for_status()
                        async for event in httpx2.EventSource(response):
                            if not event.id:
                                continue
                            seen.append(int(event.id))
                            if event.event == "state" and event.json()["state"] in FINAL:  # type: ignore[index]
                                return
            except TimeoutError:
                continue

    async def _ask(self, client: httpx2.AsyncClient) -> None:
        """Send requests at fixed times, whether or not earlier ones were answered."""
        paths = (
            "/v1/jobs?limit=50",
            "/v1/studies?limit=50",
            f"/v1/studies/{_STUDY}/trials?limit=50",
        )
        start = self._start = time.monotonic()
        asked = []
        for number in range(round(self._seconds * _PER_SECOND)):
            due = start + number / _PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asked.append(asyncio.create_task(self._one(client, paths[number % len(paths)], due)))
        await asyncio.gather(*asked)

    async def _one(self, client: httpx2.AsyncClient, path: str, due: float) -> None:
        response = await client.get(path)
        # At the start all streams connect at once.
        if due >= self._start + _WARM_UP * self._seconds:
            self.latencies.append(time.monotonic() - due)
            self.by_path.setdefault(path, []).append(self.latencies[-1])
        if response.status_code != 200:
            self.refused.append(f"{path}: {response.status_code} {response.text[:200]}")

    async def _write(self, log: EventLog) -> None:
        """Write events of each job, as a runner does."""
        end = time.monotonic() + self._seconds
        number = 0
        while time.monotonic() < end:
            for job in self._jobs:
                number += 1
                await asyncio.to_thread(log.append, job, [_event(number)], uuid.uuid4().hex)
            await asyncio.sleep(1 / _EVENTS_PER_SECOND)

    async def _watch_memory(self) -> None:
        """Note the memory of the HTTP process every second."""
        start = time.monotonic()
        while time.monotonic() < start + self._seconds:
            self.memory.append((time.monotonic() - start, self._service.memory()))
            await asyncio.sleep(1.0)

    def growth(self) -> float:
        """Return by how much the memory grew: the mean of the last fifth of the time, against that
        of the second fifth, which follows the warm-up.
        """
        fifth = _WARM_UP * self._seconds
        early = [size for at, size in self.memory if fifth <= at < 2 * fifth]
        late = [size for at, size in self.memory if at >= 4 * fifth]
        return statistics.mean(late) / statistics.mean(early) - 1


def measure(record: Record, scratch: Path) -> None:
    """Add the latency of requests, the counts of events, and the growth of memory."""
    seconds = record.by_size(300.0, 40.0, 5.0)
    with RunningService(scratch, None, "--no-runner") as service:
        made = _make_study(service, record.by_size(10_000, 2_000, 100))
        jobs = Jobs(service.settings)
        log = EventLog(open_database(service.settings.database))
        load = JobLoad(service, 10, 256)
        followed = []
        for number in range(_JOBS):
            request = JobRequest(load.recipe(number).document(), "search", 10)
            followed.append(jobs.submit(request, "benchmark")[0].id)
        streams = Streams(service, followed, seconds)
        seen = asyncio.run(streams.run(record.by_size(50, 50, 10), log, jobs))
        missed = doubled = 0
        for job, numbers in seen:
            missed += len(set(stored_events(jobs, job)) - set(numbers))
            doubled += len(numbers) - len(set(numbers))
        jobs.close()
    cuts = statistics.quantiles(streams.latencies, n=100)
    record.add("streams_trials", made)
    record.add("streams_followers", len(seen))
    record.add("streams_connections", streams.connections)
    record.add("streams_events_received", sum(len(numbers) for _, numbers in seen))
    record.add("streams_events_missed", missed, "== 0")
    record.add("streams_events_doubled", doubled, "== 0")
    record.add("streams_requests", len(streams.latencies))
    record.add("streams_requests_refused", len(streams.refused), "== 0")
    record.add("streams_list_p50_ms", 1000 * cuts[49])
    record.add("streams_list_p99_ms", 1000 * cuts[98], "<= 300")
    record.add("streams_memory_growth", streams.growth(), "<= 0.05")
    record.add("streams_memory_mib", streams.memory[-1][1] / 2**20)
    record.notes["streams_refused"] = streams.refused[:10]
    slowest = {}
    for path, latencies in streams.by_path.items():
        slowest[path] = round(1000 * statistics.quantiles(latencies, n=100)[98], 1)
    record.notes["streams_p99_ms_by_path"] = slowest


def _event(number: int) -> NewEvent:
    """Return an event as a search tells it."""
    data = {
        "study": _STUDY,
        "done": number,
        "total": 10_000,
        "hits": 0,
        "computed": number,
        "best_value": 0.5,
        "best_dropped": "1,3,5,7,9",
        "under_way": 5,
        "front": 0,
        "value": 0.7,
        "dropped": "1,2,3,4,5",
        "cached": False,
    }
    return NewEvent("search", data, time.time())  # type: ignore[arg-type]


def _make_study(service: RunningService, trials: int) -> int:
    """Search a little, and add copies of the trials until the study is large."""
    few = 10
    options = RunOptions(
        storage=service.settings.storage,
        cache=service.settings.cache,
        study=_STUDY,
        trials=few,
        threads=1,
    )
    recipe = JobLoad(service, few, 256).recipe(0)
    model = str(service.settings.models[0] / MODEL)
    report_of("search", Request(options, (recipe.with_changes(model=model),)))
    _copy_trials(options.storage, trials)
    study = persistence.load(persistence.open_storage(options.storage, create=False), _STUDY)
    return len(study.get_trials(deepcopy=False))


def _copy_trials(storage: str, trials: int) -> None:
    """Copy the rows of a study's trials until it has many. To tell them would take minutes."""
    engine = sqlalchemy.create_engine(storage)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        rows = connection.execute(sqlalchemy.select(tables.tables["trials"])).mappings().all()
        # The parts of each trial: its parameters, values and attributes.
        parts = {}
        for name in _PARTS:
            found = connection.execute(sqlalchemy.select(tables.tables[name])).mappings().all()
            parts[name] = [dict(row) for row in found]
        made: dict[str, list[dict[str, object]]] = {name: [] for name in ("trials", *_PARTS)}
        first = max(row["trial_id"] for row in rows) + 1
        for number in range(len(rows), trials):
            trial, source = first + number, rows[number % len(rows)]
            made["trials"].append({**source, "trial_id": trial, "number": number})
            for name, key in _PARTS.items():
                for row in parts[name]:
                    if row["trial_id"] == source["trial_id"]:
                        made[name].append({**row, "trial_id": trial})
                        made[name][-1].pop(key)  # the database numbers them
        for name, new in made.items():
            if new:
                connection.execute(sqlalchemy.insert(tables.tables[name]), new)
    engine.dispose()
