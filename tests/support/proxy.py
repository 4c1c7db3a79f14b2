"""A TCP proxy on loopback that cuts connections, to stand for a network that fails."""

import asyncio
import contextlib
import random
import socket
import threading
from collections import Counter
from types import TracebackType
from typing import Self

COMMIT = b"COMMIT"


class Proxy:
    """Passes connections on to a port of this host, and cuts them at random.

    A cut before a message was passed on loses it. A cut after it was passed on loses the answer.

    Args:
        port: the port of the server.
        seed: seed of the random generator.
        at_commit: probability of a cut at a COMMIT, half of them after it was passed on.
        elsewhere: probability of a cut at another message.
        most: largest number of cuts at random.

    Attributes:
        port: the port of the proxy.
        cuts: number of cuts by place.
        next: place of a cut at the next COMMIT: "before a commit" or "after a commit".
        text: the next message with this text is lost.
    """

    def __init__(
        self,
        port: int,
        seed: int = 0,
        at_commit: float = 0.0,
        elsewhere: float = 0.0,
        most: int = 1_000_000,
    ) -> None:
        self._server_port, self._chance = port, random.Random(seed)
        self.at_commit, self.elsewhere, self.most = at_commit, elsewhere, most
        self.cuts: Counter[str] = Counter()
        self.next: str | None = None
        self.text: bytes | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def url(self, direct: str) -> str:
        """The URL through the proxy of a database of the server."""
        return direct.replace(f":{self._server_port}/", f":{self.port}/")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        self._loop.run_forever()
        # Every connection is cut, so what serves them ends by itself.
        if tasks := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=5))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        both = {writer, up_writer}
        self._writers |= both
        tasks = [
            asyncio.ensure_future(self._requests(reader, up_writer)),
            asyncio.ensure_future(self._answers(up_reader, writer)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writers -= both
        for each in both:
            with contextlib.suppress(OSError):
                each.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                place = self._cut_at(data)
                if place in ("before a commit", "elsewhere"):
                    return
                writer.write(data)
                await writer.drain()
                if place is not None:
                    return

    def _cut_at(self, data: bytes) -> str | None:
        """Where to cut the connection of a message; None to leave it."""
        place: str | None = None
        if self.text is not None and self.text in data:
            self.text = None
            self.cuts["elsewhere"] += 1
            return "elsewhere"
        if self.next is None and self.cuts.total() >= self.most:
            return None
        if COMMIT in data:
            if self.next is not None:
                place, self.next = self.next, None
            elif self._chance.random() < self.at_commit:
                place = self._chance.choice(("before a commit", "after a commit"))
        elif self._chance.random() < self.elsewhere:
            place = "elsewhere"
        if place is not None:
            self.cuts[place] += 1
        return place

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    def cut_all(self) -> None:
        """Cut every connection now."""

        def cut() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(cut)
        self.cuts["all"] += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut_all()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()
