"""Follows the events of a job, over restarts of the server: none is missed, and none comes twice.

Events have sequence numbers without gaps. After a lost connection the client asks for what comes
after the last number that it saw.
"""

import json
import random
import time
from collections.abc import Callable, Collection, Iterator

import httpx2

from prunesearch.errors import ServerError
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import Json
from prunesearch.service.client import BusyServerError, Client, ServerAwayError
from prunesearch.service.job import FINAL, StoredEvent
from prunesearch.service.job_documents import check_job_id, event_of

PATIENCE = 900.0
"""Seconds without an answer after which the client gives up."""
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0  # seconds before the client connects again


def _ignore(error: ServerError) -> None:
    """Do nothing about a lost connection."""


def follow(
    client: Client,
    job_id: str,
    *,
    after: int = 0,
    kinds: Collection[str] | None = None,
    on_lost: Callable[[ServerError], None] = _ignore,
    patience: float = PATIENCE,
) -> Iterator[StoredEvent]:
    """Yield the events of a job until it has ended.

    Args:
        client: connection to the server.
        job_id: identifier of the job.
        after: sequence number of the last event that is known already.
        kinds: kinds of events that are wanted; None for all.
        on_lost: is called once for each lost connection, with its error.
        patience: seconds without an answer after which the client gives up.

    Raises:
        InputError: the token is not accepted any more, or the job was deleted.
        ServerError: the server does not answer for `patience` seconds, or leaves out events.
        StopRequested: a signal asks for the end.
    """
    last, wait = after, _FIRST_WAIT
    heard = time.monotonic()
    lost = False
    while True:
        try:
            for event in _connected(client, job_id, last, kinds):
                heard = time.monotonic()
                # A server may repeat an event, but not leave one out.
                if event is None or event.seq <= last:
                    continue
                if kinds is None and event.seq > last + 1:
                    raise ServerError(
                        f"the server left out events {last + 1} to {event.seq - 1} of {job_id}"
                    )
                last, wait, lost = event.seq, _FIRST_WAIT, False
                yield event
                if event.kind == "state" and event.data.get("state") in FINAL:
                    return
            # The server closed the stream. It may stop, or the last event was known before.
            if not lost and _has_ended(client, job_id, last, kinds):
                return
        except (ServerAwayError, BusyServerError) as error:
            if time.monotonic() - heard > patience:
                raise
            if not lost:
                on_lost(error)
            lost = True
        stopping.check()
        time.sleep(wait * random.uniform(0.8, 1.2))
        wait = min(2 * wait, _LONGEST_WAIT)


def _connected(
    client: Client, job_id: str, last: int, kinds: Collection[str] | None
) -> Iterator[StoredEvent | None]:
    """Yield None when the server has answered, and then the events of one connection."""
    query = {} if kinds is None else {"kinds": ",".join(sorted(kinds))}
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
    path = f"/v1/jobs/{check_job_id(job_id)}/events"
    with client.streamed(path, query=query, headers=headers) as response:
        if response.status_code == httpx2.codes.NO_CONTENT:
            return  # the job has ended, and all its events are known
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream" or "content-encoding" in response.headers:
            raise ServerError(f"{client.server.url} sends no events: is it a prunesearch server?")
        yield None
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _StoppableStream(response.stream)
        for event in httpx2.EventSource(response):
            if event.id:
                yield event_of(_number(event.id), event.event, _json(event.data))


class _StoppableStream(httpx2.SyncByteStream):
    """A stream that ends when a stop is requested, also if it has nothing but signs of life."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            stopping.check()
            yield chunk

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


def _has_ended(client: Client, job_id: str, last: int, kinds: Collection[str] | None) -> bool:
    """Return whether a job has ended, and no event is left to come."""
    job = client.job(job_id)
    return job.state in FINAL and (kinds is not None or job.last_event <= last)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ServerError(f"the server numbers an event {text[:40]!r}") from None


def _json(text: str) -> Json:
    try:
        document: Json = json.loads(text)
    except (ValueError, RecursionError):
        raise ServerError("the server sent an event that is not JSON") from None
    return document
