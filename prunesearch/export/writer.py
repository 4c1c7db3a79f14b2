"""Writer of safetensors shards.

Stored tensors are copied piece by piece, so memory use does not grow with the model. One thread
reads and digests, and another thread writes. They share a few buffers.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import xxhash
from safetensors.torch import save_file
from transformers import PreTrainedModel

from prunesearch.export.layout import TensorEntry
from prunesearch.export.pieces import PIECE, read_all, sliced, whole
from prunesearch.models.safetensors_files import (
    TYPE_NAMES,
    Stored,
    read,
)
from prunesearch.models.weight_files import INDEX, SINGLE
from prunesearch.models.weight_map import parameters_of
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject

MAX_SHARD = 5 * 10**9
"""Bytes of the largest shard. This was long the default of `save_pretrained`.

Some stores have trouble with larger files.
"""
_WAITING = 3
"""Pieces that are in memory at once."""


@dataclass(frozen=True)
class Written:
    """The weight files that were written.

    Attributes:
        files: names of the shards.
        nbytes: bytes of all tensors.
        digests: xxh3-128 of the bytes of each tensor, as they were read.
    """

    files: tuple[str, ...]
    nbytes: int
    digests: dict[str, str]


def write_shards(
    entries: Sequence[TensorEntry], folder: Path, max_shard: int = MAX_SHARD
) -> Written:
    """Write tensors as one or more shards of about equal size, and their index.

    Args:
        entries: tensors to write, in order.
        folder: folder to write into.
        max_shard: bytes of the largest shard.

    Raises:
        OSError: a source cannot be read, a source has changed since it was opened, or the disk is
            full.
    """
    # Divide the tensors among the shards.
    shards = _balance(entries, max_shard)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    names = [_shard_name(i, len(shards)) for i in range(len(shards))]
    # Write the shards one after the other.
    with ThreadPoolExecutor(1, thread_name_prefix="prunesearch-write") as writer:
        for name, shard in zip(names, shards, strict=True):
            digests |= _write_shard(shard, folder / name, writer)
            for entry in shard:
                weight_map[entry.name] = name
    # A single file needs no index.
    total = sum(entry.nbytes for entry in entries)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return Written(tuple(names), total, digests)


def write_cast(model: PreTrainedModel, stored: Mapping[str, Stored], folder: Path) -> None:
    """Write a dense checkpoint in the dtypes that a model computes in, under the stored names.

    Tensors that the model does not read, such as those of a vision tower, keep their dtype.

    Args:
        model: model that the checkpoint is of; its weights may be on the meta device.
        stored: tensors of the checkpoint by name.
        folder: folder to create.

    Raises:
        OSError: a source cannot be read, or the disk is full.
    """
    folder.mkdir()
    state = model.state_dict()
    makes = parameters_of(model, stored, state)
    weight_map: dict[str, str] = {}
    # Each tensor has a file of its own, so that one tensor is in memory at a time.
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
    """Return the xxh3-128 digest of a stored tensor's bytes.

    Raises:
        OSError: the tensor cannot be read.
    """
    hashed = xxhash.xxh3_128()
    with stored.path.open("rb", buffering=0) as file:
        for piece in whole(file.fileno(), stored, bytearray(PIECE)):
            hashed.update(piece)
    return hashed.hexdigest()


def _balance(entries: Sequence[TensorEntry], max_shard: int) -> list[list[TensorEntry]]:
    """Divide the tensors into as few shards as the limit allows, of about equal size.

    The order of the tensors stays the same.
    """
    # The number of shards gives the size that each should have.
    total = sum(entry.nbytes for entry in entries)
    goal = total / max(1, math.ceil(total / max_shard))
    shards: list[list[TensorEntry]] = [[]]
    size = done = 0
    for entry in entries:
        # A tensor goes to the next shard if it does not fit, or if more than half of it lies beyond
        # the goal.
        too_large = size + entry.nbytes > max_shard
        beyond_goal = done + entry.nbytes / 2 > goal * len(shards)
        if size and (too_large or beyond_goal):
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
        done += entry.nbytes
    return shards


def _shard_name(number: int, of: int) -> str:
    """Return the file name of a shard, as `save_pretrained` names it."""
    return SINGLE if of == 1 else f"model-{number + 1:05d}-of-{of:05d}.safetensors"


def _write_shard(
    shard: Sequence[TensorEntry], path: Path, writer: ThreadPoolExecutor
) -> dict[str, str]:
    """Write one file. A piece is read and digested while the previous piece is written.

    Returns:
        The digest of each tensor.
    """
    digests: dict[str, str] = {}
    spare = [bytearray(PIECE) for _ in range(_WAITING)]
    # Pieces that the other thread has not written yet, each with the buffer that it lies in.
    waiting: deque[tuple[Future[None], bytearray | None]] = deque()
    source: FileIO | None = None
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(_header(shard)))
        try:
            for entry in shard:
                stopping.check()
                # Neighbouring tensors mostly come from the same file.
                if source is None or source.name != str(entry.source.path):
                    source = _reopened(source, entry.source)
                    assert source is not None, "a stored tensor is given"
                hashed = xxhash.xxh3_128()
                for buffer, piece in _pieces(source.fileno(), entry, spare, waiting):
                    hashed.update(piece)
                    waiting.append((writer.submit(_write_all, file.fileno(), piece), buffer))
                digests[entry.name] = hashed.hexdigest()
            # The file must be complete before it is closed.
            while waiting:
                waiting.popleft()[0].result()
        finally:
            _reopened(source, None)
    return digests


def _reopened(file: FileIO | None, stored: Stored | None) -> FileIO | None:
    """Close a file, and open the file of a stored tensor.

    Args:
        file: open file; None for the first time.
        stored: stored tensor; None to open no other file.

    Raises:
        OSError: the file cannot be read, or it has changed since the tensor was found.
    """
    if file is not None:
        file.close()
    if stored is None:
        return None
    opened = stored.path.open("rb", buffering=0)
    if os.fstat(opened.fileno()).st_mtime_ns != stored.modified:
        opened.close()
        raise OSError(f"{stored.path.name} was written to since it was opened")
    # This makes the system read ahead twice as far.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return opened


def _header(shard: Sequence[TensorEntry]) -> bytes:
    """Return the header of a safetensors file: its length, then JSON that describes each tensor."""
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in shard:
        header[entry.name] = {
            "dtype": TYPE_NAMES[entry.source.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces pad the header, so that the data begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(
    file: int,
    entry: TensorEntry,
    spare: list[bytearray],
    waiting: deque[tuple[Future[None], bytearray | None]],
) -> Iterator[tuple[bytearray | None, memoryview]]:
    """Yield the bytes of a new tensor piece by piece, each with the buffer that it lies in.

    A piece of a sliced tensor has memory of its own, and no buffer.

    Args:
        file: descriptor of the source's file.
        entry: tensor to read.
        spare: buffers that are free.
        waiting: pieces that are being written. Their buffers are free once they are written.
    """

    def free() -> bytearray:
        """Return a free buffer. This may wait for the oldest piece to be written."""
        while not spare:
            _wait_for_oldest(spare, waiting)
        return spare.pop()

    if entry.zeroed:
        for start in range(0, entry.nbytes, PIECE):
            buffer = free()
            buffer[:] = bytes(PIECE)
            yield buffer, memoryview(buffer)[: min(PIECE, entry.nbytes - start)]
    elif entry.take is None:
        for start in range(0, entry.nbytes, PIECE):
            buffer = free()
            piece = memoryview(buffer)[: min(PIECE, entry.nbytes - start)]
            read_all(file, piece, entry.source.offset + start)
            yield buffer, piece
    else:
        for piece in sliced(file, entry):
            while len(waiting) > _WAITING:
                _wait_for_oldest(spare, waiting)
            yield None, piece


def _wait_for_oldest(
    spare: list[bytearray], waiting: deque[tuple[Future[None], bytearray | None]]
) -> None:
    """Wait until the oldest piece is written. Its buffer is free then, if it has one."""
    done, buffer = waiting.popleft()
    done.result()
    if buffer is not None:
        spare.append(buffer)


def _write_all(file: int, piece: memoryview) -> None:
    """Write a whole piece. One call may write fewer bytes than it was given."""
    done = 0
    while done < len(piece):
        done += os.write(file, piece[done:])
