"""Greedy decoding of a prompt, which is compared before and after an export."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import input_device, most_positions
from prunesearch.objectives.calibration_data import check_ids
from prunesearch.runtime.patching import replaced

NEW_TOKENS = 20
_PROMPT = "The history of the lighthouse begins with a fire on a hill, which told sailors that"


def prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> torch.Tensor:
    """Return the token ids of a prompt, shape (1, L). Without a tokenizer they are made up."""
    if tokenizer is None:
        most = min(int(getattr(settings_of(model.config), "vocab_size", 100)), 5000)
        ids = [(7 * i + 5) % most for i in range(24)]
    else:
        ids = tokenizer(_PROMPT)["input_ids"]
        # The prompt and its continuation must fit into the model's position table.
        positions = most_positions(model)
        if positions is not None:
            ids = ids[: max(1, positions - NEW_TOKENS)]
        check_ids(model, max(ids))
    return torch.tensor([ids], device=input_device(model))


def likeliest(logits_BLV: torch.Tensor, number: int = 4) -> list[list[tuple[int, float]]]:
    """Return ids and logits of the likeliest tokens at each position of the first sequence.

    Args:
        logits_BLV: logits, shape (B, L, V).
        number: number of tokens per position.
    """
    values, ids = logits_BLV[0].float().topk(number, dim=-1)
    likely = []
    for ids_here, values_here in zip(ids.tolist(), values.tolist(), strict=True):
        rounded = [round(value, 6) for value in values_here]
        likely.append(list(zip(ids_here, rounded, strict=True)))
    return likely


class Decoded(NamedTuple):
    """Greedy steps of a model.

    Attributes:
        ids: ids of the new tokens, shape (T,).
        logits: logits at each step, shape (T, V).
        cached: True if each step after the first read less than the whole text, and took the rest
            from a cache.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    cached: bool


def generate(model: PreTrainedModel, ids: torch.Tensor) -> Decoded:
    """Continue greedily with a cache.

    Settings that come with the model (`generation_config.json`, ``use_cache``, generation code) are
    ignored. They could sample, stop early, disable the cache, or require something that is not
    available here.
    """
    lengths: list[int] = []

    def note_length(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A model takes token ids or embeddings. Input that is not found counts as the whole text.
        read = kwargs.get("input_ids", args[0] if args else None)
        if read is None:
            read = kwargs.get("inputs_embeds")
        if read is None:
            read = ids
        lengths.append(read.shape[1])

    hook = model.register_forward_pre_hook(note_length, with_kwargs=True)
    try:
        clean = GenerationConfig()  # type: ignore[no-untyped-call]
        with replaced(model, "generation_config", clean):
            answer: Any = type(model).generate(  # type: ignore[attr-defined]
                model,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                use_cache=True,
                max_new_tokens=NEW_TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
    finally:
        hook.remove()
    cached = all(length < ids.shape[1] for length in lengths[1:])
    return Decoded(
        answer.sequences[0, ids.shape[1] :], torch.stack(answer.logits)[:, 0].float(), cached
    )


def prefill_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits over a prompt, shape (1, L, V)."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()
