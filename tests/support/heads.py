"""Tiny models with heads of several kinds, and hidden states for them."""

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.model_types import tiny_model

LINEAR = {
    "llama": 1.0, "gpt2": 1.0, "phi": 1.0, "cohere": 0.0625, "granite": 0.125, "opt": 1.0,
}  # fmt: skip
"""Scale of the logits by model type. Phi has a bias."""
_CHANGES: dict[str, Any] = {
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
}


def rows(model: PreTrainedModel, count: int = 20, seed: int = 0) -> torch.Tensor:
    """Random hidden states, shape (count, E)."""
    width = model.get_output_embeddings().weight.shape[1]
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return made.to(model.dtype)


def headed_model(model_type: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny model of a type. A bias of its head is random."""
    model = tiny_model(model_type, **_CHANGES.get(model_type, {}))
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    if bias is not None:
        with torch.no_grad():
            bias.copy_(torch.randn(len(bias), generator=torch.Generator().manual_seed(9)))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
