"""Models of known shapes with random weights, which are made on the device that computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunesearch.candidate import LayerSubset
from prunesearch.compat.transformers import no_init_weights
from prunesearch.models.layers import Layers, ResidentLayers
from prunesearch.models.loading import LoadedModel
from prunesearch.models.sizes import sizes_of
from prunesearch.models.structure import blocks_of
from tests.support.models import byte_tokenizer


@dataclass(frozen=True)
class ModelShape:
    """The size of a Llama-shaped model.

    Attributes:
        name: name in the figures.
        dropped: blocks that a candidate drops.
    """

    name: str
    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    dropped: int

    def config(self, dtype: torch.dtype) -> LlamaConfig:
        """Return the config of the model."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            tie_word_embeddings=self.tied,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            dtype=dtype,
            architectures=["LlamaForCausalLM"],
        )

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """Matrices of a block: inputs, outputs and how many of them there are."""
        kv = self.hidden // self.heads * self.kv_heads
        return [
            (self.hidden, self.hidden, 2),
            (self.hidden, kv, 2),
            (self.hidden, self.intermediate, 2),
            (self.intermediate, self.hidden, 1),
        ]

    def block_flops(self, tokens: int, window: int) -> float:
        """Return the operations of a block: its matrices, and causal attention in windows."""
        weights = sum(inputs * outputs * count for inputs, outputs, count in self.products)
        attention = 2 * self.hidden * (window + 1) / 2
        return 2.0 * tokens * (weights + attention)

    def head_flops(self, rows: int) -> float:
        """Return the operations of the vocabulary head."""
        return 2.0 * rows * self.hidden * self.vocabulary


LLAMA_8B = ModelShape("llama8b", 4096, 14336, 32, 32, 8, 128_256, False, 8)
"""Llama-3.1-8B."""
SMOLLM2 = ModelShape("smollm2", 576, 1536, 30, 9, 3, 49_152, True, 8)
"""SmolLM2-135M, whose kernels are so short that launching them takes longer."""
TINY_8B = ModelShape("llama8b", 64, 128, 8, 4, 2, 320, False, 2)
TINY_SMALL = ModelShape("smollm2", 32, 64, 6, 4, 2, 320, True, 2)
"""The shapes of a smoke run."""


def random_model(
    shape: ModelShape,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LoadedModel:
    """Build a model with random weights on a device, without a copy in host memory."""
    config = shape.config(dtype)
    with no_init_weights(), device:
        model = moved(LlamaForCausalLM(config), device, dtype)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, 0.02, generator=generator)
    model.tie_weights()
    model.requires_grad_(False)
    model.train(False)
    return loaded_of(model, tokenizer)


def moved(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Move a model to a device, and convert it."""
    module: nn.Module = model
    nn.Module.to(module, device=device, dtype=dtype)
    return model


def loaded_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layers: Layers | None = None,
) -> LoadedModel:
    """Return a model in memory as one that was loaded. Its fingerprint is that of no other."""
    return LoadedModel(
        "random",
        model,
        tokenizer or byte_tokenizer(("t", "h")),
        f"random {type(model).__name__} {len(blocks_of(model))}",
        sizes_of(model),
        layers or ResidentLayers(blocks_of(model)),
    )


def late_generation(shape: ModelShape, count: int, seed: int = 0) -> list[LayerSubset]:
    """Return a generation round a leader: each drops what the leader drops, but for some swaps.

    So are the late generations of a search (see `benchmarks.prefix_sharing`).
    """
    rng = np.random.default_rng(seed)
    middle = range(1, shape.blocks - 1)
    first = shape.blocks - 2 - shape.dropped
    leader = set(range(first, first + shape.dropped))
    found: dict[LayerSubset, None] = {LayerSubset.of(shape.blocks, leader): None}
    while len(found) < count:
        swaps = min(*rng.integers(1, 4, size=2).tolist(), shape.dropped)
        out = rng.choice(sorted(leader), swaps, replace=False)
        into = rng.choice(sorted(set(middle) - leader), swaps, replace=False)
        chosen = leader - set(out.tolist()) | set(into.tolist())
        found[LayerSubset.of(shape.blocks, chosen)] = None
    return list(found)


def random_generation(shape: ModelShape, count: int, seed: int = 0) -> list[LayerSubset]:
    """Return candidates that drop random blocks."""
    rng = np.random.default_rng(seed)
    found: dict[LayerSubset, None] = {}
    while len(found) < count:
        dropped: Sequence[int] = rng.choice(shape.blocks, shape.dropped, replace=False).tolist()
        found[LayerSubset.of(shape.blocks, dropped)] = None
    return list(found)
