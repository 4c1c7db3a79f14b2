"""The HTTP server of uvicorn, with two changes: connections whose headers do not arrive are closed,
and open streams end when the process is told to.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from prunesearch.errors import InputError
from prunesearch.service.http.settings import HttpSettings

_HEADER_SECONDS = 15.0
"""Time in which the headers of a request must arrive."""
_GRACE_SECONDS = 5
"""Time that open requests get when the process ends."""


class TimedProtocol(H11Protocol):
    """Closes a connection whose headers do not arrive in time."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the headers of the first request."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request. The wait ends with the last header."""
        super().data_received(data)
        incomplete = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not incomplete and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        elif incomplete and self._waiting is None:
            self._waiting = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self.transport.abort()


class HttpServer(uvicorn.Server):
    """A server that tells its app when it is about to end.

    Args:
        config: settings of uvicorn.
        ending: called once, in the event loop, when the process is told to end.
    """

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._ending = ending
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal that ends the process, and end the open streams."""
        super().handle_exit(sig, frame)
        if self._ending is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._ending)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        InputError: the address is in use, or is not one of this machine.
    """
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small answers at once (TCP_NODELAY) only if the socket knows that it is
        # TCP. Without that, an answer would wait 40 ms for the client's acknowledgement.
        listener = socket.socket(kind[0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(kind[4])
        listener.listen(1024)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host!r}, port {port}: {error.strerror}; give another `host` or "
            "`port`"
        ) from None
    listener.set_inheritable(False)
    return listener


def http_server(
    app: ASGIApp, settings: HttpSettings, ending: Callable[[], None] | None = None
) -> HttpServer:
    """Return the server of an app.

    Args:
        app: the app.
        settings: settings of the HTTP process.
        ending: see `HttpServer`.
    """
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Without a proxy anybody could send any address.
        proxy_headers=settings.proxy_addresses is not None,
        forwarded_allow_ips=settings.proxy_addresses,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        h11_max_incomplete_event_size=32 * 1024,
    )
    return HttpServer(config, ending)


_NO_NEWS = ("without completing response", "Invalid HTTP request", "pgrade request", "WebSocket")


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a message of uvicorn is worth a line in the log.

    A stream whose reader takes nothing is ended without a complete response on purpose. Anybody can
    send malformed requests and upgrades, without a token and without a limit.
    """
    text = record.getMessage()
    return not any(known in text for known in _NO_NEWS)
