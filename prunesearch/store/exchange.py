"""Evaluations as a file that can be mailed: checksummed JSON lines, and merging them without trusting them.

The first line names the format, each further line is an entry, and the last one closes the file with the number of
entries and the sha256 of all that stands before it. Entries come in the order of their keys, so that equal stores give
equal files. Of several values for a key the one that was computed first stays: merging stores in any order, and any
number of times, gives one result.
"""

import gzip
import hashlib
import heapq
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from prunesearch.errors import InputError, RunError, UnavailableError
from prunesearch.store import faults
from prunesearch.store.entry import MAX_BYTES, Entry, is_digest, seal_of
from prunesearch.store.files import cannot_write, replaced_file
from prunesearch.store.keys import SCHEMA_VERSION, Key, canonical_json
from prunesearch.store.shapes import fits
from prunesearch.store.tier import Readable, Tier, settle

FORMAT = "prunesearch evaluations"
VERSION = 1
_FIELDS = {"key", "made", "preimage", "seconds", "sha256", "value"}
_RATIO = 200  # how far a compressed file may unfold; real ones do less than thirty times
_SLACK = 64 * 2**20  # bytes that may unfold in any case
_BATCH = 500
_NOTHING = "; nothing was imported"
_LATEST = 253402300800.0  # the end of the year 9999, in seconds since 1970


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        read: entries in the files.
        new: keys that the store did not have.
        conflicts: keys for which it had a value that disagrees.
    """

    read: int
    new: int
    conflicts: int


def export(tiers: Sequence[Readable], path: Path) -> int:
    """Write all sound entries to a file (``.gz`` compresses); returns how many. It appears whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        raise RunError(f"cannot write {str(path)!r}: it is no ordinary file; give another file")
    try:
        with replaced_file(path) as scratch, scratch.open("wb") as file:
            return _write(file, entries_of(tiers), compress=path.suffix == ".gz")
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None


def _write(file: IO[bytes], entries: Iterable[Entry], *, compress: bool) -> int:
    # mtime 0: equal stores give equal files.
    target = gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if compress else file
    digest, count = hashlib.sha256(), 0

    def line(fields: dict[str, Any]) -> None:
        text = canonical_json(fields).encode() + b"\n"
        digest.update(text)
        target.write(text)

    line({"format": FORMAT, "schema": VERSION})
    for entry in entries:
        count += 1
        line(_fields(entry))
        faults.reach("mid_export", entry.key.digest)
    line({"entries": count, "sha256": digest.hexdigest()})
    if compress:
        target.close()
    return count


def entries_of(tiers: Sequence[Readable]) -> Iterator[Entry]:
    """All sound entries of several tiers, by key, each key once."""
    sound = ((pair for pair in tier.scan() if pair[1] is not None) for tier in tiers)
    for _, same in itertools.groupby(heapq.merge(*sound, key=itemgetter(0)), key=itemgetter(0)):
        stays: Entry | None = None
        for _, entry in same:
            assert entry is not None
            stays, _ = settle(stays, entry, "earliest")
        assert stays is not None
        yield stays


def _fields(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key.digest,
        "made": entry.made,
        "preimage": entry.key.preimage,
        "seconds": entry.seconds,
        "sha256": seal_of(entry),
        "value": entry.value,
    }


def read(path: Path) -> Iterator[Entry]:
    """The entries of an exported file; the first that cannot be trusted ends it.

    Raises:
        InputError: it is no export, of a newer schema, damaged, cut short, or unfolds beyond all measure.
    """
    digest, count, closed = hashlib.sha256(), 0, False
    with _lines(path) as lines:
        for number, line in enumerate(lines, 1):
            if closed:
                raise _bad(path, number, "something follows the last line")
            fields = _parsed(path, number, line)
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


def check(paths: Sequence[Path]) -> int:
    """Read files to their ends; returns how many entries they have.

    Raises:
        InputError: see `read`.
    """
    return sum(1 for path in paths for _ in read(path))


def add(paths: Sequence[Path], tiers: Sequence[Tier]) -> Imported:
    """Add the entries of files that were checked to all tiers, the first of which has the say.

    Raises:
        RunError: a tier cannot be written, or a file has changed since. What was imported before stays.
    """
    done = Imported(0, 0, 0)
    for path in paths:
        try:
            entries = read(path)
            while batch := list(itertools.islice(entries, _BATCH)):
                done = _add_batch(batch, tiers, done)
        except (InputError, UnavailableError) as error:
            # An InputError, too: the file was sound when it was checked.
            what = str(error).removesuffix(_NOTHING)
            raise RunError(
                f"{what}; {done.read:,} entries were imported before that and stay: import the same files again"
            ) from None
    return done


