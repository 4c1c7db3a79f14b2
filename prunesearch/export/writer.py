"""Writing safetensors shards from stored tensors, piece by piece: memory does not grow with the model.

Reading and digesting run in one thread, writing in another, over a few buffers.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors.torch import save_file
from transformers import PreTrainedModel

from prunesearch import stopping
from prunesearch.export.layout import Entry
from prunesearch.model.checkpoint import INDEX, SINGLE, TYPE_NAMES, Stored, read
from prunesearch.model.sources import parameters_of

MAX_SHARD = 5 * 10**9
"""Bytes of the largest shard, as `save_pretrained` long had it; larger files trouble some stores."""
_PIECE = 16 * 2**20


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: names of the shards.
        digests: xxh3-128 of each tensor's bytes, as they were read.
    """

    files: tuple[str, ...]
    nbytes: int
    digests: dict[str, str]


def write_shards(entries: Sequence[Entry], folder: Path, max_shard: int = MAX_SHARD) -> Written:
    """Write tensors as one or more shards of about equal size, and their index.

    Raises:
        OSError: a source cannot be read or changed since it was looked at, or the disk is full.
    """
    shards = _balance(entries, max_shard)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    names = [_shard_name(i, len(shards)) for i in range(len(shards))]
    with ThreadPoolExecutor(1, thread_name_prefix="prunesearch-write") as writer:
        for name, shard in zip(names, shards, strict=True):
            digests |= _write_shard(shard, folder / name, writer)
            weight_map |= {entry.name: name for entry in shard}
    total = sum(entry.nbytes for entry in entries)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return Written(tuple(names), total, digests)


def write_cast(model: PreTrainedModel, stored: Mapping[str, Stored], folder: Path) -> None:
    """Write a dense checkpoint in the types that a model computes in, tensor by tensor, under the stored names.

    What the model does not read, such as the vision tower beside it, keeps its type.

    Args:
        model: its weights may be on the meta device.

    Raises:
        OSError: a source cannot be read, or the disk is full.
    """
    folder.mkdir()
    state = model.state_dict()
    makes = parameters_of(model, stored, state)
    weight_map: dict[str, str] = {}
    for number, (name, place) in enumerate(sorted(stored.items())):
        stopping.check()
        tensor = read(place)
        if name in makes and tensor.is_floating_point():
            tensor = tensor.to(state[makes[name][0]].dtype)
        weight_map[name] = _shard_name(number, max(2, len(stored)))
        save_file({name: tensor}, folder / weight_map[name])
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def digest(stored: Stored) -> str:
    """xxh3-128 of a stored tensor's bytes.

    Raises:
        OSError: it cannot be read.
    """
    hashed = xxhash.xxh3_128()
    with stored.path.open("rb", buffering=0) as file:
        for piece in _whole(file.fileno(), stored, bytearray(_PIECE)):
            hashed.update(piece)
    return hashed.hexdigest()


def _balance(entries: Sequence[Entry], max_shard: int) -> list[list[Entry]]:
    """Cut the row of tensors into as few shards as the limit allows, of about equal size."""
    total = sum(entry.nbytes for entry in entries)
    goal = total / max(1, math.ceil(total / max_shard))
    shards: list[list[Entry]] = [[]]
    size = done = 0
    for entry in entries:
        full = size and (size + entry.nbytes > max_shard or done + entry.nbytes / 2 > goal * len(shards))
        if full:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
        done += entry.nbytes
    return shards


def _shard_name(number: int, of: int) -> str:
    return SINGLE if of == 1 else f"model-{number + 1:05d}-of-{of:05d}.safetensors"


