"""Events reach every subscriber, from every thread, and a subscriber cannot break the work."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from prunesearch.events import Event, Message, StageProgress, subscribed, tell
from prunesearch.runtime.stopping import StopRequested

STAGE = StageProgress("scoring", 1, 4, "pieces")


def test_every_subscriber_receives_every_event_of_its_block() -> None:
    outer: list[Event] = []
    inner: list[Event] = []
    tell(Message("before"))
    with subscribed(outer.append):
        tell(STAGE)
        with subscribed(inner.append):
            tell(Message("inside"))
        tell(Message("between"))
    tell(Message("after"))
    assert outer == [STAGE, Message("inside"), Message("between")]
    assert inner == [Message("inside")]


def test_threads_and_tasks_of_the_block_are_heard() -> None:
    seen: list[Event] = []

    async def work() -> None:
        tell(Message("task"))
        await asyncio.to_thread(tell, Message("thread of a task"))

    with subscribed(seen.append), ThreadPoolExecutor(1) as pool:
        asyncio.run(work())
        pool.submit(copy_context().run, tell, Message("thread")).result()
    assert seen == [Message("task"), Message("thread of a task"), Message("thread")]


def test_a_subscriber_that_fails_is_logged_once_and_the_work_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError(f"cannot show {event}")

    with caplog.at_level(logging.WARNING), subscribed(broken), subscribed(seen.append):
        tell(Message("one"))
        tell(Message("two"))
    assert seen == [Message("one"), Message("two")]
    (record,) = caplog.records
    assert "ValueError: cannot show Message(text='one')" in record.getMessage()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), StopRequested(2)])
def test_a_subscriber_may_stop_the_work(stop: KeyboardInterrupt) -> None:
    def stopping(event: Event) -> None:
        raise stop

    with pytest.raises(type(stop)), subscribed(stopping):
        tell(STAGE)
