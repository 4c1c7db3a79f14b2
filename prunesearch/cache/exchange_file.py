"""A file of evaluations: JSON lines with checksums.

The first line names the format. Each further line is an entry. The last line closes the file with
the number of entries and the sha256 of everything before it. Entries are in the order of their
keys, so that equal stores give equal files.
"""

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeGuard

from prunesearch.cache.entry import MAX_BYTES, Entry, checksum_of, is_digest
from prunesearch.cache.keys import SCHEMA_VERSION, Key, canonical_json
from prunesearch.cache.shapes import fits
from prunesearch.errors import InputError
from prunesearch.runtime import failpoints
from prunesearch.runtime.json_values import Json, JsonObject

FORMAT = "prunesearch evaluations"
VERSION = 1
_FIELDS = {"key", "made", "preimage", "seconds", "sha256", "value"}
_RATIO = 200  # largest ratio of decompressed to compressed size; that of real files is below 30
_SLACK = 64 * 2**20  # decompressed size in bytes that is allowed in any case
NOTHING_IMPORTED = "; nothing was imported"
_LATEST = 253402300800.0  # the end of the year 9999, in seconds since 1970


def may_be_replaced(path: Path) -> bool:
    """Whether a file is empty or begins as an export does."""
    try:
        with _lines(path) as lines:
            first = next(lines, None)
            return first is None or _parsed(path, 1, first).get("format") == FORMAT
    except InputError:  # it cannot be read, or is not JSON
        return False


def write_entries(file: IO[bytes], entries: Iterable[Entry], *, compress: bool) -> int:
    """Write entries to an open file, and return their number.

    Args:
        file: file to write to.
        entries: entries in the order of their keys.
        compress: whether to compress them with gzip.
    """
    target: IO[bytes] | gzip.GzipFile = file
    if compress:
        # Without a time stamp equal stores give equal files.
        target = gzip.GzipFile(fileobj=file, mode="wb", mtime=0)
    digest, count = hashlib.sha256(), 0

    def line(fields: JsonObject) -> None:
        text = canonical_json(fields).encode() + b"\n"
        digest.update(text)
        target.write(text)

    line({"format": FORMAT, "schema": VERSION})
    for entry in entries:
        count += 1
        line(_fields(entry))
        failpoints.hit("mid_export", entry.key.digest)
    line({"entries": count, "sha256": digest.hexdigest()})
    if compress:
        target.close()
    return count


def _fields(entry: Entry) -> JsonObject:
    return {
        "key": entry.key.digest,
        "made": entry.made,
        "preimage": entry.key.preimage,
        "seconds": entry.seconds,
        "sha256": checksum_of(entry),
        "value": entry.value,
    }


def read(path: Path) -> Iterator[Entry]:
    """Yield the entries of an exported file, up to the first line that cannot be trusted.

    Raises:
        InputError: the file is not an export, has a newer schema, is damaged or incomplete, or is
            far too large when it is decompressed.
    """
    digest, count, closed = hashlib.sha256(), 0, False
    with _lines(path) as lines:
        for number, line in enumerate(lines, 1):
            if closed:
                raise _bad(path, number, "something follows the last line")
            fields = _parsed(path, number, line)
            # The first line is the header, the line with a number of entries is the last, others
            # are entries.
            if number == 1:
                _check_header(path, fields)
            elif "entries" in fields:
                if fields != {"entries": count, "sha256": digest.hexdigest()}:
                    raise _bad(path, number, "the file does not match its checksum")
                closed = True
            else:
                count += 1
                yield _entry(path, number, fields)
            digest.update(line)
    if not closed:
        raise InputError(f"{str(path)!r} is cut short: export it again")


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            most = _RATIO * path.stat().st_size + _SLACK
            source: IO[bytes] | gzip.GzipFile = file
            if packed:
                source = gzip.GzipFile(fileobj=file)
            yield _limited(path, source, most)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _limited(path: Path, file: IO[bytes] | gzip.GzipFile, most: int) -> Iterator[bytes]:
    total = 0
    longest = 2 * MAX_BYTES
    for number in itertools.count(1):
        line = file.readline(longest)
        total += len(line)
        if total > most:
            raise _bad(path, number, "it is larger than any export")
        if len(line) == longest:
            raise _bad(path, number, "the line is too long")
        if not line:
            return
        yield line