def _write_shard(shard: Sequence[Entry], path: Path, writer: ThreadPoolExecutor) -> dict[str, str]:
    """Write one file; a piece is read and digested while the one before it is written."""
    digests: dict[str, str] = {}
    spare = [bytearray(_PIECE) for _ in range(3)]
    waiting: deque[tuple[Future[None], bytearray]] = deque()
    source: Any = None
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(_header(shard)))
        try:
            for entry in shard:
                stopping.check()
                if source is None or source.name != str(entry.source.path):
                    source = _reopened(source, entry.source)
                hashed = xxhash.xxh3_128()
                for buffer, piece in _pieces(source.fileno(), entry, spare, waiting):
                    hashed.update(piece)
                    waiting.append((writer.submit(_write_all, file.fileno(), piece), buffer))
                digests[entry.name] = hashed.hexdigest()
            while waiting:
                waiting.popleft()[0].result()
        finally:
            _reopened(source, None)
    return digests


def _reopened(file: Any, stored: Stored | None) -> Any:  # noqa: ANN401
    """Close a file and open the next one, which must still be the one that was looked at."""
    if file is not None:
        file.close()
    if stored is None:
        return None
    opened = stored.path.open("rb", buffering=0)
    if os.fstat(opened.fileno()).st_mtime_ns != stored.modified:
        opened.close()
        raise OSError(f"{stored.path.name} was written to since it was opened")
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # reads ahead twice as far
    return opened


def _header(shard: Sequence[Entry]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in shard:
        header[entry.name] = {
            "dtype": TYPE_NAMES[entry.source.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def _pieces(
    file: int, entry: Entry, spare: list[bytearray], waiting: deque[tuple[Future[None], bytearray]]
) -> Iterator[tuple[bytearray, memoryview]]:
    """A tensor's bytes as written, each piece in a buffer that the writer has done with."""

    def free() -> bytearray:
        if spare:
            return spare.pop()
        done, buffer = waiting.popleft()
        done.result()
        return buffer

    if entry.zeroed:
        for start in range(0, entry.nbytes, _PIECE):
            buffer = free()
            buffer[:] = bytes(_PIECE)
            yield buffer, memoryview(buffer)[: min(_PIECE, entry.nbytes - start)]
    elif entry.take is None:
        for start in range(0, entry.nbytes, _PIECE):
            buffer = free()
            piece = memoryview(buffer)[: min(_PIECE, entry.nbytes - start)]
            _read_all(file, piece, entry.source.offset + start)
            yield buffer, piece
    else:
        yield from ((bytearray(), piece) for piece in _sliced(file, entry))


def _sliced(file: int, entry: Entry) -> Iterator[memoryview]:
    """The wanted parts of a tensor, some rows of the axes before the sliced one at a time."""
    assert entry.take is not None
    shape, take = entry.source.shape, entry.take
    rows = math.prod(shape[: take.axis])
    row_bytes = entry.source.nbytes // rows
    at_a_time = max(1, _PIECE // row_bytes)
    for start in range(0, rows, at_a_time):
        count = min(at_a_time, rows - start)
        raw = bytearray(count * row_bytes)
        _read_all(file, memoryview(raw), entry.source.offset + start * row_bytes)
        parts = np.frombuffer(raw, np.uint8).reshape(count, take.n_parts, row_bytes // take.n_parts)
        yield memoryview(parts[:, list(take.kept)].tobytes())


def _whole(file: int, stored: Stored, buffer: bytearray) -> Iterator[memoryview]:
    for start in range(0, stored.nbytes, len(buffer)):
        piece = memoryview(buffer)[: min(len(buffer), stored.nbytes - start)]
        _read_all(file, piece, stored.offset + start)
        yield piece


def _read_all(file: int, piece: memoryview, offset: int) -> None:
    done = 0
    while done < len(piece):
        count = os.preadv(file, [piece[done:]], offset + done)
        if count == 0:
            raise OSError(f"{len(piece) - done} bytes are missing at {offset + done}")
        done += count


def _write_all(file: int, piece: memoryview) -> None:
    done = 0
    while done < len(piece):
        done += os.write(file, piece[done:])
