"""An app on a real socket, in a thread of this process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from fastapi import FastAPI

from prunesearch.service.http.connections import http_server, listen
from prunesearch.service.http.services import Services


@dataclass
class LiveServer:
    """A running server.

    Attributes:
        client: sends requests to it.
        port: its port.
        stop: tells it to end, as a signal would.
    """

    client: httpx2.Client
    port: int
    stop: Callable[[], None]


@contextmanager
def live_server(app: FastAPI) -> Iterator[LiveServer]:
    """Serve an app until the block ends. The app has started already."""
    services: Services = app.state.services
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = http_server(app, services.http, services.events.close)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    limits = httpx2.Limits(max_connections=200)
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(base_url=url, limits=limits, timeout=30, trust_env=False) as client:
        try:
            yield LiveServer(client, port, lambda: server.handle_exit(signal.SIGTERM, None))
        finally:
            server.should_exit = True
            thread.join(30)