def _parsed(path: Path, number: int, line: bytes) -> JsonObject:
    try:
        fields: Json = json.loads(line)
    except (ValueError, RecursionError):
        raise _bad(path, number, "it is not JSON") from None
    if not isinstance(fields, dict):
        raise _bad(path, number, "it is not a JSON object")
    return fields


def _check_header(path: Path, fields: JsonObject) -> None:
    if fields.get("format") != FORMAT:
        raise InputError(
            f"{str(path)!r} is not an export of a cache: make one with prunesearch cache export "
            f"FILE"
        )
    if fields.get("schema") != VERSION:
        raise InputError(
            f"{str(path)!r} has schema {str(fields.get('schema'))[:20]}, known is {VERSION}: "
            f"upgrade prunesearch here, "
            "or export with this version"
        )


def _entry(path: Path, number: int, fields: JsonObject) -> Entry:
    # 1. Check the form of each field.
    if set(fields) != _FIELDS:
        raise _bad(path, number, "it does not have the fields of an entry")
    digest, made, seconds = fields["key"], fields["made"], fields["seconds"]
    preimage = fields["preimage"]
    if not isinstance(digest, str) or not is_digest(digest) or not isinstance(preimage, str):
        raise _bad(path, number, "its key is not valid")
    # A time in the future is accepted. Such an entry only loses against others, because the
    # earliest stays.
    if not _is_number(made, 0, _LATEST) or not _is_number(seconds, 0, _LATEST):
        raise _bad(path, number, "its times are impossible")
    # 2. The key must be one that prunesearch makes.
    key = Key(digest, preimage)
    if key != Key.of(preimage) or not _is_canonical(key.preimage):
        raise _bad(path, number, "its key is not that of its pre-image")
    kind = _kind(key.preimage)
    if kind is None:
        raise _bad(path, number, "its pre-image is not that of an evaluation")
    # 3. The value must look like a result of that kind.
    if not _is_text(fields["value"]) or not fits(kind, fields["value"]):
        raise _bad(path, number, "its value is not a result")
    # 4. The checksum must match.
    try:
        entry = Entry(key, fields["value"], seconds, made)
        sound = checksum_of(entry) == fields["sha256"]
    except (ValueError, RecursionError):
        raise _bad(path, number, "its value cannot be stored") from None
    if not sound:
        raise _bad(path, number, "it does not match its checksum")
    return entry


def _is_canonical(preimage: str) -> bool:
    try:
        fields = json.loads(preimage)
        return (
            isinstance(fields, dict)
            and fields.get("schema") == SCHEMA_VERSION
            and canonical_json(fields) == preimage
        )
    except (ValueError, RecursionError):
        return False


def _kind(preimage: str) -> str | None:
    """Return the kind of data of a key. Return None if the key lacks a printable model or kind."""
    # Keys of evaluations hold the kind in their chunk.
    fields = json.loads(preimage)
    chunk = fields.get("chunk")
    if not isinstance(chunk, dict):
        chunk = None
    kind = fields.get("kind") if chunk is None else chunk.get("kind")
    if not (_is_label(kind) and _is_label(fields.get("model")) and _is_text(fields)):
        return None
    # prunesearch always stores a version. A key without one was made by other software, whose
    # values may have any shape.
    if chunk is not None and "version" not in chunk:
        return f"unversioned {kind}"
    return str(kind)


def _is_label(word: object) -> bool:
    return isinstance(word, str) and word != "" and word.isprintable()


def _is_text(value: object) -> bool:
    """Return whether all strings in a JSON value can be encoded. Half a surrogate pair cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _is_number(value: object, least: float, most: float) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _bad(path: Path, number: int, why: str) -> InputError:
    return InputError(f"{str(path)!r}, line {number}: {why}{NOTHING_IMPORTED}")
