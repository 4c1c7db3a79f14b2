"""A stream of a job's events (server-sent events)."""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prunesearch.errors import NotFoundError
from prunesearch.service.access.access import Credential
from prunesearch.service.http.event_feed import EncodedEvent, encoded, wait
from prunesearch.service.http.event_hub import FAILURES, EventHub, Stream
from prunesearch.service.http.settings import HttpSettings
from prunesearch.service.job import FINAL
from prunesearch.service.jobs import Jobs

_PAGE = 500  # events that are read from the database at once
_KEEP_ALIVE = b": keep-alive\n\n"
_RETRY = b"retry: 1000\n\n"  # milliseconds after which a browser connects again


class EventStream(Response):
    """Response that sends a job's events until its final state.

    The stream keeps a position and no queue: a slow reader costs no memory. It reads the latest
    events from the hub, and older ones from the database.

    Args:
        jobs: the jobs.
        hub: tells when there are new events.
        settings: times of keep-alive comments and of idle readers.
        job_id: the job.
        credential: what the request was signed with.
        after: sequence number after which the stream begins.
        kinds: kinds of events to send; None for all. Changes of the job's state are always sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        jobs: Jobs,
        hub: EventHub,
        settings: HttpSettings,
        job_id: str,
        credential: Credential,
        after: int = 0,
        kinds: Collection[str] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._jobs, self._hub, self._settings = jobs, hub, settings
        self._job_id, self._credential = job_id, credential
        self._position = after
        self._kinds = None if kinds is None else {*kinds, "state"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, until the job ends, the reader leaves, or its token is revoked."""
        with self._hub.stream(self._job_id, self._credential) as stream:
            sending = asyncio.ensure_future(self._send(stream, send))
            leaving = asyncio.ensure_future(_until_left(receive))
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
                if not sending.done():
                    sending.cancel()
            if sending.done() and not sending.cancelled():
                # The connection of a reader that takes nothing is closed without an end.
                with suppress(TimeoutError):
                    sending.result()

    async def _send(self, stream: Stream, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        await self._write(send, _RETRY)
        while not stream.ended:
            ticket = stream.feed.ticket()
            events = await self._next(stream)
            if events:
                final = await self._write_events(send, events)
                if final:
                    break
            elif not await wait(ticket, self._settings.keep_alive_seconds):
                if await self._is_over():
                    break
                await self._write(send, _KEEP_ALIVE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, stream: Stream) -> list[EncodedEvent]:
        """Return the events after the position; none if there are none yet."""
        events = stream.feed.since(self._position)
        if events is not None:
            return events
        try:
            found = await run_in_threadpool(self._jobs.events, self._job_id, self._position, _PAGE)
        except NotFoundError:
            stream.ended = True
            return []
        except FAILURES:
            # The database is away. The hub wakes the stream when it has read again.
            return []
        return [encoded(event) for event in found]

    async def _write_events(self, send: Send, events: list[EncodedEvent]) -> bool:
        """Send events, and return whether the last one is final."""
        parts = []
        for event in events:
            if self._kinds is None or event.kind in self._kinds:
                parts.append(event.content)
            if event.final:
                break
        if parts:
            await self._write(send, b"".join(parts))
        self._position = event.seq
        return event.final

    async def _write(self, send: Send, content: bytes) -> None:
        """Send a part of the body.

        Raises:
            TimeoutError: the reader takes nothing.
        """
        async with asyncio.timeout(self._settings.idle_reader_seconds):
            await send({"type": "http.response.body", "body": content, "more_body": True})

    async def _is_over(self) -> bool:
        """Return whether the job was deleted, or has ended without an event that says so."""
        try:
            job = await run_in_threadpool(self._jobs.get, self._job_id)
        except NotFoundError:
            return True
        except FAILURES:
            return False
        return job.state in FINAL and self._position >= job.last_event


async def _until_left(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
