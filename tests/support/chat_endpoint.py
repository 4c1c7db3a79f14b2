"""An endpoint of the chat protocol on loopback that follows a script, and notes what it is asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Scripted:
    """One answer of the endpoint.

    Attributes:
        status: HTTP status.
        text: text of the reply, if the status is 200.
        headers: headers of the answer.
        body: the whole body instead of a reply.
        seconds: pause before the answer.
        cut: whether the connection ends in the middle of the body.
        finish: reason for which the reply ended.
    """

    status: int = 200
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    seconds: float = 0.0
    cut: bool = False
    finish: str = "stop"


Script = Callable[[int, Body], Scripted]
"""Function of the number of the request and its body."""


@dataclass
class ChatEndpoint:
    """A running endpoint.

    Attributes:
        url: base URL.
        requests: bodies of the requests so far.
        keys: values of the header ``Authorization`` so far.
    """

    url: str
    requests: list[Body]
    keys: list[str]


@contextmanager
def chat_endpoint(script: Script) -> Iterator[ChatEndpoint]:
    """Serve a script on a free port of 127.0.0.1."""
    asked: list[Body] = []
    keys: list[str] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked)
                asked.append(body)
                keys.append(self.headers.get("Authorization", ""))
            answer = script(number, body)
            time.sleep(answer.seconds)
            data = answer.body
            if data is None:
                data = json.dumps(_reply(answer)).encode()
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if answer.cut else data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait
            self.close_connection = answer.cut

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield ChatEndpoint(f"http://127.0.0.1:{server.server_port}/v1", asked, keys)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _reply(answer: Scripted) -> Body:
    if answer.status != 200:
        return {"error": {"message": answer.text, "param": None, "type": "error"}}
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": "1",
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    }