def _add_batch(batch: Sequence[Entry], tiers: Sequence[Tier], done: Imported) -> Imported:
    first, *others = tiers
    before = first.get(entry.key.digest for entry in batch)
    standing = first.put(batch, "earliest")
    for tier in others:
        copied = None
        while copied != standing:  # another import may have put an earlier entry into the first tier meanwhile
            tier.put(standing.values(), "given")
            copied, standing = standing, standing | first.get(standing)
    return Imported(
        done.read + len(batch),
        done.new + len({entry.key.digest for entry in batch} - set(before)),
        done.conflicts + sum(not before[e.key.digest].agrees(e) for e in batch if e.key.digest in before),
    )


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            most = _RATIO * path.stat().st_size + _SLACK
            yield _limited(path, gzip.GzipFile(fileobj=file) if packed else file, most)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None


def _limited(path: Path, file: IO[bytes] | gzip.GzipFile, most: int) -> Iterator[bytes]:
    total = 0
    longest = 2 * MAX_BYTES
    for number in itertools.count(1):
        line = file.readline(longest)
        total += len(line)
        if len(line) == longest or total > most:
            raise _bad(path, number, "it is larger than any export" if total > most else "the line is too long")
        if not line:
            return
        yield line


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise _bad(path, number, "it is no JSON") from None
    if not isinstance(fields, dict):
        raise _bad(path, number, "it is no JSON object")
    return fields


def _check_header(path: Path, fields: dict[str, Any]) -> None:
    if fields.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is no export of a cache: make one with prunesearch cache export FILE")
    if fields.get("schema") != VERSION:
        raise InputError(
            f"{str(path)!r} has schema {str(fields.get('schema'))[:20]}, known is {VERSION}: upgrade prunesearch here, "
            "or export with this version"
        )


def _entry(path: Path, number: int, fields: dict[str, Any]) -> Entry:
    if set(fields) != _FIELDS:
        raise _bad(path, number, "it has not the fields of an entry")
    digest, made, seconds = fields["key"], fields["made"], fields["seconds"]
    if not is_digest(digest) or not isinstance(fields["preimage"], str):
        raise _bad(path, number, "its key is none")
    # A clock that was ahead only lets an entry lose to others: the first that was made stays.
    if not _is_number(made, 0, _LATEST) or not _is_number(seconds, 0, _LATEST):
        raise _bad(path, number, "its times are impossible")
    key = Key(digest, fields["preimage"])
    if key != Key.of(fields["preimage"]) or not _is_canonical(key.preimage):
        raise _bad(path, number, "its key is not that of its pre-image")
    kind = _kind(key.preimage)
    if kind is None:
        raise _bad(path, number, "its pre-image is none of an evaluation")
    if not _is_text(fields["value"]) or not fits(kind, fields["value"]):
        raise _bad(path, number, "its value is no result")
    try:
        entry = Entry(key, fields["value"], seconds, made)
        sound = seal_of(entry) == fields["sha256"]
    except (ValueError, RecursionError):
        raise _bad(path, number, "its value cannot be stored") from None
    if not sound:
        raise _bad(path, number, "it does not match its checksum")
    return entry


def _is_canonical(preimage: str) -> bool:
    try:
        fields = json.loads(preimage)
        return (
            isinstance(fields, dict) and fields.get("schema") == SCHEMA_VERSION and canonical_json(fields) == preimage
        )
    except (ValueError, RecursionError):
        return False


def _kind(preimage: str) -> str | None:
    """The kind of data that a key is of; None if it names no model or no kind, as words that can be shown."""
    fields = json.loads(preimage)
    chunk = fields.get("chunk")
    kind = chunk.get("kind") if isinstance(chunk, dict) else fields.get("kind")
    if not all(isinstance(word, str) and word and word.isprintable() for word in (kind, fields.get("model"))):
        return None
    if not _is_text(fields):
        return None
    # A scoring of ours always has a version; what has none is somebody's own, whose shapes are not known.
    return str(kind) if not isinstance(chunk, dict) or "version" in chunk else f"unversioned {kind}"


def _is_text(value: object) -> bool:
    """Whether all strings in a JSON value are text: half a surrogate pair is none, and cannot be stored or printed."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _bad(path: Path, number: int, why: str) -> InputError:
    return InputError(f"{str(path)!r}, line {number}: {why}{_NOTHING}")
