"""Follows the events of jobs for all streams: one task looks at the database, however many streams
there are.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, time

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from prunesearch.errors import PruneSearchError, one_line
from prunesearch.service.access.access import Access, Credential
from prunesearch.service.http.event_feed import EventFeed
from prunesearch.service.jobs import Jobs

FAILURES = (SQLAlchemyError, PruneSearchError, OSError)
"""What a database that is away raises."""
_PAGE = 1000
logger = logging.getLogger("prunesearch.service")


@dataclass(eq=False)
class Stream:
    """An open stream of a job's events.

    Attributes:
        feed: the latest events of the job.
        credential: what the request was signed with.
        ended: whether the stream must end.
    """

    feed: EventFeed
    credential: Credential
    ended: bool = field(default=False)


class EventHub:
    """The events of all jobs that are being followed.

    Args:
        jobs: the jobs.
        access: tells which tokens are still valid.
        poll_seconds: time between two looks at the database.
        check_seconds: time between two checks of the tokens.

    Attributes:
        away: whether the last look at the database failed.
        failures: number of looks that failed.
        lag: seconds from the last event to the moment when it was read.
    """

    def __init__(
        self, jobs: Jobs, access: Access, poll_seconds: float, check_seconds: float
    ) -> None:
        self._jobs, self._access = jobs, access
        self._poll_seconds, self._check_seconds = poll_seconds, check_seconds
        self._feeds: dict[str, EventFeed] = {}
        self._streams: set[Stream] = set()
        self._closing = asyncio.Event()
        self._needed = asyncio.Event()
        self.away = False
        self.failures = 0
        self.lag = 0.0

    @property
    def open_streams(self) -> int:
        """Number of open streams."""
        return len(self._streams)

    @contextmanager
    def stream(self, job_id: str, credential: Credential) -> Iterator[Stream]:
        """Follow a job until the block ends."""
        feed = self._feeds.setdefault(job_id, EventFeed())
        feed.streams += 1
        stream = Stream(feed, credential, ended=self._closing.is_set())
        self._streams.add(stream)
        self._needed.set()
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            feed.streams -= 1
            if not feed.streams:
                del self._feeds[job_id]

    async def run(self) -> None:
        """Look at the database again and again, as long as there are streams, until `close`."""
        checked = monotonic()
        while not self._closing.is_set():
            await self._needed.wait()
            if not self._feeds:
                self._needed.clear()
                continue
            try:
                await self._read()
                if monotonic() - checked >= self._check_seconds:
                    await self._end_revoked()
                    checked = monotonic()
                if self.away:
                    self._wake_all()
                self.away = False
            except FAILURES as error:
                # The streams stay open, and go on where they were.
                if not self.away:
                    logger.warning("events: the database is away: %s", one_line(error))
                self.away = True
                self.failures += 1
            await self._pause()

    def close(self) -> None:
        """End all streams, because the process ends. Clients connect again by themselves."""
        self._closing.set()
        self._needed.set()
        for stream in self._streams:
            stream.ended = True
            stream.feed.wake()

    def _wake_all(self) -> None:
        """Have all streams look at the database again, as it is back."""
        for feed in self._feeds.values():
            feed.wake()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._poll_seconds):
                await self._closing.wait()
        except TimeoutError:
            return

    async def _read(self) -> None:
        """Read the new events of all jobs that are followed."""
        last = await run_in_threadpool(self._jobs.last_events, list(self._feeds))
        for job_id, feed in list(self._feeds.items()):
            newest = last.get(job_id, 0)
            # The first look only says where the feed begins.
            if feed.last is None:
                feed.last = newest
                feed.wake()
            while feed.last < newest:
                events = await run_in_threadpool(self._jobs.events, job_id, feed.last, _PAGE)
                if not events:
                    break
                feed.add(events)
                self.lag = max(0.0, time() - events[-1].at)

    async def _end_revoked(self) -> None:
        """End the streams whose token is not valid any more."""
        asked = {stream.credential for stream in self._streams}
        valid = await run_in_threadpool(self._access.still_valid, asked)
        for stream in list(self._streams):
            if stream.credential in asked - valid:
                stream.ended = True
                stream.feed.wake()
