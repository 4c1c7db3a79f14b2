"""Safetensors checkpoints, read tensor by tensor without mapping or loading a file.

The format: 8 bytes, little-endian, give the length of a JSON header that names each tensor's type, shape and place
(https://github.com/huggingface/safetensors#format). The `safetensors` package maps whole files, which a hard memory
limit counts and which tells neither what was read nor when.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from prunesearch.errors import ModelError, one_line
from prunesearch.model.guard import guarded, refuse_pointers

_TYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
TYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in _TYPES.items()}
"""How the format writes tensor types."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ORDER = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
_MOST_HEADER = 100_000_000
"""Bytes of the longest header, as the `safetensors` package has it."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        offset: of its first byte in the file.
        modified: when the file was last written, in nanoseconds: it must not change while it is read.
    """

    path: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    modified: int


def misplaced(folder: Path) -> str | None:
    """A tensor that is not in the file where the index says it is; None where all are, or no index is read."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return None
    weight_map, stored = _weight_map(folder / INDEX), tensors_in(folder)
    wrong = (n for n in {*weight_map, *stored} if n not in stored or weight_map.get(n) != _said(folder, stored[n]))
    return min(wrong, default=None)


def _said(folder: Path, stored: Stored) -> str:
    """The file of a tensor as an index names it."""
    return stored.path.relative_to(folder).as_posix()


def weight_names(folder: Path) -> tuple[str, ...]:
    """File names under which transformers looks for weights, in its order; the first that is there is read.

    Args:
        folder: with the config, which may name another file.

    Raises:
        ModelError: the config names something that is no file of the folder.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        named = None  # a config that cannot be read is refused by its own reader
    if named is None:
        return _ORDER
    return (_inside(named, folder / "config.json"),)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint that transformers reads, in its order; empty if there are none.

    Whether the shards that an index names are there is not looked at.

    Raises:
        ModelError: an index is damaged, or names a file outside the folder.
    """
    for name in weight_names(folder):
        if not (folder / name).is_file():
            if (folder / name).exists():
                raise ModelError(f"{str(folder / name)!r} is a folder and no file of weights: get the model again")
            continue
        if not name.endswith(".index.json"):
            return (folder / name,)
        return tuple(folder / shard for shard in sorted(set(_weight_map(folder / name).values())))
    return ()


def _weight_map(path: Path) -> dict[str, str]:
    """Read an index of shards: the file of each tensor."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        weight_map = dict(index["weight_map"])
        dict(index["metadata"])  # transformers reads none without it
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}; get it again") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        refuse_pointers(path)
        raise ModelError(f"{str(path)!r} is damaged: {one_line(error)}; get it again") from None
    return {name: _inside(file, path) for name, file in weight_map.items()}


def _inside(name: object, said_by: Path) -> str:
    """The name of a file, if it can only lie in the folder of the file that says it.

    Raises:
        ModelError: it can lie elsewhere.
    """
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(
            f"{str(said_by)!r} names the weight file {name!r}, which is no file of its folder: get the model again"
        )
    return name


def tensors_in(folder: Path) -> dict[str, Stored]:
    """Find every tensor of a checkpoint in safetensors.

    Raises:
        ModelError: no safetensors, damaged, or cut short.
    """
    files = weight_files(folder)
    if not files or any(path.suffix != ".safetensors" for path in files):
        raise ModelError(f"{str(folder)!r} holds no {SINGLE} or {INDEX}: weights can be streamed from safetensors only")
    return tensors_of(files)


def tensors_of(files: Iterable[Path]) -> dict[str, Stored]:
    """Find every tensor of some safetensors files; of tensors of one name the last file's, as transformers does it.

    Raises:
        ModelError: one is missing, damaged, or cut short.
    """
    found: dict[str, Stored] = {}
    for path in files:
        found |= _header(path)
    return found


def _header(path: Path) -> dict[str, Stored]:
    """The tensors of one file.

    Raises:
        ModelError: it cannot be read, or is not what the format says.
    """
    refuse_pointers(path)
    with guarded(f"cannot read {str(path)!r}", path, advice="get it again"), path.open("rb") as file:
        status = os.fstat(file.fileno())
        length = int.from_bytes(file.read(8), "little")
        if status.st_size < 8 or length > min(status.st_size - 8, _MOST_HEADER):
            raise ModelError(f"{str(path)!r} is cut short or no safetensors file: get it again")
        text = file.read(length)
    with guarded(f"{str(path)!r} is no safetensors file", path, advice="get it again"):
        header = json.loads(text)
    if not isinstance(header, dict):
        raise ModelError(f"{str(path)!r} is no safetensors file: its header is no JSON object; get it again")
    found: dict[str, Stored] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            found[name] = _entry(path, name, entry, 8 + length, status.st_mtime_ns)
    _check_places(path, found, 8 + length, status.st_size)
    return found


def _entry(path: Path, name: str, entry: object, start: int, modified: int) -> Stored:
    """What the header says of one tensor.

    Raises:
        ModelError: no type, shape and place that fit each other.
    """
    if not isinstance(entry, dict):
        raise ModelError(f"{str(path)!r} is no safetensors file: {name} is {entry!r:.60}; get it again")
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ModelError(f"{str(path)!r} holds {name} in the type {kind!r:.60}, which this version does not know")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ModelError(
            f"{str(path)!r} is damaged: {name} has the shape {shape!r:.60} and lies at {offsets!r:.60}; get it again"
        )
    stored = Stored(path, start + offsets[0], offsets[1] - offsets[0], _TYPES[kind], tuple(shape), modified)
    if stored.nbytes != math.prod(stored.shape) * stored.dtype.itemsize:
        raise ModelError(f"{str(path)!r} is damaged: {name} has not the size of its shape; get it again")
    return stored


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of whole numbers from 0 on."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(path: Path, found: Mapping[str, Stored], start: int, size: int) -> None:
    """Make sure that the tensors lie end to end from the header to the end of the file, as the format has it.

    Raises:
        ModelError: the file is cut short, or two tensors share bytes, or some bytes are no tensor's.
    """
    at = start
    for name, stored in sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if stored.offset != at:
            wrong = "overlaps another tensor" if stored.offset < at else "does not follow the tensor before it"
            raise ModelError(f"{str(path)!r} is damaged: {name} {wrong}; get it again")
        at += stored.nbytes
    if at > size:
        raise ModelError(f"{str(path)!r} is cut short: {at - size} bytes are missing; get it again")
    if at < size:
        raise ModelError(
            f"{str(path)!r} is damaged: {size - at} bytes behind its tensors are no tensor's; get it again"
        )


def read_into(buffer: torch.Tensor, stored: Stored) -> torch.Tensor:
    """Read a tensor into a uint8 buffer of its size, on the CPU, and return it, a view of the buffer.

    Raises:
        OSError: it cannot be read, or not in full, or the file is no longer the one that was opened.
    """
    view: memoryview = buffer.numpy().data
    with stored.path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_mtime_ns != stored.modified:
            raise OSError("it was written to since it was opened")
        done = 0
        while done < stored.nbytes:
            count = os.preadv(file.fileno(), [view[done:]], stored.offset + done)
            if count == 0:
                raise OSError(f"{stored.nbytes - done} bytes are missing at {stored.offset + done}")
            done += count
    return buffer.view(stored.dtype).view(stored.shape)


def read(stored: Stored) -> torch.Tensor:
    """Read a tensor into memory of its own.

    Raises:
        OSError: see `read_into`.
    """
    return read_into(torch.empty(stored.nbytes, dtype=torch.uint8), stored)
