"""Greedy generation with a cache of keys and values."""

from typing import Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel

from prunesearch.runtime.patching import replaced


class TokenReceiver(Protocol):
    """Receives the tokens of a generation one by one, as transformers' streamers do."""

    def put(self, value: torch.Tensor) -> None:
        """Receive the prompt, and then each new token."""
        ...

    def end(self) -> None:
        """Note that the generation has ended."""
        ...


def generate(
    model: PreTrainedModel,
    ids_1L: torch.Tensor,
    tokens: int,
    *,
    end: int | None = None,
    streamer: TokenReceiver | None = None,
) -> list[int]:
    """Return the token ids that a model writes after a prompt.

    Settings that come with the model, such as a penalty for repetitions, are ignored.

    Args:
        model: the model.
        ids_1L: token ids of the prompt, shape (1, L).
        tokens: largest number of tokens to write.
        end: id of the token that ends a text. None: exactly `tokens` are written.
        streamer: object that receives each token as soon as it is known.
    """
    clean = GenerationConfig()  # type: ignore[no-untyped-call]
    with torch.inference_mode(), replaced(model, "generation_config", clean):
        written: torch.Tensor = type(model).generate(  # type: ignore[attr-defined]
            model,
            input_ids=ids_1L,
            attention_mask=torch.ones_like(ids_1L),
            do_sample=False,
            use_cache=True,
            max_new_tokens=tokens,
            eos_token_id=end,
            pad_token_id=0 if end is None else end,
            streamer=streamer,
        )
    ids: list[int] = written[0, ids_1L.shape[1] :].tolist()
    return ids
