"""Parameters and bytes of each block of a checkpoint, without loading it.

Used by `prunesearch analyze`. The headers of weight files need no torch, so it is imported only if
there is nothing but a config.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prunesearch.errors import ModelError
from prunesearch.models.gguf_file import read_header
from prunesearch.models.guard import guarded
from prunesearch.models.source import resolve
from prunesearch.models.weight_files import weight_files
from prunesearch.runtime.json_values import json_as

_ATTENTION = ("self_attn.", "attn_", "attention.")
_MLP = ("mlp.", "ffn_")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class BlockInventory:
    """The parameters and bytes of one block.

    Attributes:
        index: index of the block.
        params: number of parameters.
        attention: number of parameters of the attention.
        mlp: number of parameters of the MLP. All other parameters of the block belong to norms.
        bytes: bytes of the parameters as they are stored.
    """

    index: int
    params: int
    attention: int
    mlp: int
    bytes: int


@dataclass(frozen=True)
class Inventory:
    """The parameters and bytes of a model.

    Attributes:
        source: source of the numbers: ``config``, ``safetensors`` or ``gguf``.
        params: number of all parameters. Tied weights count once.
        bytes: bytes of all parameters. Tied weights count once.
        blocks: the same per block.
    """

    source: str
    params: int
    bytes: int
    blocks: tuple[BlockInventory, ...]


@dataclass(frozen=True)
class NamedInventory:
    """An inventory, with the model as it was named."""

    model: str
    inventory: Inventory = field(metadata=json_as(inline=True))


@dataclass(frozen=True)
class _Tensor:
    name: str
    params: int
    bytes: int


def take_inventory(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Inventory:
    """Count the parameters of a model.

    They are counted in the headers of its weight files. If there are no weights, they are computed
    from its config.

    Args:
        name: a ``config.json``, a model folder, a ``.gguf`` file, or a Hugging Face id. Of an id
            only the config is downloaded.
        revision: branch, tag or commit of a Hugging Face id.
        trust_remote_code: run code that ships with the model.

    Raises:
        ModelError: the model is missing or unreadable, or it has no blocks.
    """
    if name.endswith(".json"):
        return _from_config(name, trust_remote_code)
    source = resolve(name, revision=revision, trust_remote_code=trust_remote_code, config_only=True)
    if source.gguf is not None:
        return _group("gguf", list(_from_gguf(source.gguf)))
    assert source.folder is not None
    shards = () if source.from_hub else weight_files(source.folder)
    if shards and all(shard.suffix == ".safetensors" for shard in shards):
        # If two files have a tensor of the same name, the last one counts, as when the model is
        # loaded.
        tensors: dict[str, _Tensor] = {}
        for shard in shards:
            for tensor in _from_safetensors(shard):
                tensors[tensor.name] = tensor
        return _group("safetensors", list(tensors.values()))
    return _from_config(str(source.folder), trust_remote_code)


def _from_config(name: str, trust_remote_code: bool) -> Inventory:
    """Count the parameters that a config describes, on a model of the meta device.

    Args:
        name: a ``config.json``, or the folder of one.
        trust_remote_code: run code that ships with the model.
    """
    from prunesearch.models.model_configs import meta_model, read_config

    model = meta_model(read_config(name, trust_remote_code), trust_remote_code)
    found = []
    for name_inside, parameter in model.named_parameters():
        found.append(
            _Tensor(name_inside, parameter.numel(), parameter.numel() * parameter.element_size())
        )
    return _group("config", found)


def _group(source: str, tensors: list[_Tensor]) -> Inventory:
    """Group tensors by block.

    Raises:
        ModelError: no tensor has the number of a block in its name.
    """
    parts: dict[int, list[tuple[str, _Tensor]]] = {}
    for tensor in tensors:
        if match := _BLOCK.search(tensor.name):
            parts.setdefault(int(match[1]), []).append((match[2], tensor))
    if not parts:
        raise ModelError(
            "no blocks were found among the model's tensors: it is not a decoder this version knows"
        )
    return Inventory(
        source,
        sum(t.params for t in tensors),
        sum(t.bytes for t in tensors),
        tuple(_block(index, parts[index]) for index in sorted(parts)),
    )


def _block(index: int, parts: list[tuple[str, _Tensor]]) -> BlockInventory:
    """Add up the tensors of one block.

    Args:
        index: index of the block.
        parts: tensors of the block, each with its name inside the block.
    """
    params = attention = mlp = nbytes = 0
    for name, tensor in parts:
        params += tensor.params
        nbytes += tensor.bytes
        # A norm counts for the block alone, even if its name starts like that of a sublayer.
        if "norm.weight" in name:
            continue
        if name.startswith(_ATTENTION):
            attention += tensor.params
        if name.startswith(_MLP):
            mlp += tensor.params
    return BlockInventory(index, params, attention, mlp, nbytes)


def _from_safetensors(shard: Path) -> Iterator[_Tensor]:
    """Yield the tensors of a safetensors file."""
    from safetensors import safe_open

    found: dict[str, tuple[int, int]] = {}
    failure = f"cannot read {str(shard)!r}"
    with (
        guarded(failure, shard, advice="get it again"),
        safe_open(shard, framework="numpy") as file,
    ):
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            tensor = file.get_slice(name)
            found[name] = math.prod(tensor.get_shape()), _bits(tensor.get_dtype())
    for name, (params, bits) in found.items():
        yield _Tensor(name, params, params * bits // 8)


def _bits(dtype: str) -> int:
    """Return the bits of a safetensors dtype such as BF16, F8_E4M3 or BOOL."""
    digits = re.match(r"[A-Z]+(\d+)", dtype)
    return int(digits[1]) if digits else 8


def _from_gguf(path: Path) -> Iterator[_Tensor]:
    """Yield the tensors of a GGUF file."""
    for tensor in read_header(path):
        yield _Tensor(tensor.name, tensor.params, tensor.nbytes)
