"""Times models against each other: one prefill, and decoding with a cache.

The models take turns, so that other work of the machine affects all of them.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.structure import input_device
from prunesearch.models.surgery import pruned

_DECODED = 16


@dataclass(frozen=True)
class Speed:
    """Times of a model: medians, or those of one turn.

    Attributes:
        prefill_ms: milliseconds of a prefill.
        decode_ms: milliseconds of one decoded token.
    """

    prefill_ms: float
    decode_ms: float


@torch.inference_mode()
@wide_products()
def compare(models: Mapping[str, PreTrainedModel], tokens: int, turns: int) -> dict[str, Speed]:
    """Time models in turns.

    Args:
        models: models by name.
        tokens: tokens of the prefill.
        turns: number of turns, after one that warms up.
    """
    prefill: dict[str, list[float]] = {name: [] for name in models}
    decode: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(turns + 1):
        for name, model in models.items():
            seconds = _times(model, tokens)
            prefill[name].append(seconds[0])
            decode[name].append(seconds[1])
    found = {}
    for name in models:
        times = [statistics.median(each[name][1:]) for each in (prefill, decode)]
        found[name] = Speed(1000 * times[0], 1000 * times[1] / _DECODED)
    return found


def _times(model: PreTrainedModel, tokens: int) -> tuple[float, float]:
    """Return the seconds of a prefill, and of decoding a few tokens after it."""
    vocabulary, device = int(model.config.vocab_size), input_device(model)
    ids_1L = (torch.arange(tokens, device=device) * 7919 % vocabulary)[None]
    cache = DynamicCache(config=model.config)
    start = _now(device)
    model(input_ids=ids_1L, past_key_values=cache, use_cache=True, logits_to_keep=1)
    prefilled = _now(device)
    for step in range(_DECODED):
        model(input_ids=ids_1L[:, step : step + 1], past_key_values=cache, use_cache=True)
    return prefilled - start, _now(device) - prefilled


def _now(device: torch.device) -> float:
    """Return the time in seconds once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
@wide_products()
def time_candidates(
    model: PreTrainedModel, candidates: Mapping[str, LayerSubset], tokens: int, turns: int
) -> dict[str, list[Speed]]:
    """Time candidates of one model in turns, and return the times of each turn.

    Args:
        model: the dense model.
        candidates: candidates by name.
        tokens: tokens of the prefill.
        turns: number of turns, after one that warms up.
    """
    found: dict[str, list[Speed]] = {name: [] for name in candidates}
    for turn in range(turns + 1):
        for name, candidate in candidates.items():
            with pruned(model, candidate) as smaller:
                prefill, decode = _times(smaller, tokens)
            if turn > 0:
                found[name].append(Speed(1000 * prefill, 1000 * decode / _DECODED))
    return found
