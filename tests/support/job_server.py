"""A double of the server for tests of the client: it answers what a test tells it to answer."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prunesearch.runtime.json_values import JsonObject

JOB_ID = "job-0123456789abcdef"
TOKEN = "ps_secret-of-the-test"
EXPORT = f"GET /v1/jobs/{JOB_ID}/export"
FILES = {
    "config.json": b'{"layers": 4}',
    "model.safetensors": bytes(range(256)) * 40,
    "code/a b.py": b"pass\n",
    "empty": b"",
}


def job_document(state: str = "running", **changes: object) -> JsonObject:
    """Return a job as a server sends it."""
    document: JsonObject = {
        "id": JOB_ID,
        "study": "tiny-drop2-kl-pso-1",
        "state": state,
        "command": "run",
        "recipe": {"model": {"path": "tiny"}, "search": {"drop": "2"}},
        "trials": 8,
        "submitted_by": "ann",
        "created": 1_700_000_000.0,
        "started": 1_700_000_001.0,
        "ended": None,
        "stages": [{"name": "search", "state": "running", "seconds": None}],
        "progress": {"step": "searching", "done": 3, "total": 8, "unit": "trials"},
        "error": None,
        "exported": False,
        "last_event": 0,
    }
    return {**document, **changes}  # type: ignore[dict-item]


def sse(seq: int, kind: str, **data: object) -> bytes:
    """Return an event as it stands in a stream."""
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps({'at': float(seq), **data})}\n\n".encode()


@dataclass(frozen=True)
class Answer:
    """What the double answers.

    Attributes:
        status: status of the answer.
        body: content. It may be sent in parts.
        headers: headers of the answer.
        cut: whether the connection is cut after the content, which then is shorter than announced.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False

    @classmethod
    def of_json(cls, document: object, status: int = 200, **headers: str) -> "Answer":
        """Return an answer with a JSON document."""
        kind = "application/problem+json" if status >= 400 else "application/json"
        return cls(status, json.dumps(document).encode(), {"Content-Type": kind, **headers})

    @classmethod
    def of_events(cls, *events: bytes, cut: bool = False) -> "Answer":
        """Return a stream of events."""
        return cls(200, b"".join(events), {"Content-Type": "text/event-stream"}, cut)


@dataclass(frozen=True)
class Asked:
    """A request that the double received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class JobServer:
    """The double. `answers` maps a method and a path to the answers, in their order; the last one
    is repeated. An answer may be a function of the request.

    Attributes:
        url: its URL.
        asked: requests that it received.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self._answers: dict[str, list[Answer | Callable[[Asked], Answer]]] = {}

    def on(self, request: str, *answers: Answer | Callable[[Asked], Answer]) -> None:
        """Set the answers of a request, such as ``GET /v1/jobs``."""
        self._answers[request] = list(answers)

    def answer(self, asked: Asked) -> Answer:
        """Return the answer of a request."""
        self.asked.append(asked)
        answers = self._answers.get(f"{asked.method} {asked.path.partition('?')[0]}")
        if not answers:
            return Answer.of_json({"title": "Not Found", "detail": f"no {asked.path}"}, 404)
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        return answer(asked) if callable(answer) else answer


@contextmanager
def job_server() -> Iterator[JobServer]:
    """Run the double on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            content = self.rfile.read(length)
            asked = Asked(self.command, self.path, dict(self.headers.items()), content)
            answer = double.answer(asked)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            announced = len(answer.body) + (1000 if answer.cut else 0)
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(answer.body)
            self.close_connection = answer.cut

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    double = JobServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(path: str, content: bytes, **changes: object) -> dict[str, object]:
    """Return the line of a file in the list of an export."""
    digest = hashlib.sha256(content).hexdigest()
    return {"path": path, "bytes": len(content), "sha256": digest, **changes}


def offer(double: JobServer, files: dict[str, bytes]) -> None:
    """Let the double serve an export, parts of its files included."""
    listed = [entry(path, content) for path, content in files.items()]
    double.on(EXPORT, Answer.of_json({"files": listed}))
    for path, content in files.items():
        double.on(address(path), part_of(content))


def address(path: str) -> str:
    """Return the request that downloads a file."""
    return f"{EXPORT}/files/{path.replace(' ', '%20')}"


def part_of(content: bytes) -> Callable[[Asked], Answer]:
    """Serve a file, from the byte that is asked for."""

    def answer(asked: Asked) -> Answer:
        wanted = asked.headers.get("Range")
        if wanted is None:
            return Answer(200, content)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206, content[start:], {"Content-Range": place})

    return answer
