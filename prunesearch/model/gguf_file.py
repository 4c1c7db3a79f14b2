"""Opening a GGUF file, after its header was checked against the file's size.

`gguf.GGUFReader` trusts every number of the header. A length past the file's end, or lists in lists, makes it go on
until memory is full. So the header is walked once before, and no number in it is followed beyond the file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import gguf

from prunesearch.errors import ModelError
from prunesearch.model.guard import guarded, refuse_pointers

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by number of its type."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_ALIGNMENT_KEY = b"general.alignment"
_VERSIONS = (2, 3)
_NO_VERSION = 2**16  # from here on, what stands in its place is something else
_MOST_DIMENSIONS = 4  # as ggml has it
_MOST_ENTRIES = 2**24
"""Entries of all lists together. The reader makes objects of them; the largest vocabularies have a million words."""
_LEAST_ENTRY = 13  # bytes of the shortest setting: a name's length, a type, one byte
_LEAST_TENSOR = 24  # bytes of the shortest description of a tensor
_NOT_WHOLE = "cannot read {path!r} as GGUF: it is not a whole GGUF file ({reason}); download it again"


def open_gguf(path: Path) -> Any:  # noqa: ANN401 (gguf.GGUFReader, whose package has no types)
    """Open a GGUF file.

    Returns:
        Its `gguf.GGUFReader`.

    Raises:
        ModelError: missing, not a GGUF, damaged, or shorter than its own header says.
    """
    if not path.is_file():
        raise ModelError(f"no model file {str(path)!r}: check the path")
    refuse_pointers(path)
    with guarded(f"cannot read {str(path)!r}", path), path.open("rb") as file:
        size = path.stat().st_size
        if size < 8:
            raise ModelError(_NOT_WHOLE.format(path=str(path), reason=f"it has {size} bytes"))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                _Header(content, path).check()
            except _UnsoundError as error:
                raise ModelError(_NOT_WHOLE.format(path=str(path), reason=error)) from None
    with guarded(f"cannot read {str(path)!r} as GGUF", path, advice="download it again"):
        reader = gguf.GGUFReader(path)
    if not reader.tensors:
        raise ModelError(_NOT_WHOLE.format(path=str(path), reason="it holds no tensors"))
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() not in (0, 1):
        raise ModelError(
            f"{str(path)!r} is one of {parts.contents()} parts of a GGUF: put them together with llama-gguf-split "
            "--merge FIRST WHOLE, and give that"
        )
    return reader


class _UnsoundError(Exception):
    """The header cannot be right; says why."""


class _Header:
    """A walk over the header of a GGUF file that never leaves the file."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self._content, self._size, self._path = content, len(content), path
        self._at = 8  # behind magic and version
        self._order = "<"
        self._alignment = 32
        self._entries = 0

    def check(self) -> None:
        """Walk all of it.

        Raises:
            ModelError: not a GGUF of a known version, or cut short.
            _UnsoundError: a number in it leads out of the file, or to more than can be meant.
        """
        if self._content[:4] != b"GGUF":
            raise _UnsoundError("it does not begin as one")
        version = int(struct.unpack("<I", self._content[4:8])[0])
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            self._order = ">"
            version = int(struct.unpack(">I", self._content[4:8])[0])
        if not 0 < version < _NO_VERSION:
            raise _UnsoundError(f"its version {version} is none")
        if version not in _VERSIONS:
            raise ModelError(
                f"{str(self._path)!r} is a GGUF of version {version}, which cannot be read: convert it again"
            )
        tensors, settings = self._number("Q"), self._number("Q")
        self._expect(settings, _LEAST_ENTRY, "settings")
        for _ in range(settings):
            self._setting()
        self._expect(tensors, _LEAST_TENSOR, "tensors")
        ends = [self._tensor() for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        if (missing := start + max(ends, default=0) - self._size) > 0 and ends:
            raise ModelError(f"{str(self._path)!r} is cut short: {missing} bytes are missing; download it again")

    def _setting(self) -> None:
        name = self._string()
        kind = self._number("I")
        if name == _ALIGNMENT_KEY:
            at = self._at
            alignment = self._number("I") if kind == _UINT32 else 0
            if alignment < 1 or alignment & (alignment - 1):
                raise _UnsoundError(f"its alignment {alignment} is no power of two")
            self._at, self._alignment = at, alignment
        self._value(kind)

    def _value(self, kind: int) -> None:
        """Step over a setting's value."""
        if kind == _STRING:
            self._string()
        elif kind != _ARRAY:
            self._skip(self._width(kind))
        else:
            kind, count = self._number("I"), self._number("Q")
            self._entries += count
            if kind == _ARRAY:
                raise _UnsoundError("it has lists in lists, which no program writes")
            self._expect(count, 8 if kind == _STRING else self._width(kind), "entries of a list")
            if self._entries > _MOST_ENTRIES:
                raise _UnsoundError(f"its lists have {self._entries} entries, more than any model needs")
            if kind != _STRING:
                self._skip(count * self._width(kind))
                return
            for _ in range(count):
                self._string()

    def _tensor(self) -> int:
        """Step over a tensor's description; returns where it ends, counted from the first tensor."""
        name = self._string().decode("utf-8", "replace")
        dimensions = self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _UnsoundError(f"{name} has {dimensions} dimensions")
        count = math.prod(self._number("Q") for _ in range(dimensions))
        kind, offset = self._number("I"), self._number("Q")
        try:
            block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ModelError(
                f"{str(self._path)!r} holds {name} in the type {kind}, which this version of gguf does not know: "
                "convert it again, or get a newer gguf"
            ) from None
        return int(offset) + -(-count // int(block)) * int(width)

    def _width(self, kind: int) -> int:
        if kind not in _SCALARS:
            raise _UnsoundError(f"it has a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _expect(self, count: int, width: int, what: str) -> None:
        """Refuse a count of things that would not fit even if each were as short as can be."""
        if count * width > self._size - self._at:
            raise _UnsoundError(f"it is said to have {count} {what}, which are more bytes than the file has")

    def _string(self) -> bytes:
        length = self._number("Q")
        start = self._at
        self._skip(length)
        return self._content[start : self._at]

    def _number(self, kind: str) -> int:
        start = self._at
        self._skip(4 if kind == "I" else 8)
        return int(struct.unpack_from(self._order + kind, self._content, start)[0])

    def _skip(self, count: int) -> None:
        if count > self._size - self._at:
            raise _UnsoundError(f"its header needs {count - self._size + self._at} bytes more than the file has")
        self._at += count
