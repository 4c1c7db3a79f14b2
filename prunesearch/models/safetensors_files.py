"""Reader of safetensors checkpoints, which reads single tensors without mapping or loading a file.

In this format, 8 little-endian bytes give the length of a JSON header. The header names the type,
shape and place of each tensor (https://github.com/huggingface/safetensors#format). The
`safetensors` package maps whole files. Mapped files count towards a hard memory limit, and it is
not visible what is read and when.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from prunesearch.errors import ModelError
from prunesearch.models.guard import guarded, refuse_pointers
from prunesearch.models.weight_files import INDEX, SINGLE, weight_files, weight_map_of
from prunesearch.units import noun_for

_TYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
TYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in _TYPES.items()}
"""The format's name of each dtype."""
_MOST_HEADER = 100_000_000
"""Bytes of the longest header that the `safetensors` package accepts."""


@dataclass(frozen=True)
class Stored:
    """The place of a tensor in a file.

    Attributes:
        path: path of the file.
        offset: offset of the tensor's first byte in the file.
        nbytes: bytes of the tensor.
        dtype: dtype of the tensor.
        shape: shape of the tensor.
        modified: time of the file's last change in nanoseconds. The file must not change while it
            is read.
    """

    path: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    modified: int


def misplaced(folder: Path) -> str | None:
    """Find a tensor that is not in the file that the index names.

    Returns:
        The name of the first such tensor. None if there is none, or if transformers reads no index.
    """
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return None
    weight_map, stored = weight_map_of(folder / INDEX), tensors_in(folder)
    for name in sorted({*weight_map, *stored}):
        if name not in stored or weight_map.get(name) != _said(folder, stored[name]):
            return name
    return None


def _said(folder: Path, stored: Stored) -> str:
    """Return the file of a tensor as an index names it."""
    return stored.path.relative_to(folder).as_posix()


def tensors_in(folder: Path) -> dict[str, Stored]:
    """Find every tensor of a safetensors checkpoint.

    Raises:
        ModelError: the checkpoint has no safetensors files, or one of them is missing, damaged or
            cut short.
    """
    files = weight_files(folder)
    if not files or any(path.suffix != ".safetensors" for path in files):
        raise ModelError(
            f"{str(folder)!r} holds no {SINGLE} or {INDEX}: weights can be streamed from "
            f"safetensors only"
        )
    return tensors_of(files)


def tensors_of(files: Iterable[Path]) -> dict[str, Stored]:
    """Find every tensor of some safetensors files.

    If two files have a tensor of the same name, the last file counts, as in transformers.

    Raises:
        ModelError: a file is missing, damaged or cut short.
    """
    found: dict[str, Stored] = {}
    for path in files:
        found |= _header(path)
    return found


def _header(path: Path) -> dict[str, Stored]:
    """Find the tensors of one file.

    Raises:
        ModelError: the file cannot be read, or it does not follow the format.
    """
    # Read the header, whose length cannot exceed the file's.
    refuse_pointers(path)
    with (
        guarded(f"cannot read {str(path)!r}", path, advice="get it again"),
        path.open("rb") as file,
    ):
        status = os.fstat(file.fileno())
        length = int.from_bytes(file.read(8), "little")
        if status.st_size < 8 or length > min(status.st_size - 8, _MOST_HEADER):
            raise ModelError(f"{str(path)!r} is cut short or not a safetensors file: get it again")
        text = file.read(length)
    with guarded(f"{str(path)!r} is not a safetensors file", path, advice="get it again"):
        header = json.loads(text)
    if not isinstance(header, dict):
        raise ModelError(
            f"{str(path)!r} is not a safetensors file: its header is not a JSON object; get it "
            f"again"
        )
    # Each entry of the header must describe a tensor, and together they must fill the file.
    found: dict[str, Stored] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            found[name] = _entry(path, name, entry, 8 + length, status.st_mtime_ns)
    _check_places(path, found, 8 + length, status.st_size)
    return found


def _entry(path: Path, name: str, entry: object, start: int, modified: int) -> Stored:
    """Read the description of one tensor in a header.

    Args:
        path: path of the file.
        name: name of the tensor.
        entry: description of the tensor, a JSON value.
        start: offset of the first byte after the header.
        modified: time of the file's last change in nanoseconds.

    Raises:
        ModelError: the type, the shape or the place is missing, or they contradict each other.
    """
    if not isinstance(entry, dict):
        raise ModelError(
            f"{str(path)!r} is not a safetensors file: {name} is {entry!r:.60}; get it again"
        )
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ModelError(
            f"{str(path)!r} holds {name} in the type {kind!r:.60}, which this version does not know"
        )
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ModelError(
            f"{str(path)!r} is damaged: {name} has the shape {shape!r:.60} and lies at "
            f"{offsets!r:.60}; get it again"
        )
    stored = Stored(
        path, start + offsets[0], offsets[1] - offsets[0], _TYPES[kind], tuple(shape), modified
    )
    if stored.nbytes != math.prod(stored.shape) * stored.dtype.itemsize:
        raise ModelError(
            f"{str(path)!r} is damaged: {name} has not the size of its shape; get it again"
        )
    return stored


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    """Return whether a JSON value is a list of integers that are 0 or more."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(path: Path, found: Mapping[str, Stored], start: int, size: int) -> None:
    """Check that the tensors fill the file from the header to its end without gaps, as the format
    demands.

    Args:
        path: path of the file.
        found: tensors of the file by name.
        start: offset of the first byte after the header.
        size: bytes of the file.

    Raises:
        ModelError: the file is cut short, two tensors share bytes, or some bytes belong to no
            tensor.
    """
    at = start
    for name, stored in sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if stored.offset != at:
            wrong = "does not follow the tensor before it"
            if stored.offset < at:
                wrong = "overlaps another tensor"
            raise ModelError(f"{str(path)!r} is damaged: {name} {wrong}; get it again")
        at += stored.nbytes
    if at > size:
        missing = f"{at - size} {noun_for(at - size, 'byte is', 'bytes are')} missing"
        raise ModelError(f"{str(path)!r} is cut short: {missing}; get it again")
    if at < size:
        after = noun_for(
            size - at, "byte after its tensors belongs", "bytes after its tensors belong"
        )
        raise ModelError(
            f"{str(path)!r} is damaged: {size - at} {after} to none of them; get it again"
        )


def read_into(buffer: torch.Tensor, stored: Stored) -> torch.Tensor:
    """Read a tensor into a buffer.

    Args:
        buffer: uint8 tensor on the CPU, with as many bytes as the stored tensor.
        stored: tensor to read.

    Returns:
        The tensor, which is a view of the buffer.

    Raises:
        OSError: the tensor cannot be read in full, or the file has changed since it was opened.
    """
    view: memoryview = buffer.numpy().data
    with stored.path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_mtime_ns != stored.modified:
            raise OSError("it was written to since it was opened")
        # One call may return fewer bytes than it was asked for.
        done = 0
        while done < stored.nbytes:
            count = os.preadv(file.fileno(), [view[done:]], stored.offset + done)
            if count == 0:
                missing = stored.nbytes - done
                are = noun_for(missing, "byte is", "bytes are")
                raise OSError(f"{missing} {are} missing at {stored.offset + done}")
            done += count
    return buffer.view(stored.dtype).view(stored.shape)


def read(stored: Stored) -> torch.Tensor:
    """Read a tensor into new memory.

    Raises:
        OSError: as in `read_into`.
    """
    return read_into(torch.empty(stored.nbytes, dtype=torch.uint8), stored)
