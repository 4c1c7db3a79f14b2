"""Measures how many tokens a pass should have on a GPU.

The tokens are doubled until the time per token stops falling or memory is short. The result is
kept in a file of the user's cache folder, by machine and kind of model. On a CPU a chunk is a pass.
"""

import hashlib
import json
import time
from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.cache.machine_files import keep, read_kept
from prunesearch.execution.device_memory import free_bytes
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import input_device

ENOUGH = 0.95
"""A pass is doubled while that lowers the time per token to less than this share."""
_MOST_TOKENS = 2**18
_SHARE = 0.25  # share of the free memory that a pass may take
_VERSION = 1  # of the measurement
_chosen: dict[str, int] = {}
"""Results of this process, by name."""


def pass_tokens_for(
    model: PreTrainedModel, length: int, tokens: int, seconds: Callable[[int], float]
) -> int:
    """Return the tokens of a pass; 0 on a CPU, where passes are not merged.

    Args:
        model: the dense model.
        length: tokens of a sequence.
        tokens: tokens that a pass has at least.
        seconds: function that times a pass of a number of tokens.
    """
    device = input_device(model)
    if device.type != "cuda":
        return 0
    # Look among the results of this process, and then in the file.
    name = _name(model, length)
    if name not in _chosen:
        known = _read(name)
        if known is None:
            room = free_bytes(device) * _SHARE / bytes_per_token(model.config, model.dtype)
            known = double(seconds, tokens, min(int(room), _MOST_TOKENS))
            keep(name, known)
        _chosen[name] = known
    return _chosen[name]


def double(seconds: Callable[[int], float], tokens: int, most: int) -> int:
    """Double the tokens of a pass while that lowers the time per token.

    Args:
        seconds: function that times a pass of a number of tokens.
        tokens: tokens to begin with.
        most: largest number of tokens that memory allows.
    """
    best, rate = tokens, seconds(tokens) / tokens
    while 2 * best <= most:
        try:
            doubled = seconds(2 * best) / (2 * best)
        except torch.OutOfMemoryError:
            break
        if doubled > ENOUGH * rate:
            break
        best, rate = 2 * best, doubled
    return best


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the second of two calls."""
    work()
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of a token while a block computes, as `execution.plan_formulas` has them."""
    settings = settings_of(config)
    hidden = int(settings.hidden_size)
    inner = int(getattr(settings, "intermediate_size", None) or 4 * hidden)
    return dtype.itemsize * (3 * inner + 8 * hidden)


def _name(model: PreTrainedModel, length: int) -> str:
    """Return the name of a kind of model on this machine."""
    settings = settings_of(model.config)
    kind = [type(model).__name__, settings.hidden_size, settings.num_hidden_layers]
    kind += [getattr(settings, "intermediate_size", None), str(model.dtype), length]
    place = [torch.cuda.get_device_name(input_device(model)), torch.__version__, _VERSION]
    return "pass-" + hashlib.sha256(json.dumps([kind, place]).encode()).hexdigest()[:24]


def _read(name: str) -> int | None:
    """Return the result of a file; None if it is missing or damaged."""
    stored = read_kept(name)
    return stored if isinstance(stored, int) and 0 < stored <= _MOST_TOKENS else None
