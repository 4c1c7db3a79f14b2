"""What a checkpoint is made of, block by block, without building it: for `prunesearch analyze`."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunesearch.errors import ModelError
from prunesearch.model.anatomy import read_config, skeleton
from prunesearch.model.checkpoint import weight_files
from prunesearch.model.gguf_file import open_gguf
from prunesearch.model.guard import guarded
from prunesearch.model.source import resolve

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class BlockInventory:
    """One block.

    Attributes:
        params: all its parameters.
        attention, mlp: of these, the parameters of each sublayer (the rest are norms).
        bytes: as stored.
    """

    index: int
    params: int
    attention: int
    mlp: int
    bytes: int


@dataclass(frozen=True)
class Inventory:
    """A model's parameters and bytes.

    Attributes:
        source: where the numbers come from: ``config``, ``safetensors`` or ``gguf``.
        params, bytes: in all, tied weights counted once.
    """

    source: str
    params: int
    bytes: int
    blocks: tuple[BlockInventory, ...]


@dataclass(frozen=True)
class _Tensor:
    name: str
    params: int
    bytes: int


def take_inventory(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Inventory:
    """Count a model's parameters from its weights' headers, or from its config where there are no weights.

    Args:
        name: a ``config.json``, a model folder, a ``.gguf`` file, or a Hugging Face id (only its config is fetched).

    Raises:
        ModelError: missing, unreadable, or without blocks.
    """
    if name.endswith(".json"):
        config = read_config(name, trust_remote_code)
    else:
        source = resolve(name, revision=revision, trust_remote_code=trust_remote_code, config_only=True)
        if source.gguf is not None:
            return _group("gguf", list(_from_gguf(source.gguf)))
        assert source.folder is not None
        shards = () if source.from_hub else weight_files(source.folder)
        if shards and all(shard.suffix == ".safetensors" for shard in shards):
            # Of tensors of one name the last file's counts, as when the model is loaded.
            tensors = {tensor.name: tensor for shard in shards for tensor in _from_safetensors(shard)}
            return _group("safetensors", list(tensors.values()))
        config = read_config(str(source.folder), trust_remote_code)
    model = skeleton(config, trust_remote_code)
    return _group("config", [_Tensor(n, p.numel(), p.numel() * p.element_size()) for n, p in model.named_parameters()])


def _group(source: str, tensors: list[_Tensor]) -> Inventory:
    parts: dict[int, list[tuple[str, _Tensor]]] = {}
    for tensor in tensors:
        if match := _BLOCK.search(tensor.name):
            parts.setdefault(int(match[1]), []).append((match[2], tensor))
    if not parts:
        raise ModelError("no blocks were found among the model's tensors: it is not a decoder this version knows")
    return Inventory(
        source,
        sum(t.params for t in tensors),
        sum(t.bytes for t in tensors),
        tuple(_block(index, parts[index]) for index in sorted(parts)),
    )


def _block(index: int, parts: list[tuple[str, _Tensor]]) -> BlockInventory:
    def params(*prefixes: str) -> int:
        return sum(t.params for name, t in parts if name.startswith(prefixes) and "norm.weight" not in name)

    return BlockInventory(
        index,
        sum(t.params for _, t in parts),
        params("self_attn.", "attn_", "attention."),
        params("mlp.", "ffn_"),
        sum(t.bytes for _, t in parts),
    )


def _from_safetensors(shard: Path) -> Iterator[_Tensor]:
    from safetensors import safe_open

    found: dict[str, tuple[int, int]] = {}
    failure = f"cannot read {str(shard)!r}"
    with guarded(failure, shard, advice="download it again"), safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            tensor = file.get_slice(name)
            found[name] = math.prod(tensor.get_shape()), _bits(tensor.get_dtype())
    for name, (params, bits) in found.items():
        yield _Tensor(name, params, params * bits // 8)


def _bits(dtype: str) -> int:
    """Width of a safetensors dtype such as BF16, F8_E4M3 or BOOL."""
    digits = re.match(r"[A-Z]+(\d+)", dtype)
    return int(digits[1]) if digits else 8


def _from_gguf(path: Path) -> Iterator[_Tensor]:
    for tensor in open_gguf(path).tensors:
        yield _Tensor(tensor.name, int(tensor.n_elements), int(tensor.n_bytes))
