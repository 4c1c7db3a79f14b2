"""A GGUF file as a language model: llama.cpp's own server in a child process (`prunesearch[gguf]`).

The server listens on 127.0.0.1 and wants a random key. The child ends with this process, however it
ends, because it watches a pipe that only this process holds open.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections import deque
from importlib.util import find_spec
from pathlib import Path

from prunesearch.errors import InputError
from prunesearch.llm.chat import ChatReply, ChatRequest, LanguageModelError
from prunesearch.llm.client import ChatClient
from prunesearch.llm.endpoint import Endpoint
from prunesearch.llm.model_files import check_magic, digest_of_file

_START_SECONDS = 120
_BYTES_PER_SECOND = 5e6  # every machine reads the file faster
_END_SECONDS = 10
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d{1,5}")
_CHILD = """
import json, os, sys, threading
import xllamacpp
path, key, context, threads = json.loads(sys.stdin.readline())
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, context, 0, 1
params.api_keys, params.verbosity, params.warmup = [key], -1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_threads_http = 2
server = xllamacpp.Server(params)
print("\\nADDRESS " + server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


class LlamaServer:
    """Serves a GGUF file, and asks it. The server is started when it is first needed.

    Args:
        path: GGUF file.
        context: most tokens of a request and its reply together.
        timeout: most seconds of a reply.
        threads: number of threads; None for one per core.

    Attributes:
        model: digest of the file's content.

    Raises:
        InputError: llama.cpp is not installed, or the file is not a GGUF file.
    """

    def __init__(
        self, path: Path, context: int = 8192, timeout: float = 600.0, threads: int | None = None
    ) -> None:
        check_gguf(path)
        self.model = f"gguf-{digest_of_file(path)[:32]}"
        self._path, self._context, self._timeout = path, context, timeout
        self._threads = threads or os.cpu_count() or 1
        self._client: ChatClient | None = None
        self._child: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=20)

    def complete(self, request: ChatRequest) -> ChatReply:
        """Return the model's reply.

        Raises:
            LanguageModelError: llama.cpp cannot load the file, or it does not answer.
        """
        if self._client is None or self._child is None or self._child.poll() is not None:
            self.close()
            self._client = self._start()
        return self._client.complete(request)

    def _start(self) -> ChatClient:
        """Start the server and return a client of it."""
        # Only this process knows the key, so other users of the machine cannot use the server.
        key = secrets.token_hex(16)
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process, which then ends the child
        )
        self._child = child
        assert child.stdin is not None
        order = json.dumps([str(self._path), key, self._context, self._threads])
        child.stdin.write(order + "\n")
        child.stdin.flush()
        # A thread reads all that the child prints, so that the child never waits for a full pipe.
        found = threading.Event()
        addresses: list[str] = []
        reader = threading.Thread(target=self._read, args=(child, addresses, found), daemon=True)
        reader.start()
        seconds = _START_SECONDS + self._path.stat().st_size / _BYTES_PER_SECOND
        if not found.wait(seconds) or not addresses:
            last = " ".join(list(self._lines)[-1:])[:200] or "no message"
            self.close()
            raise LanguageModelError(
                f"llama.cpp cannot serve {self._path.name}: {last}", final=True
            )
        # The server speaks the protocol of any endpoint.
        endpoint = Endpoint(f"{addresses[0]}/v1", self.model, key, is_local=True)
        return ChatClient(endpoint, self._timeout, retries=1)

    def _read(
        self, child: "subprocess.Popen[str]", addresses: list[str], found: threading.Event
    ) -> None:
        """Read the child's output until it ends, and note the address in it."""
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("ADDRESS ") and (match := _ADDRESS.search(line)):
                addresses.append(match[0])
                found.set()
            elif line.strip():
                self._lines.append(line.strip())
        found.set()  # it has ended

    def close(self) -> None:
        """End the server."""
        if self._client is not None:
            self._client.close()
            self._client = None
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait(_END_SECONDS)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def check_gguf(path: Path) -> None:
    """Refuse a file that cannot be served.

    Raises:
        InputError: llama.cpp is not installed, or it is not a GGUF file.
    """
    if find_spec("xllamacpp") is None:
        raise InputError(
            f'`llm_model` {path.name} needs llama.cpp: pip install "prunesearch[gguf]"'
        )
    check_magic(path)
