"""Opening of GGUF files, whose headers are first checked against the size of the file.

`gguf.GGUFReader` trusts every number in the header. A length past the end of the file, or nested
lists, makes it run until memory is full. So the header is read once before, and no number in it is
followed beyond the file. `read_header` reads nothing but the header.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import gguf

from prunesearch.compat.gguf import QuickReader
from prunesearch.errors import ModelError
from prunesearch.models.guard import guarded, refuse_pointers
from prunesearch.units import noun_for

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_UNSIGNED = (0, 2, 4, 10)
_ALIGNMENT_KEY, _PARTS_KEY = b"general.alignment", b"split.count"
_VERSIONS = (2, 3)
# From this number on, the value cannot be a version.
_NO_VERSION = 2**16
# The limit of ggml.
_MOST_DIMENSIONS = 4
_MOST_ENTRIES = 2**24
"""Largest number of entries of all lists together.

The reader makes an object of each. The largest vocabularies have a million words.
"""
# Bytes of the shortest setting: the length of its name, its type, and one byte.
_LEAST_ENTRY = 13
# Bytes of the shortest description of a tensor.
_LEAST_TENSOR = 24
_NOT_WHOLE = "cannot read {path!r} as GGUF: it is not a whole GGUF file ({reason}); get it again"


@dataclass(frozen=True)
class GGUFTensor:
    """The description of a tensor.

    Attributes:
        name: name of the tensor.
        params: number of its numbers.
        nbytes: bytes that they take as they are stored.
        kind: name of the stored type, such as ``Q4_K``.
    """

    name: str
    params: int
    nbytes: int
    kind: str


def read_header(path: Path) -> tuple[GGUFTensor, ...]:
    """Read the descriptions of the tensors of a GGUF file. Nothing but the header is read.

    Raises:
        ModelError: as in `open_gguf`.
    """
    if not path.is_file():
        raise ModelError(f"no model file {str(path)!r}: check the path")
    refuse_pointers(path)
    with guarded(f"cannot read {str(path)!r}", path), path.open("rb") as file:
        size = path.stat().st_size
        if size < 8:
            raise ModelError(_NOT_WHOLE.format(path=str(path), reason=f"it has {size} bytes"))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # The system would read much of the file ahead of a header of some megabytes.
            content.madvise(mmap.MADV_RANDOM)
            header = _Header(content, path)
            try:
                header.check()
            except _UnsoundError as error:
                raise ModelError(_NOT_WHOLE.format(path=str(path), reason=error)) from None
    if not header.tensors:
        raise ModelError(_NOT_WHOLE.format(path=str(path), reason="it holds no tensors"))
    # One of several parts is a valid file, but not a whole model.
    if header.parts not in (0, 1):
        raise ModelError(
            f"{str(path)!r} is one of {header.parts} parts of a GGUF: put them together with "
            f"llama-gguf-split "
            "--merge FIRST WHOLE, and give that"
        )
    return tuple(header.tensors)


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Open a GGUF file.

    Returns:
        The `gguf.GGUFReader` of the file.

    Raises:
        ModelError: the file is missing, not a GGUF file, damaged, or shorter than its header says.
    """
    # Check the header before the reader trusts it.
    read_header(path)
    with guarded(f"cannot read {str(path)!r} as GGUF", path, advice="get it again"):
        return QuickReader(path)


class _UnsoundError(Exception):
    """An error in the header. The message says what is wrong."""


