"""What a memory plan knows of a model: its config, and the headers of its checkpoint or GGUF."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from prunesearch.models.gguf_file import read_header
from prunesearch.models.loading import refuse_quantised
from prunesearch.models.model_configs import meta_model, read_config, read_gguf_config
from prunesearch.models.safetensors_files import Stored, tensors_of
from prunesearch.models.sizes import sizes_of
from prunesearch.models.source import is_gguf, refuse_part, resolve
from prunesearch.models.structure import architecture_of
from prunesearch.models.weight_files import weight_files


@dataclass(frozen=True)
class PlannedModel:
    """Properties of a model that a plan is made from.

    Attributes:
        name: the model's folder, config file or id.
        config: its config.
        blocks: parameters of each block.
        other: parameters outside the blocks.
        largest: parameters of the largest tensor of a block.
        size: bytes per number, as computed.
        dtype: type of the numbers, as computed.
        stored: the checkpoint's tensors; empty if they are not known.
        gguf: True for a GGUF, which is dequantised into memory and cannot be streamed.
    """

    name: str
    config: PretrainedConfig
    blocks: tuple[int, ...]
    other: int
    largest: int
    size: int
    dtype: torch.dtype
    stored: dict[str, Stored]
    gguf: bool = False

    @property
    def source(self) -> str:
        """Source of the sizes: ``gguf``, ``safetensors`` or ``config``."""
        if self.gguf:
            return "gguf"
        return "safetensors" if self.stored else "config"

    @property
    def places(self) -> tuple[str, ...]:
        """Places where the weights can wait, as ``--offload`` names them."""
        return ("none",) if self.gguf else ("none", "disk", "cpu")

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blocks as stored."""
        # Without a checkpoint, assume the type that the config names.
        if not self.stored:
            declared = (
                self.config.dtype if isinstance(self.config.dtype, torch.dtype) else torch.float32
            )
            return sum(self.blocks) * declared.itemsize
        path = "." + architecture_of(self.config).blocks.rpartition(".")[2] + "."
        total = 0
        for name, tensor in self.stored.items():
            if path in "." + name:
                total += tensor.nbytes
        return total

    @property
    def converted(self) -> bool:
        """True if a stored tensor has another type than the one that is computed in."""
        return any(s.dtype != self.dtype for s in self.stored.values())


def examine(name: str, dtype: str, revision: str | None, trust_remote_code: bool) -> PlannedModel:
    """Read a model's config and the headers of its checkpoint."""
    # Find the config and the weight files. Weights are never fetched.
    weights: tuple[Path, ...] = ()
    gguf = is_gguf(name)
    if gguf:
        path = Path(name)
        refuse_part(path)
        read_header(path)
        config = read_gguf_config(path)
    elif name.endswith(".json"):
        config = read_config(name, trust_remote_code)
    else:
        source = resolve(
            name, revision=revision, trust_remote_code=trust_remote_code, config_only=True
        )
        assert source.folder is not None
        config = read_config(str(source.folder), trust_remote_code)
        weights = () if source.from_hub else weight_files(source.folder)
    architecture_of(config, trust_remote_code)
    refuse_quantised(config, name)
    # Only safetensors files list their tensors.
    stored: dict[str, Stored] = {}
    if all(path.suffix == ".safetensors" for path in weights):
        stored = tensors_of(weights)
    # Count parameters on a model without weights.
    model = meta_model(config, trust_remote_code)
    sizes = sizes_of(model)
    own = torch.bfloat16 if gguf else model.dtype
    wanted = own if dtype == "auto" else getattr(torch, dtype)
    prefix = architecture_of(config).blocks + "."
    largest = 0
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith(prefix):
            largest = max(largest, parameter.numel())
    return PlannedModel(
        name,
        config,
        sizes.block_params,
        sizes.other_params,
        largest,
        wanted.itemsize,
        wanted,
        stored,
        gguf,
    )
