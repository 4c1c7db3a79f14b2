"""Comparison of llama.cpp's predictions from a GGUF file with a candidate (`prunesearch[gguf]`).

llama.cpp runs in a separate process, because a file that it cannot load may crash the process.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, VerificationError
from prunesearch.export.decoding import prompt_ids
from prunesearch.export.results import LlamaCppCheck
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import pruned

OTHER_WAY = "export a checkpoint and use llama.cpp's convert_hf_to_gguf.py"
"""Advice for models that cannot be written to a GGUF file."""
_TOP = 5
# Allowed mean difference of a log-probability, as a share of the spread (standard deviation) of the
# logits. Rounding errors grow with this spread. The largest difference may be _PEAK times the mean.
# Both programs round 16-bit activations, in different places, and llama.cpp rounds them to 8 bits
# for quantised weights. Blocks in a wrong order make the mean difference about as large as the
# spread.
_ALLOWED = {"F32": 0.02, "F16": 0.05, "BF16": 0.1}
_ALLOWED_QUANTISED = 0.15
_LEAST = 1e-4
_PEAK = 10
_START_SECONDS = 600
# Bytes of the file per second. Every machine is faster at reading the file and computing a few
# tokens.
_BYTES_PER_SECOND = 5e6
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
    url = server.listening_address + path
    request = urllib.request.Request(url, json.dumps(fields).encode(), head)
    return json.loads(opener.open(request).read())
def go_on(prompt, tokens):
    return post("/completion", prompt=prompt, n_predict=tokens, temperature=0.0, n_probs=top,
                return_tokens=True, ignore_eos=True)
if isinstance(prompt, str):
    answer = go_on(prompt, tokens)["content"]
else:
    # A token at a time: no probabilities come for tokens that end inside a character, and the
    # others are counted on.
    answer = []
    for _ in range(tokens):
        one = go_on(prompt + [token for token, _ in answer], 1)
        likeliest = one.get("completion_probabilities") or [{"top_logprobs": []}]
        answer.append([one["tokens"][0], likeliest[0]["top_logprobs"]])
def tokens_of(text):
    return post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
found = [tokens_of(text) for text in texts]
print("\\nANSWER" + json.dumps([answer, found]), flush=True)
os._exit(0)
"""


def available() -> bool:
    """Return whether llama.cpp (the package xllamacpp) is installed."""
    return find_spec("xllamacpp") is not None


@torch.inference_mode()
def check(
    path: Path,
    loaded: LoadedModel,
    candidate: LayerSubset,
    tensor_type: str,
    probes: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> LlamaCppCheck:
    """Compare llama.cpp's log-probabilities after a prompt with those of the candidate in
    transformers.

    Args:
        path: GGUF file.
        loaded: dense model.
        candidate: candidate of the dense model.
        tensor_type: GGUF's name of the type of most weights. It determines the tolerance.
        probes: texts with their token ids, which llama.cpp must reproduce.

    Raises:
        VerificationError: llama.cpp cannot load the file, or it predicts something else.
        InputError: llama.cpp splits a text into other tokens.
    """
    # llama.cpp must split texts into the same tokens.
    ids = prompt_ids(loaded.model, loaded.tokenizer)
    steps, found = _ask(path, ids[0].tolist(), texts=list(probes))
    for (probe, expected), actual in zip(probes.items(), found, strict=True):
        if list(expected) != actual:
            raise InputError(
                f"llama.cpp cuts the text {probe!r} into the tokens {actual[:12]}, and the model's "
                f"tokenizer into "
                f"{list(expected)[:12]}: {OTHER_WAY}"
            )
    # Compute the candidate's log-probabilities for llama.cpp's continuation.
    tokens = [token for token, _ in steps]
    with pruned(loaded.model, candidate):
        whole = torch.cat([ids, torch.tensor([tokens], device=ids.device)], dim=1)
        logits_LV = loaded.model(input_ids=whole, use_cache=False).logits[0].float()
    expected_TV = torch.log_softmax(logits_LV[ids.shape[1] - 1 : -1], dim=-1)
    # Compare the likeliest tokens of each step.
    differences: list[float] = []
    for row, (_, likeliest) in zip(expected_TV, steps, strict=True):
        for entry in likeliest:
            differences.append(abs(float(entry["logprob"]) - float(row[entry["id"]])))
    if not differences:
        raise VerificationError(f"llama.cpp says nothing that could be compared from {path.name}")
    mean, largest = statistics.fmean(differences), max(differences)
    spread = float(logits_LV.std(dim=-1).mean())
    allowed = max(_LEAST, _ALLOWED.get(tensor_type, _ALLOWED_QUANTISED) * spread)
    if not (mean <= allowed and largest <= _PEAK * allowed):
        raise VerificationError(
            f"llama.cpp predicts something else from {path.name}: log-probabilities differ by "
            f"{mean:.3g} nats in the "
            f"mean and {largest:.3g} at most (allowed {allowed:.3g} and {_PEAK * allowed:.3g})"
        )
    text = str(loaded.tokenizer.decode(tokens))
    return LlamaCppCheck(round(mean, 5), round(largest, 5), round(allowed, 5), len(steps), text)


def generate(path: Path, text: str) -> str:
    """Return llama.cpp's continuation of a text.

    Raises:
        VerificationError: llama.cpp cannot load the file.
    """
    return str(_ask(path, text)[0])


def _ask(
    path: Path, prompt: list[int] | str, tokens: int = 20, texts: Sequence[str] = ()
) -> tuple[Any, list[list[int]]]:
    """Let llama.cpp continue a prompt greedily, and split texts into tokens.

    Args:
        path: GGUF file.
        prompt: text, or token ids.
        tokens: number of tokens to generate.
        texts: texts to split into tokens.

    Returns:
        The continuation, and the tokens of each text. The continuation of a text is a text. That of
        token ids is a list with each next token and the likeliest tokens at its position.

    Raises:
        VerificationError: llama.cpp cannot load the file, or it takes too long.
    """
    order = json.dumps([str(path), prompt, tokens, _TOP, list(texts), torch.get_num_threads()])
    seconds = _START_SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    command = [sys.executable, "-c", _CHILD]
    try:
        done = subprocess.run(
            command, input=order, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise VerificationError(
            f"llama.cpp did not finish with {path.name} within {seconds:.0f} s"
        ) from None
    # llama.cpp may print other lines before the answer.
    _, found, answer = done.stdout.partition("\nANSWER")
    if not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerificationError(
            f"llama.cpp cannot run {path.name} (exit status {done.returncode}): {last[:200]}"
        )
    completion, cut = json.loads(answer)
    return completion, cut