class _Header:
    """A parser of GGUF headers that never reads beyond the file."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self._content, self._size, self._path = content, len(content), path
        # The first entry follows the magic bytes and the version.
        self._at = 8
        self._order = "<"
        self._alignment = 32
        self._entries = 0
        self._names: set[bytes] = set()
        self.tensors: list[GGUFTensor] = []
        # Number of files that the model was split into.
        self.parts = 1

    def check(self) -> None:
        """Check the whole header.

        Raises:
            ModelError: the version or a type is unknown, or the file is cut short.
            _UnsoundError: a number leads out of the file, or it is larger than any model needs.
        """
        # Check the magic bytes and the version.
        if self._content[:4] != b"GGUF":
            raise _UnsoundError("it does not begin as one")
        version = int(struct.unpack("<I", self._content[4:8])[0])
        # A file from a machine with the other byte order has the version's digits in the upper
        # half.
        if version & 0xFFFF == 0:
            self._order = ">"
            version = int(struct.unpack(">I", self._content[4:8])[0])
        if not 0 < version < _NO_VERSION:
            raise _UnsoundError(f"its version {version} is none")
        if version not in _VERSIONS:
            raise ModelError(
                f"{str(self._path)!r} is a GGUF of version {version}, which cannot be read: "
                f"convert it again"
            )
        # Step over all settings and the descriptions of all tensors.
        tensors, settings = self._number("Q"), self._number("Q")
        self._expect(settings, _LEAST_ENTRY, "settings")
        for _ in range(settings):
            self._setting()
        self._expect(tensors, _LEAST_TENSOR, "tensors")
        ends = [self._tensor() for _ in range(tensors)]
        # The data start at the next multiple of the alignment, and must not end after the file.
        start = -(-self._at // self._alignment) * self._alignment
        if (missing := start + max(ends, default=0) - self._size) > 0 and ends:
            raise ModelError(
                f"{str(self._path)!r} is cut short: {missing} "
                f"{noun_for(missing, 'byte is', 'bytes are')} missing; get it again"
            )

    def _setting(self) -> None:
        """Step over a setting. The alignment of the data and the number of parts are kept."""
        name = self._string()
        self._refuse_twice(name)
        kind = self._number("I")
        if name == _ALIGNMENT_KEY:
            at = self._at
            # A value of another type counts as wrong.
            alignment = self._number("I") if kind == _UINT32 else 0
            if alignment < 1 or alignment & (alignment - 1):
                raise _UnsoundError(f"its alignment {alignment} is not a power of two")
            self._at, self._alignment = at, alignment
        start = self._at
        self._value(kind)
        if name == _PARTS_KEY and kind in _UNSIGNED:
            self.parts = int.from_bytes(
                self._content[start : self._at], "little" if self._order == "<" else "big"
            )

    def _refuse_twice(self, name: bytes) -> None:
        """Refuse a name that occurred before, which the reader refuses too."""
        if name in self._names:
            raise _UnsoundError(f"it has {name.decode('utf-8', 'replace')} twice")
        self._names.add(name)

    def _value(self, kind: int) -> None:
        """Step over the value of a setting.

        Args:
            kind: number of the value's type.
        """
        if kind == _STRING:
            self._string()
        elif kind != _ARRAY:
            self._skip(self._width(kind))
        else:
            self._list()

    def _list(self) -> None:
        """Step over a list."""
        kind, count = self._number("I"), self._number("Q")
        self._entries += count
        if kind == _ARRAY:
            raise _UnsoundError("it has lists in lists, which no program writes")
        # A text takes at least the 8 bytes of its length.
        self._expect(count, 8 if kind == _STRING else self._width(kind), "entries of a list")
        if self._entries > _MOST_ENTRIES:
            raise _UnsoundError(
                f"its lists have {self._entries} entries, more than any model needs"
            )
        if kind != _STRING:
            self._skip(count * self._width(kind))
            return
        # A vocabulary has several hundred thousand texts, so this loop calls nothing of ours.
        length_of = struct.Struct(self._order + "Q").unpack_from
        at, last = self._at, self._size - 8
        for _ in range(count):
            if at > last:
                more = f"{at - last} {noun_for(at - last, 'byte')}"
                raise _UnsoundError(f"its header needs {more} more than the file has")
            at += 8 + length_of(self._content, at)[0]
        self._skip(at - self._at)

    def _tensor(self) -> int:
        """Read the description of a tensor.

        Returns:
            The end of the tensor's data, counted from the start of all data.
        """
        written = self._string()
        self._refuse_twice(b"tensor " + written)
        name = written.decode("utf-8", "replace")
        dimensions = self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _UnsoundError(f"{name} has {dimensions} dimensions")
        count = math.prod(self._number("Q") for _ in range(dimensions))
        kind, offset = self._number("I"), self._number("Q")
        # Quantised types store blocks of several values in a fixed number of bytes.
        try:
            block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ModelError(
                f"{str(self._path)!r} holds {name} in the type {kind}, which this version of gguf "
                f"does not know: "
                "convert it again, or get a newer gguf"
            ) from None
        nbytes = -(-count // int(block)) * int(width)
        kind_name = gguf.GGMLQuantizationType(kind).name
        self.tensors.append(GGUFTensor(name, count, nbytes, kind_name))
        return int(offset) + nbytes

    def _width(self, kind: int) -> int:
        """Return the bytes of a value of a type."""
        if kind not in _SCALARS:
            raise _UnsoundError(f"it has a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _expect(self, count: int, width: int, what: str) -> None:
        """Refuse a count that does not fit into the file.

        Args:
            count: number of entries.
            width: bytes of the shortest possible entry.
            what: name of the entries, for the message.
        """
        if count * width > self._size - self._at:
            raise _UnsoundError(
                f"it is said to have {count} {what}, which are more bytes than the file has"
            )

    def _string(self) -> bytes:
        """Read a text: its length, then its bytes."""
        length = self._number("Q")
        start = self._at
        self._skip(length)
        return self._content[start : self._at]

    def _number(self, kind: str) -> int:
        """Read a number of 4 (``I``) or 8 (``Q``) bytes."""
        start = self._at
        self._skip(4 if kind == "I" else 8)
        return int(struct.unpack_from(self._order + kind, self._content, start)[0])

    def _skip(self, count: int) -> None:
        """Step over bytes, which must be in the file."""
        if count > self._size - self._at:
            missing = count - self._size + self._at
            more = f"{missing} {noun_for(missing, 'byte')}"
            raise _UnsoundError(f"its header needs {more} more than the file has")
        self._at += count
