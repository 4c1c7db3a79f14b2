"""Reading of stored tensors in pieces: whole ones, and the parts of them that are kept."""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from prunesearch.export.layout import Slice, TensorEntry
from prunesearch.models.safetensors_files import Stored
from prunesearch.units import noun_for

PIECE = 16 * 2**20
"""Bytes of a piece that is read and written at once."""
_NUMBERS: dict[int, np.dtype[Any]] = {
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
"""Types of numbers by their bytes."""


def sliced(file: int, entry: TensorEntry) -> Iterator[memoryview]:
    """Yield the kept parts of a tensor, a few at a time."""
    assert entry.take is not None
    # A row is everything from the sliced axis on. The axes before it only repeat rows. A small
    # tensor is read as a whole, which is faster than part by part.
    rows = math.prod(entry.source.shape[: entry.take.axis])
    if rows == 1 and entry.source.nbytes > PIECE:
        yield from _parts_of_one_row(file, entry.source, entry.take)
    else:
        yield from _parts_of_rows(file, entry.source, entry.take)


def _parts_of_one_row(file: int, source: Stored, take: Slice) -> Iterator[memoryview]:
    """Yield the kept parts of a tensor that consists of them. Each is read on its own."""
    part_bytes = source.nbytes // take.n_parts
    kept, parts = set(take.kept), take.kept
    if take.filled:
        parts = tuple(range(take.n_parts))
    at_a_time = max(1, PIECE // max(1, part_bytes))
    for start in range(0, len(parts), at_a_time):
        some = parts[start : start + at_a_time]
        raw = memoryview(bytearray(len(some) * part_bytes))
        for place, part in enumerate(some):
            # What is not read stays zero.
            if part in kept:
                piece = raw[place * part_bytes : (place + 1) * part_bytes]
                read_all(file, piece, source.offset + part * part_bytes)
        yield raw


def _parts_of_rows(file: int, source: Stored, take: Slice) -> Iterator[memoryview]:
    """Yield the kept parts of each row of a tensor, a few rows at a time."""
    rows = math.prod(source.shape[: take.axis])
    row_bytes = source.nbytes // rows
    part_bytes = row_bytes // take.n_parts
    kept = np.array(take.kept, dtype=np.intp)
    # A part of the size of a number is moved as one, which is several times faster than bytes.
    kind: np.dtype[Any] = _NUMBERS.get(part_bytes, np.dtype(np.uint8))
    at_a_time = max(1, PIECE // row_bytes)
    for start in range(0, rows, at_a_time):
        count = min(at_a_time, rows - start)
        raw = bytearray(count * row_bytes)
        read_all(file, memoryview(raw), source.offset + start * row_bytes)
        parts = np.frombuffer(raw, kind).reshape(count, take.n_parts, -1)
        if take.filled:
            filled = np.zeros_like(parts)
            filled[:, kept] = parts[:, kept]
            yield memoryview(filled.tobytes())
        else:
            yield memoryview(parts[:, kept].tobytes())


def whole(file: int, stored: Stored, buffer: bytearray) -> Iterator[memoryview]:
    """Yield the bytes of a stored tensor piece by piece, each in the same buffer."""
    for start in range(0, stored.nbytes, len(buffer)):
        piece = memoryview(buffer)[: min(len(buffer), stored.nbytes - start)]
        read_all(file, piece, stored.offset + start)
        yield piece


def read_all(file: int, piece: memoryview, offset: int) -> None:
    """Fill a piece from a file. One call may return fewer bytes than it was asked for."""
    done = 0
    while done < len(piece):
        count = os.preadv(file, [piece[done:]], offset + done)
        if count == 0:
            missing = len(piece) - done
            are = noun_for(missing, "byte is", "bytes are")
            raise OSError(f"{missing} {are} missing at {offset + done}")
        done += count
