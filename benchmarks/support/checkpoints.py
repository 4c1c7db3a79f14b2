"""Checkpoints of random weights in any size, written shard by shard."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from prunesearch.models.model_configs import meta_model
from prunesearch.models.weight_files import INDEX

SHARD_BLOCKS = 11
VOCABULARY = 32_000


@dataclass(frozen=True)
class Shape:
    """The size of a Llama-shaped model.

    By default a block has 47,188,992 parameters; 131,074,048 are beside the blocks.
    """

    blocks: int
    hidden: int = 2048
    intermediate: int = 5632

    def config(self) -> LlamaConfig:
        """The config of the model, in bfloat16."""
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=16,
            num_key_value_heads=8,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )


def write_model(folder: Path, shape: Shape) -> int:
    """Write a checkpoint of random weights shard by shard; return the bytes of its weights."""
    settings = shape.config()
    settings.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<s>": 0}, "<s>"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    pool = (
        0.02 * torch.randn(max(2**24, 2 * shape.hidden * VOCABULARY), generator=generator)
    ).bfloat16()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    where: dict[str, str] = {}
    total = 0
    for name, wanted in meta_model(settings).named_parameters():
        part = (
            int(name.split(".")[2]) // SHARD_BLOCKS if name.startswith("model.layers.") else "rest"
        )
        start = int(torch.randint(pool.numel() - wanted.numel(), (), generator=generator))
        tensor = pool[start : start + wanted.numel()].view(wanted.shape).clone()
        where[name] = f"model-{part}.safetensors"
        total += tensor.nbytes
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
        for full in [full for full in shards if full != where[name] and "rest" not in full]:
            _write(folder / full, shards.pop(full))
        shards.setdefault(where[name], {})[name] = tensor
    for file, tensors in shards.items():
        _write(folder / file, tensors)
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": where})
    )
    return total


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path, {"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def forget(folder: Path) -> None:
    """Empty the page cache of a checkpoint."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
