"""Loading a GGUF in llama.cpp and comparing what it predicts (`prunesearch[gguf]`).

llama.cpp runs in a process of its own: a file that it cannot load may take the process with it.
"""

import json
import statistics
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
# Mean difference of a log-probability, in nats; the largest may be _PEAK times as much. Both sides round 16-bit
# activations, each in its own places, and llama.cpp rounds them to 8 bits for quantised weights. Blocks in a wrong
# order make differences of several nats.
_ALLOWED = {"F32": 0.01, "F16": 0.05, "BF16": 0.15}
_ALLOWED_QUANTISED = 0.5
_PEAK = 5
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
        difference: mean difference of a log-probability of the likeliest tokens at each step, in nats.
        largest: the largest one.
        allowed: the limit of the mean; a fifth of the largest one's.
        steps: how many tokens it generated, greedily.
        generated: how it goes on after the prompt.
    """

    difference: float
    largest: float
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
    differences = [
        abs(float(entry["logprob"]) - float(row[entry["id"]]))
        for row, step in zip(expected_TV, steps, strict=True)
        for entry in step["top_logprobs"]
    ]
    mean, largest = statistics.fmean(differences), max(differences)
    allowed = _ALLOWED.get(tensor_type, _ALLOWED_QUANTISED)
    if not (mean <= allowed and largest <= _PEAK * allowed):
        raise VerificationError(
            f"llama.cpp predicts something else from {path.name}: log-probabilities differ by {mean:.3g} nats in the "
            f"mean and {largest:.3g} at most (allowed {allowed} and {_PEAK * allowed:.3g})"
        )
    return LlamaCppCheck(round(mean, 5), round(largest, 5), allowed, len(steps), text)


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
