"""Loading a GGUF in llama.cpp and comparing what it predicts (`prunesearch[gguf]`).

llama.cpp runs in a process of its own: a file that it cannot load may take the process with it.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, VerificationError
from prunesearch.export.verification import prompt_ids
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned

OTHER_WAY = "export a checkpoint and use llama.cpp's convert_hf_to_gguf.py"
"""What to do where a GGUF cannot be written."""
_TOP = 5
# Mean difference of a log-probability, as a share of the spread (standard deviation) of the logits, with which rounding
# errors grow. The largest difference may be _PEAK times as much. Both sides round 16-bit activations, each in its own
# places, and llama.cpp rounds them to 8 bits for quantised weights. Blocks in a wrong order make the mean difference
# about as large as the spread.
_ALLOWED = {"F32": 0.02, "F16": 0.05, "BF16": 0.1}
_ALLOWED_QUANTISED = 0.15
_LEAST = 1e-4
_PEAK = 10
_START_SECONDS = 600
_BYTES_PER_SECOND = 5e6  # of the file: slower than any machine reads and computes it for a few tokens
_CHILD = """
import json, os, sys, urllib.request
import xllamacpp
path, prompt, tokens, top, texts, threads = json.loads(sys.stdin.read())
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, 512, 0, 1
params.verbosity = -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_threads_http = 2
server = xllamacpp.Server(params)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def post(path, **fields):
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(fields).encode(), head)
    return json.loads(opener.open(request).read())
def go_on(prompt, tokens):
    return post("/completion", prompt=prompt, n_predict=tokens, temperature=0.0, n_probs=top, return_tokens=True,
                ignore_eos=True)
if isinstance(prompt, str):
    answer = go_on(prompt, tokens)["content"]
else:  # a token at a time: no probabilities come for tokens that end inside a character, and the others are counted on
    answer = []
    for _ in range(tokens):
        one = go_on(prompt + [token for token, _ in answer], 1)
        likeliest = one.get("completion_probabilities") or [{"top_logprobs": []}]
        answer.append([one["tokens"][0], likeliest[0]["top_logprobs"]])
found = [post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"] for text in texts]
print("\\nANSWER" + json.dumps([answer, found]), flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class LlamaCppCheck:
    """What llama.cpp makes of a file.

    Attributes:
        difference: mean difference of a log-probability of the likeliest tokens at each step, in nats.
        largest: the largest one.
        allowed: the limit of the mean; a tenth of the largest one's.
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
def check(
    path: Path,
    loaded: LoadedModel,
    candidate: LayerSubset,
    tensor_type: str,
    probes: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> LlamaCppCheck:
    """Let llama.cpp continue a prompt and compare its log-probabilities with the candidate's in transformers.

    Args:
        tensor_type: of most weights, as GGUF names it; it sets the tolerance.
        probes: texts and their token ids, which llama.cpp must give too.

    Raises:
        VerificationError: llama.cpp cannot load it, or predicts something else.
        InputError: it cuts a text into other tokens.
    """
    ids = prompt_ids(loaded.model, loaded.tokenizer)
    steps, found = _ask(path, ids[0].tolist(), texts=list(probes))
    for (probe, expected), actual in zip(probes.items(), found, strict=True):
        if list(expected) != actual:
            raise InputError(
                f"llama.cpp cuts the text {probe!r} into the tokens {actual[:12]}, and the model's tokenizer into "
                f"{list(expected)[:12]}: {OTHER_WAY}"
            )
    tokens = [token for token, _ in steps]
    with pruned(loaded.model, candidate):
        whole = torch.cat([ids, torch.tensor([tokens], device=ids.device)], dim=1)
        logits_LV = loaded.model(input_ids=whole, use_cache=False).logits[0].float()
    expected_TV = torch.log_softmax(logits_LV[ids.shape[1] - 1 : -1], dim=-1)
    differences = [
        abs(float(entry["logprob"]) - float(row[entry["id"]]))
        for row, (_, likeliest) in zip(expected_TV, steps, strict=True)
        for entry in likeliest
    ]
    if not differences:
        raise VerificationError(f"llama.cpp says nothing that could be compared from {path.name}")
    mean, largest = statistics.fmean(differences), max(differences)
    spread = float(logits_LV.std(dim=-1).mean())
    allowed = max(_LEAST, _ALLOWED.get(tensor_type, _ALLOWED_QUANTISED) * spread)
    if not (mean <= allowed and largest <= _PEAK * allowed):
        raise VerificationError(
            f"llama.cpp predicts something else from {path.name}: log-probabilities differ by {mean:.3g} nats in the "
            f"mean and {largest:.3g} at most (allowed {allowed:.3g} and {_PEAK * allowed:.3g})"
        )
    text = str(loaded.tokenizer.decode(tokens))
    return LlamaCppCheck(round(mean, 5), round(largest, 5), round(allowed, 5), len(steps), text)


def generate(path: Path, text: str) -> str:
    """Let llama.cpp continue a text.

    Raises:
        VerificationError: it cannot load the file.
    """
    return str(_ask(path, text)[0])


def _ask(
    path: Path, prompt: list[int] | str, tokens: int = 20, texts: Sequence[str] = ()
) -> tuple[Any, list[list[int]]]:
    """Let llama.cpp continue a prompt greedily and cut texts into tokens.

    Returns:
        How it continues a text; of token ids each next one, and the likeliest ones at its place. Then the tokens of
        each text.

    Raises:
        VerificationError: it cannot load the file, or takes too long.
    """
    order = json.dumps([str(path), prompt, tokens, _TOP, list(texts), torch.get_num_threads()])
    seconds = _START_SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    command = [sys.executable, "-c", _CHILD]
    try:
        done = subprocess.run(command, input=order, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise VerificationError(f"llama.cpp did not finish with {path.name} within {seconds:.0f} s") from None
    _, found, answer = done.stdout.partition("\nANSWER")
    if not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerificationError(f"llama.cpp cannot run {path.name} (exit status {done.returncode}): {last[:200]}")
    completion, cut = json.loads(answer)
    return completion, cut
