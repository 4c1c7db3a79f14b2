"""The evaluation cache under damage, attack and want of space; merging; how fast it is.

    python -m benchmarks.store --json OUT

Corruption: one random bit of the cache file is flipped, the store is opened, asked for everything
and written to; again and again, in processes of their own. Hostile: rows, settings, schemas and import files that
somebody made to run code or to reach a file outside. Full disk: a file system of 2 MiB, and one
that is read-only. Merge: three caches in all six orders, twice. Speed: hits from the disk and from
PostgreSQL, and a cache of a million entries.
"""

import gzip
import itertools
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

from benchmarks.support.record import Record, arguments
from prunesearch.cache import maintenance, transfer
from prunesearch.cache.entry import Entry
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import Key, evaluation_key
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.location import CacheLocation
from prunesearch.cache.repair import FILE
from prunesearch.errors import (
    InputError,
    PruneSearchError,
    StorageError,
    UnavailableError,
)
from tests.support import postgres

FORK = multiprocessing.get_context("fork")
ENTRIES = 300
MILLION = 1_000_000


def key(number: int) -> Key:
    """A key by number."""
    return evaluation_key(
        "f" * 64, f"blocks/30:{number}", {"kind": "calibration", "tokens": "t" * 64, "version": 2}
    )


def value(number: int) -> list[list[float]]:
    """The value that belongs to it."""
    chance = random.Random(number)
    return [[chance.random(), chance.random(), 256] for _ in range(4)]


def filled(folder: Path, count: int) -> Path:
    """A cache with entries."""
    with closing(LocalBackend(folder)) as backend:
        backend.put(Entry(key(i), value(i), 1.0, 1.7e9 + i) for i in range(count))
    return folder


def wrong(found: Iterable[Entry | None], count: int) -> int:
    """How many entries are not what was stored."""
    right = {key(i).digest: value(i) for i in range(count)}
    return sum(entry is not None and entry.value != right[entry.key.digest] for entry in found)


