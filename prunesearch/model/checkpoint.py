"""Safetensors checkpoints, read tensor by tensor without mapping or loading a file.

The format: 8 bytes, little-endian, give the length of a JSON header that names each tensor's type, shape and place
(https://github.com/huggingface/safetensors#format). The `safetensors` package maps whole files, which a hard memory
limit counts and which tells neither what was read nor when.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from prunesearch.errors import ModelError, one_line

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
    """A tensor that is not in the file where the index says it is; None where all are, or there is no index."""
    if not (folder / INDEX).is_file():
        return None
    weight_map, stored = json.loads((folder / INDEX).read_text())["weight_map"], tensors_in(folder)
    wrong = (n for n in {*weight_map, *stored} if n not in stored or weight_map.get(n) != stored[n].path.name)
    return min(wrong, default=None)


def tensors_in(folder: Path) -> dict[str, Stored]:
    """Find every tensor of a checkpoint.

    Raises:
        ModelError: no safetensors, damaged, or cut short.
    """
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise ModelError(f"{str(folder / INDEX)!r} is damaged: {one_line(error)}; get it again") from None
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        raise ModelError(f"{str(folder)!r} holds no {SINGLE} or {INDEX}: weights can be streamed from safetensors only")
    found: dict[str, Stored] = {}
    for name in names:
        found |= _header(folder / name)
    return found


def _header(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            if length > status.st_size:
                raise ModelError(f"{str(path)!r} is cut short or no safetensors file: get it again")
            header = json.loads(file.read(length))
        found = {
            name: Stored(
                path,
                8 + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
                _TYPES[entry["dtype"]],
                tuple(entry["shape"]),
                status.st_mtime_ns,
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        wrong = [n for n, s in found.items() if s.nbytes != math.prod(s.shape) * s.dtype.itemsize]
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}; get it again") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelError(f"{str(path)!r} is no safetensors file: {one_line(error)}; get it again") from None
    if wrong:
        raise ModelError(f"{str(path)!r} is damaged: {wrong[0]} has not the size of its shape; get it again")
    end = max((s.offset + s.nbytes for s in found.values()), default=0)
    if end > status.st_size:
        raise ModelError(f"{str(path)!r} is cut short: {end - status.st_size} bytes are missing; get it again")
    return found


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
