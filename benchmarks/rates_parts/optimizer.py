"""Serves the language model that proposes candidates, for several searches at once.

llama.cpp's server decodes the replies of several searches in one batch, which costs little more than
one reply. A user would start the same with ``llama-server -m FILE -np 4``.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.rates_parts.campaign import Campaign

CONTEXT = 6144
"""Most tokens of a request and its reply."""
_CHILD = """
import json, os, sys, xllamacpp
path, slots, context, threads = json.loads(sys.stdin.readline())
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = path, slots, slots * context
params.n_gpu_layers, params.verbosity, params.warmup = 0, -1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_threads_http = slots + 1
server = xllamacpp.Server(params)
print("\\nADDRESS " + server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def serving(campaign: Campaign, threads: int = 2) -> Iterator[Campaign]:
    """Serve the campaign's language model, and yield the campaign with its URL.

    An endpoint that the user named is used as it is.
    """
    optimizer = campaign.optimizer
    assert optimizer is not None
    if optimizer.file is None:
        yield campaign
        return
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        order = json.dumps([str(optimizer.file), campaign.slots, CONTEXT, threads])
        child.stdin.write(order + "\n")
        child.stdin.flush()
        try:
            url = _address(child)
            yield replace(campaign, optimizer=replace(optimizer, url=f"{url}/v1"))
        finally:
            child.kill()


def _address(child: "subprocess.Popen[str]") -> str:
    """Return the address that the server prints when it is ready."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("ADDRESS "):
            return line.split()[1]
    raise SystemExit("llama.cpp cannot serve the language model")