def corruption(record: Record, flips: int) -> None:
    """Flip bits of the cache file."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        source = filled(Path(name) / "source", ENTRIES) / FILE
        portion = min(50, flips)
        for start in range(0, flips, portion):
            reader, writer = FORK.Pipe()
            process = FORK.Process(
                target=_flip, args=(source, Path(name), range(start, start + portion), writer)
            )
            process.start()
            writer.close()
            seen = 0
            with suppress(EOFError):
                while True:
                    outcomes[reader.recv()] += 1
                    seen += 1
            process.join()
            outcomes["crash"] += portion - seen  # the process died under one of them
    record.add("bit_flips", flips)
    record.add("corruption_wrong_values", outcomes["wrong"], "== 0")
    record.add("corruption_crashes", outcomes["crash"], "== 0")
    record.notes["corruption"] = dict(outcomes)


def _flip(
    source: Path, home: Path, numbers: range, report: "multiprocessing.connection.Connection"
) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the store warns of each
    for number in numbers:
        chance = random.Random(number)
        content = bytearray(source.read_bytes())
        place = chance.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        folder = home / f"flip{number}"
        folder.mkdir(mode=0o700)
        (folder / FILE).write_bytes(content)
        report.send(_tried(folder))
        shutil.rmtree(folder)


def _tried(folder: Path) -> str:
    digests = [key(i).digest for i in range(ENTRIES)]
    try:
        with EvaluationCache(folder) as cache:
            found = cache.get_digests(digests)
            cache.put(key(ENTRIES), value(ENTRIES))
            again = cache.get_digests([*digests, key(ENTRIES).digest])
            if (
                wrong([*found.values(), *again.values()], ENTRIES + 1)
                or key(ENTRIES).digest not in again
            ):
                return "wrong"
            assert cache.local is not None
            if cache.local.read_incidents():
                return "detected"
            return "unaffected" if len(found) == ENTRIES else "missed and computed again"
    except PruneSearchError:
        return "refused"


Parameters = dict[str, str | bytes]
"""Values that a statement to the database names."""


class _Payload:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.canary,)


def attacks(canary: Path, outside: Path, huge: int) -> dict[str, tuple[str, Parameters]]:
    """Statements that turn a cache file hostile, with their parameters."""
    code: Parameters = {"code": pickle.dumps(_Payload(canary))}
    place: Parameters = {"outside": str(outside)}
    return {
        "pickle row": ("UPDATE Cache SET mode = 4, value = :code", code),
        "raw key": ("UPDATE Cache SET raw = 0, key = :code WHERE rowid = 1", code),
        "path to read": ("UPDATE Cache SET mode = 3, filename = :outside", place),
        "path to delete": ("UPDATE Cache SET filename = :outside", place),
        "huge row": (f"UPDATE Cache SET value = zeroblob({huge}) WHERE rowid = 1", {}),
        "forged checksum": ("UPDATE Cache SET value = '0000' || substr(value, 5)", {}),
        "directory setting": ("INSERT INTO Settings VALUES ('_directory', :outside)", place),
        "disk setting": ("INSERT INTO Settings VALUES ('disk_nonsense', 1)", {}),
        "eviction": ("UPDATE Settings SET value = 1 WHERE key IN ('size_limit', 'cull_limit')", {}),
        "trigger": ("CREATE TRIGGER t AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END", {}),
        "view": ("CREATE VIEW v AS SELECT * FROM Cache", {}),
    }


def hostile(record: Record, huge: int, mib: int) -> None:
    """Serve nothing, run nothing, touch nothing."""
    ran = touched = served = failed = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        canary, outside = home / "canary", home / "outside.txt"
        outside.write_text("precious")
        for number, (statement, values) in enumerate(attacks(canary, outside, huge).values()):
            folder = filled(home / f"c{number}", 50)
            with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as rows:
                rows.execute(statement, values)
            try:
                with EvaluationCache(folder) as cache:
                    served += wrong(
                        cache.get_digests(key(i).digest for i in range(50)).values(), 50
                    )
                    cache.put(key(60), value(60))
                maintenance.verified(CacheLocation(folder))
                with maintenance.reading(CacheLocation(folder)) as backends:
                    transfer.export(backends, home / "export.jsonl")
            except PruneSearchError:
                failed += 1
            ran += canary.exists()
            touched += outside.read_text() != "precious"
            shutil.rmtree(folder)
        refused = sum(_refused(path, home) for path in _bombs(home, mib))
        touched += {path.name for path in home.iterdir()} - {
            "outside.txt",
            "export.jsonl",
            "imports",
        } != set()
    record.add("hostile_code_run", ran, "== 0")
    record.add("hostile_files_touched", touched, "== 0")
    record.add("hostile_values_served", served, "== 0")
    record.add("hostile_stores_unusable", failed, "== 0")
    record.add("hostile_imports_accepted", len(BOMBS) - refused, "== 0")
    record.add("hostile_peak_mib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    record.notes["huge_row_bytes"] = huge


HEADER = b'{"format":"prunesearch evaluations","schema":1}\n'
BOMBS: dict[str, Callable[[int], Iterator[bytes]]] = {
    "one long line": lambda mib: itertools.chain([HEADER], itertools.repeat(b" " * 2**20, mib)),
    "many empty objects": lambda mib: itertools.chain(
        [HEADER], itertools.repeat(b"{}\n" * 2**18, mib // 4)
    ),
    "deep": lambda _: iter([HEADER, b"[" * 1_000_000, b"\n"]),
    "a pickle": lambda _: iter([pickle.dumps(_Payload(Path("/nowhere")))]),
    "no end": lambda _: iter([HEADER]),
}
"""Import files that must be refused; the first two grow to this number of MiB when they are unpacked."""


def _bombs(home: Path, mib: int) -> Iterator[Path]:
    (home / "imports").mkdir()
    for number, make in enumerate(BOMBS.values()):
        path = home / "imports" / f"{number}.jsonl.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            for part in make(mib):
                file.write(part)
        yield path


def _refused(path: Path, home: Path) -> bool:
    try:
        maintenance.merge(CacheLocation(home / "imports" / "cache"), [path])
    except InputError:
        return not (home / "imports" / "cache").exists()
    return False


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """A file system of 2 MiB; None where we may not mount one."""
    with tempfile.TemporaryDirectory() as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", name],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            yield None
            return
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def full_disk(record: Record) -> None:
    """Fill a small disk; make it read-only."""
    with small_disk() as small, tempfile.TemporaryDirectory() as other:
        if small is None:
            record.notes["full_disk"] = "not measured: mounting a file system needs root"
            return
        with EvaluationCache(small / "c") as cache:
            stored, seconds = _fill(cache)
            readable = len(cache.get_digests(key(i).digest for i in range(stored)))
        record.add("full_disk_seconds_to_error", seconds, "<= 5")
        record.add("full_disk_earlier_rows_unreadable", stored - readable, "== 0")
        with EvaluationCache(f"{small}/d,sqlite:///{other}/team.db") as cache:
            went_on = all(cache.put(key(i), ["x" * 20_000]) for i in range(150))
            record.add("full_disk_goes_on_with_a_tier", int(went_on and len(cache) == 150), "== 1")
    with small_disk() as small, tempfile.TemporaryDirectory() as other:
        assert small is not None
        url = f"sqlite:///{other}/team.db"
        filled(small / "c", 100)
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        begun, refused = time.perf_counter(), False
        try:
            EvaluationCache(small / "c")
        except StorageError:
            refused = True
        record.add(
            "read_only_seconds_to_error", time.perf_counter() - begun if refused else 60.0, "<= 5"
        )
        with maintenance.reading(CacheLocation(small / "c")) as backends:
            readable = sum(entry is not None for _, entry in backends[0].scan())
        record.add("read_only_earlier_rows_unreadable", 100 - readable, "== 0")
        with EvaluationCache(f"{small}/c,{url}") as shared:
            went_on = all(shared.put(key(i), value(i)) for i in range(100, 150))
            record.add("read_only_goes_on_with_a_tier", int(went_on and len(shared) == 50), "== 1")


def _fill(cache: EvaluationCache) -> tuple[int, float]:
    """Put until the disk refuses;
    how many went in, and the seconds from the last call to its error.
    """
    for number in itertools.count(1000):
        begun = time.perf_counter()
        try:
            cache.put(key(number - 1000), ["x" * 20_000])
        except UnavailableError:
            return number - 1000, time.perf_counter() - begun
    raise AssertionError


def merging(record: Record) -> None:
    """Merge three caches that overlap and disagree, in all orders, twice."""
    results, conflicts = set(), set()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        files = []
        for shift in range(3):
            with closing(LocalBackend(home / f"s{shift}")) as backend:
                numbers = range(100 * shift, 100 * shift + 200)
                backend.put(
                    Entry(
                        key(i), value(i if i % 10 else i + shift), 1.0, 1.7e9 + (7 * i + shift) % 3
                    )
                    for i in numbers
                )
                transfer.export([backend], home / f"{shift}.jsonl")
            files.append(home / f"{shift}.jsonl")
        for number, order in enumerate(itertools.permutations(files)):
            for _ in range(2):
                for file in order:
                    maintenance.merge(CacheLocation(home / f"m{number}"), [file])
            with maintenance.reading(CacheLocation(home / f"m{number}")) as backends:
                transfer.export(backends, home / "merged.jsonl")
                conflicts.add(len({incident.key for incident in backends[0].read_incidents()}))
            results.add((home / "merged.jsonl").read_bytes())
    record.add("merge_distinct_results", len(results), "== 1")
    record.add("merge_distinct_conflict_counts", len(conflicts), "== 1")
    record.notes["merge_conflicts"] = sorted(conflicts)


def times(actions: Iterable[Callable[[], object]]) -> list[float]:
    """Milliseconds of each."""
    found = []
    for action in actions:
        begun = time.perf_counter()
        action()
        found.append(1000 * (time.perf_counter() - begun))
    return found


def _p99(found: list[float]) -> float:
    return statistics.quantiles(found, n=100)[98]


def speed(record: Record, count: int, many: int) -> None:
    """Time hits, commits and a large cache."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with EvaluationCache(filled(home / "a", count)) as cache:
            hits = times(partial(cache.get, key(i)) for i in range(count))
            record.add("disk_hit_p50_ms", statistics.median(hits), "<= 1")
            record.add("disk_commit_p50_ms", _commit(cache, 10**6))
        if postgres.AVAILABLE:
            with postgres.Server(fsync=True) as server:
                maintenance.merge(CacheLocation(home / "b", server.url), [_exported(home)])
                with EvaluationCache(f"{home}/c,{server.url}") as cache:
                    hits = times(partial(cache.get, key(i)) for i in range(count))
                    record.add("postgresql_hit_p50_ms", statistics.median(hits), "<= 10")
                    record.add("postgresql_commit_p50_ms", _commit(cache, 2 * 10**6))
        _large(record, home / "large", many)


