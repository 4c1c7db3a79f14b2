"""Connections of the HTTP server."""

import asyncio
import socket

from prunesearch.service.http.connections import listen


def test_small_answers_are_sent_at_once() -> None:
    accepted: list[int] = []

    class Noted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connection = transport.get_extra_info("socket")
            accepted.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.abort()  # type: ignore[attr-defined]

    async def connect() -> None:
        listener = listen("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(Noted, sock=listener)
        async with server:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(asyncio.wait_for(connect(), 10))
    assert accepted == [1]
