"""llama.cpp with SmolLM2-135M-Instruct as the optimizer: a real server, and a real search."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunesearch.llm.chat import ChatRequest, LanguageModelError
from prunesearch.llm.llama_server import LlamaServer
from prunesearch.runtime.json_values import JsonObject
from tests.support.cli import run_json

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp is not installed"
)
SCHEMA: JsonObject = {
    "type": "object",
    "properties": {
        "removed": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {"type": "integer", "minimum": 0, "maximum": 9},
        }
    },
    "required": ["removed"],
    "additionalProperties": False,
}


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split() if is_alive(int(word))]


def test_a_gguf_is_served_with_a_schema(gguf: Path) -> None:
    chat = LlamaServer(gguf, context=512, threads=1)
    request = ChatRequest(chat.model, "Reply in JSON.", "Two layers?", 0.7, 3, 64, SCHEMA)
    first, second = chat.complete(request), chat.complete(request)
    assert first.text == second.text
    assert len(json.loads(first.text)["removed"]) == 2
    assert first.prompt_tokens > 5
    assert first.completion_tokens > 5
    # A request that is too long for the context is one final failure, and the server goes on.
    long = ChatRequest(chat.model, "", "word " * 2000, 0.7, 3, 64, SCHEMA)
    with pytest.raises(LanguageModelError, match="refuses the request"):
        chat.complete(long)
    assert chat.complete(request).text == first.text
    child = chat._child
    assert child is not None
    chat.close()
    assert child.returncode is not None


def test_a_damaged_file_is_one_final_failure(gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:1_000_000])
    with pytest.raises(LanguageModelError, match=r"llama.cpp cannot serve cut\.gguf") as caught:
        LlamaServer(cut).complete(ChatRequest("m", "s", "u", 0.7, 3, 8))
    assert caught.value.final


def test_the_server_ends_with_a_process_that_is_killed(gguf: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; "
        "from prunesearch.llm.llama_server import LlamaServer; "
        "from prunesearch.llm.chat import ChatRequest; "
        "chat = LlamaServer(Path(sys.argv[1]), context=256, threads=1); "
        "chat.complete(ChatRequest('m', 's', 'u', 0.7, 3, 2)); "
        "print(chat._child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(gguf)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert is_alive(server)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 30
        while is_alive(server) and time.monotonic() < until:
            time.sleep(0.05)
        assert not is_alive(server)


def test_a_search_is_guided_and_repeated(
    gguf: Path, smollm2: Path, prose: Path, here: Path
) -> None:
    """The tiny optimizer is a poor one. What is tried is the machinery."""
    before = children_of(os.getpid())

    def search(study: str) -> dict[str, object]:
        found: dict[str, object] = run_json(
            "search", smollm2, "--drop", 3, "--sampler", "llm", "--llm-model", gguf,
            "--llm-candidates", 1, "--llm-attempts", 1, "--llm-history", 2, "--population", 4,
            "--trials", 3, "--calibration", prose, "--tokens", 64, "--window", 64, "--threads", 1, "--study", study,
        )  # fmt: skip
        return found

    first, again = search("one"), search("two")
    sources, repeated = first["sources"], again["sources"]
    assert isinstance(sources, dict)
    assert isinstance(repeated, dict)
    assert sources["replies"]["calls"] > 0
    assert repeated["replies"]["replayed"] == repeated["replies"]["calls"]
    assert again["value"] == first["value"]
    assert again["computed"] == 0
    assert children_of(os.getpid()) == before
