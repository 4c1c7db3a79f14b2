"""Loading a GGUF in llama.cpp and comparing what it predicts (`prunesearch[gguf]`).

llama.cpp runs in a process of its own: a file that it cannot load may take the process with it.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import VerificationError
from prunesearch.export.verification import prompt_ids
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned

_TOP = 5
# Largest difference of a log-probability, in nats. llama.cpp rounds activations to 8 bits for quantised weights.
_ALLOWED = {"F32": 0.02, "F16": 0.05, "BF16": 0.15}
_ALLOWED_QUANTISED = 0.5
_CHILD = """
import json, os, sys
import xllamacpp
path, ids, tokens, top = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, 512, 0, 1
params.verbosity = -1
server = xllamacpp.Server(params)
answer = server.handle_completions({"prompt": ids, "max_tokens": tokens, "temperature": 0.0, "logprobs": top,
                                    "cache_prompt": False, "ignore_eos": True})
print("\\nANSWER" + json.dumps(answer), flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class LlamaCppCheck:
    """What llama.cpp makes of a file.

    Attributes:
        difference: largest difference of a log-probability of the likeliest tokens at each step, in nats.
        allowed: its limit.
        steps: how many tokens it generated, greedily.
        generated: how it goes on after the prompt.
    """

    difference: float
    allowed: float
    steps: int
    generated: str

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def available() -> bool:
    """Whether llama.cpp is installed (the package xllamacpp)."""
    return find_spec("xllamacpp") is not None


@torch.inference_mode()
def check(path: Path, loaded: LoadedModel, candidate: LayerSubset, tensor_type: str) -> LlamaCppCheck:
    """Let llama.cpp continue a prompt and compare its log-probabilities with the candidate's in transformers.

    Args:
        tensor_type: of most weights, as GGUF names it; it sets the tolerance.

    Raises:
        VerificationError: llama.cpp cannot load it, or predicts something else.
    """
    ids = prompt_ids(loaded.model, loaded.tokenizer)
    text, steps = _ask(path, ids[0].tolist())
    tokens = torch.tensor([[step["id"] for step in steps]], device=ids.device)
    with pruned(loaded.model, candidate):
        logits_LV = loaded.model(input_ids=torch.cat([ids, tokens], dim=1), use_cache=False).logits[0].float()
    expected_TV = torch.log_softmax(logits_LV[ids.shape[1] - 1 : -1], dim=-1)
    difference = max(
        abs(float(entry["logprob"]) - float(row[entry["id"]]))
        for row, step in zip(expected_TV, steps, strict=True)
        for entry in step["top_logprobs"]
    )
    allowed = _ALLOWED.get(tensor_type, _ALLOWED_QUANTISED)
    if not difference <= allowed:
        raise VerificationError(
            f"llama.cpp predicts something else from {path.name}: a log-probability differs by {difference:.3g} nats "
            f"(allowed {allowed})"
        )
    return LlamaCppCheck(round(difference, 5), allowed, len(steps), text)


def _ask(path: Path, ids: list[int], tokens: int = 20) -> tuple[str, list[dict[str, Any]]]:
    """Let llama.cpp continue a prompt greedily; gives the text and for each token the likeliest ones.

    It gives none for tokens that end inside a character, and then only the first is known to be in its place.
    """
    order = json.dumps([str(path), ids, tokens, _TOP])
    done = subprocess.run([sys.executable, "-c", _CHILD, order], capture_output=True, text=True, check=False)
    _, found, answer = done.stdout.partition("\nANSWER")
    if not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerificationError(f"llama.cpp cannot run {path.name} (exit status {done.returncode}): {last[:200]}")
    choice = json.loads(answer)["choices"][0]
    steps = list((choice["logprobs"] or {}).get("content", ()))
    if not steps:
        raise VerificationError(f"llama.cpp says nothing from {path.name}: {choice['text']!r}")
    return str(choice["text"]), steps if len(steps) == tokens else steps[:1]