def _exported(home: Path) -> Path:
    with maintenance.reading(CacheLocation(home / "a")) as backends:
        transfer.export(backends, home / "a.jsonl")
    return home / "a.jsonl"


def _commit(cache: EvaluationCache, first: int) -> float:
    """Median milliseconds of a leased commit; all leases are taken in one transaction."""
    keys = [key(i) for i in range(first, first + 200)]
    with cache.single_flight() as single_flight:
        single_flight.acquire(keys)
        return statistics.median(times(partial(single_flight.commit, k, value(1)) for k in keys))


def _large(record: Record, folder: Path, many: int) -> None:
    with closing(LocalBackend(folder)) as backend:
        keys = iter(
            sorted((key(i) for i in range(many)), key=lambda k: k.digest)
        )  # so that the index grows in order
        while batch := list(itertools.islice(keys, 20_000)):
            backend.put(Entry(k, [[0.5, 0.25, 256]] * 4, 1.0, 1.7e9) for k in batch)
    begun = time.perf_counter()
    with EvaluationCache(folder) as cache:
        record.add("large_open_seconds", time.perf_counter() - begun, "<= 2")
        chance = random.Random(0)
        wanted = [key(chance.randrange(many)) for _ in range(min(5000, many))]
        hits = times(partial(cache.get, k) for k in wanted)
        record.add("large_get_p99_ms", _p99(hits), "<= 5")
        record.add("large_entries", len(cache))
    record.notes["large_bytes"] = (folder / FILE).stat().st_size


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    record = Record("store", options.size)
    merging(record)
    hostile(record, *record.by_size((999_000_000, 4096), (10**8, 4096), (10**6, 64)))
    full_disk(record)
    corruption(record, record.by_size(1000, 200, 10))
    speed(record, *record.by_size((1000, MILLION), (1000, 50_000), (200, 1000)))
    record.finish(options.json)


if __name__ == "__main__":
    main()
