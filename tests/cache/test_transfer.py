"""Exports travel; merging them is idempotent, order-free and trusts nothing."""

import gzip
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prunesearch.cache import exchange_file, transfer
from prunesearch.cache.backend import CacheBackend
from prunesearch.cache.entry import Entry, checksum
from prunesearch.cache.keys import Key, canonical_json
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.shared_backend import SharedBackend
from prunesearch.cache.transfer import Imported, add, check, export
from prunesearch.errors import InputError, RunError
from prunesearch.runtime import failpoints
from prunesearch.runtime.json_values import Json

MakeKey = Callable[[int], Key]


def cache(folder: Path, *entries: Entry) -> LocalBackend:
    backend = LocalBackend(folder)
    backend.put(entries)
    return backend


@pytest.fixture
def exported(tmp_path: Path, key: MakeKey) -> Path:
    with closing(
        cache(tmp_path / "a", *(Entry(key(i), [[i / 3, True]], 0.5, 1e9 + i) for i in range(5)))
    ) as backend:
        export([backend], tmp_path / "a.jsonl")
    return tmp_path / "a.jsonl"


def merge(files: list[Path], backends: list[CacheBackend]) -> Imported:
    check(files)
    return add(files, backends)


def content(backend: LocalBackend) -> dict[str, Entry | None]:
    return dict(backend.scan())


def test_what_is_exported_is_imported(tmp_path: Path, exported: Path) -> None:
    with (
        closing(LocalBackend(tmp_path / "a")) as before,
        closing(LocalBackend(tmp_path / "b")) as after,
    ):
        assert merge([exported], [after]) == Imported(5, 5, 0)
        assert content(after) == content(before)
        assert merge([exported, exported], [after]) == Imported(10, 0, 0)
        export([after], tmp_path / "b.jsonl")
        export([after], tmp_path / "b.jsonl.gz")
    assert (tmp_path / "b.jsonl").read_bytes() == exported.read_bytes()
    assert gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()) == exported.read_bytes()
    lines = exported.read_text().splitlines()
    assert json.loads(lines[0]) == {"format": "prunesearch evaluations", "schema": 1}
    assert json.loads(lines[1]).keys() == {"key", "made", "preimage", "seconds", "sha256", "value"}
    with (
        closing(SharedBackend(f"sqlite:///{tmp_path}/t.db")) as shared,
        closing(LocalBackend(tmp_path / "c")) as local,
    ):
        merge([tmp_path / "b.jsonl.gz"], [shared, local])
        assert len(shared) == len(local) == 5


def test_merging_is_order_free_and_says_what_disagrees(tmp_path: Path, key: MakeKey) -> None:
    files = []
    for name, entries in {
        "a": [
            Entry(key(1), [[1.0]], 1, 100),
            Entry(key(2), [[2.0]], 1, 100),
            Entry(key(4), [[4.0]], 1, 100),
        ],
        "b": [
            Entry(key(1), [[1.0001]], 1, 50),
            Entry(key(2), [[2.5]], 1, 90),
            Entry(key(3), [[3.0]], 1, 90),
        ],
        "c": [
            Entry(key(2), [[2.0]], 1, 120),
            Entry(key(3), [[3.3]], 1, 90),
            Entry(key(5), [[5.0]], 1, 90),
        ],
    }.items():
        with closing(cache(tmp_path / name, *entries)) as backend:
            export([backend], tmp_path / f"{name}.jsonl")
        files.append(tmp_path / f"{name}.jsonl")
    results = set()
    for number, order in enumerate(itertools.permutations(files)):
        with closing(LocalBackend(tmp_path / f"merged{number}")) as backend:
            for file in (*order, *order):
                merge([file], [backend])
            assert {incident.key for incident in backend.read_incidents()} == {
                key(2).digest,
                key(3).digest,
            }
            export([backend], tmp_path / "merged.jsonl")
            values = {d: e.value for d, e in content(backend).items() if e}
        assert values[key(2).digest] == [[2.5]], "the one that was computed first"
        assert values[key(1).digest] == [[1.0001]]
        results.add((tmp_path / "merged.jsonl").read_bytes())
    assert len(results) == 1


def forged(line: str, **changes: object) -> str:
    return json.dumps({**json.loads(line), **changes}, sort_keys=True, separators=(",", ":"))


FORGERIES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "value": (
        lambda x: [x[0], forged(x[1], value=[[9]]), *x[2:]],
        "line 2: it does not match its checksum",
    ),
    "checksum": (
        lambda x: [x[0], forged(x[1], sha256="0" * 64), *x[2:]],
        "does not match its checksum",
    ),
    "key": (
        lambda x: [x[0], forged(x[1], key="0" * 64), *x[2:]],
        "its key is not that of its pre-image",
    ),
    "no key": (
        lambda x: [x[0], forged(x[1], key="../../etc/passwd"), *x[2:]],
        "its key is not valid",
    ),
    "pre-image": (lambda x: [x[0], forged(x[1], preimage="{}"), *x[2:]], "its key is not that"),
    "future": (lambda x: [x[0], forged(x[1], made=9e12), *x[2:]], "its times are impossible"),
    "NaN": (
        lambda x: [x[0], forged(x[1], seconds=float("nan")), *x[2:]],
        "its times are impossible",
    ),
    "code": (
        lambda x: [x[0], forged(x[1], value={"a": {"b": 1}}), *x[2:]],
        "its value is not a result",
    ),
    "field": (
        lambda x: [x[0], forged(x[1], more=1), *x[2:]],
        "it does not have the fields of an entry",
    ),
    "deep": (lambda x: [x[0], "[" * 100_000, *x[2:]], "line 2: it is not JSON"),
    "binary": (lambda x: [x[0], "\x00\x01", *x[2:]], "line 2: it is not JSON"),
    "dropped line": (lambda x: [x[0], *x[2:]], "line 6: the file does not match its checksum"),
    "order": (lambda x: [x[0], x[2], x[1], *x[3:]], "the file does not match its checksum"),
    "cut": (lambda x: x[:-1], "is cut short"),
    "longer": (lambda x: [*x, x[1]], "something follows the last line"),
    "other file": (lambda x: ['{"name":"x"}'], "is not an export of a cache"),
    "newer": (
        lambda x: ['{"format":"prunesearch evaluations","schema":2}', *x[1:]],
        "schema 2, known is 1: upgrade",
    ),
    "long line": (lambda x: [x[0], "1" * 20_000_000, *x[2:]], "the line is too long"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_nothing_is_imported_from_a_file_that_is_not_sound(
    tmp_path: Path, exported: Path, forgery: str
) -> None:
    forge, complaint = FORGERIES[forgery]
    lines = exported.read_text().splitlines()
    exported.write_text("\n".join(forge(lines)) + "\n")
    with closing(LocalBackend(tmp_path / "b")) as backend:
        with pytest.raises(InputError) as caught:
            merge([exported], [backend])
        assert complaint in str(caught.value)
        assert len(backend) == 0


def test_bombs_and_broken_archives_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb") as file:
        file.write(b'{"format":"prunesearch evaluations","schema":1}\n')
        for _ in range(3000):
            file.write(b" " * 99_999 + b"\n")
    with closing(LocalBackend(tmp_path / "b")) as backend:
        with pytest.raises(InputError, match="it is not JSON"):
            merge([bomb], [backend])
        cut = tmp_path / "cut.jsonl.gz"
        cut.write_bytes(bomb.read_bytes()[:-2000])
        with pytest.raises(InputError):
            merge([cut], [backend])
        with pytest.raises(InputError, match="cannot read"):
            merge([tmp_path / "missing"], [backend])
        assert len(backend) == 0


def test_a_file_that_unfolds_beyond_measure_is_refused(
    tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_file, "_SLACK", 0)
    monkeypatch.setattr(exchange_file, "_RATIO", 2)
    with closing(
        cache(tmp_path / "a", *(Entry(key(i), [[0.0] * 1000]) for i in range(20)))
    ) as backend:
        export([backend], tmp_path / "a.jsonl.gz")
        with pytest.raises(InputError, match="larger than any export"):
            merge([tmp_path / "a.jsonl.gz"], [backend])


def test_a_process_that_dies_while_it_exports_leaves_the_old_file(
    tmp_path: Path, exported: Path, key: MakeKey
) -> None:
    before = exported.read_bytes()
    child = os.fork()
    if child == 0:
        failpoints.enable(lambda point, _: os._exit(9) if point == "mid_export" else None)
        with closing(LocalBackend(tmp_path / "a")) as backend:
            backend.put([Entry(key(9), [[9.0]])])
            export([backend], exported)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert exported.read_bytes() == before


def test_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with (
        closing(LocalBackend(tmp_path / "a")) as backend,
        pytest.raises(InputError, match=r"there is no folder .*; make it first"),
    ):
        export([backend], tmp_path / "no" / "where.jsonl")


def line_of(
    preimage: dict[str, Any], value: Json, *, seconds: str = "1.0", made: str = "1.0"
) -> str:
    """An entry as a file may have it whose maker means harm: well formed, with its right
    checksum.
    """
    digest = Key.of(canonical_json(preimage))
    number = {"seconds": json.loads(seconds), "made": json.loads(made)}
    body = canonical_json({**number, "preimage": digest.preimage, "value": value})
    fields = {**number, "key": digest.digest, "preimage": digest.preimage, "value": value}
    return canonical_json({**fields, "sha256": checksum(digest.digest, body)})


def serialized_file(path: Path, *lines: str) -> Path:
    text = "".join(
        f"{line}\n" for line in ('{"format":"prunesearch evaluations","schema":1}', *lines)
    )
    last = canonical_json(
        {"entries": len(lines), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    )
    path.write_text(f"{text}{last}\n")
    return path


def of(kind: str, model: str = "f" * 64) -> dict[str, Any]:
    chunk = {"kind": kind, "version": 2, "tokens": "t"}
    return {"schema": 1, "model": model, "candidate": "blocks/6:1", "chunk": chunk}


SUMS: Json = [[1.5, 2.5, 3]]
LATENCIES: dict[str, Json] = {
    "block_ms": [1.0, 2.0],
    "attention_ms": [0.5, 0.5],
    "other_ms": 1.0,
}
LATENCY_KEY = {
    "schema": 1,
    "model": "f" * 64,
    "kind": "sublayer latency",
    "machine": "m",
    "tokens": 256,
}
ODD: dict[str, str] = {
    "lone surrogate in the model": line_of(of("calibration", "\ud800"), SUMS),
    "lone surrogate in the kind": line_of(of("\udfff"), [[1.0]]),
    "lone surrogate in a text": line_of(of("generated text"), ["\ud800"]),
    "lone surrogate deep in the key": line_of({**of("k"), "candidate": ["\ud800"]}, [[1.0]]),
    "NUL in the model": line_of(of("calibration", "a\x00b"), SUMS),
    "line break in the kind": line_of(of("a\nb"), [[1.0]]),
    "no model": line_of({"schema": 1, "chunk": {"kind": "calibration", "version": 2}}, SUMS),
    "no kind": line_of({"schema": 1, "model": "m", "chunk": {}}, SUMS),
    "400 digits": line_of(of("calibration"), [[10**399, 1, 1]]),
    "400 digits of an unknown kind": line_of(of("k"), [[10**399]]),
    "400 digits of seconds": line_of(of("calibration"), SUMS, seconds="9" * 400),
    "after the year 9999": line_of(of("calibration"), SUMS, made="9e12"),
    "nothing": line_of(of("calibration"), []),
    "an empty row": line_of(of("k"), [[]]),
    "texts for sums": line_of(of("calibration"), [["x", "y", "z"]]),
    "truth values for sums": line_of(of("calibration top 512"), [[True, True, True]]),
    "two sums": line_of(of("calibration"), [[1.0, 2.0]]),
    "no tokens": line_of(of("calibration"), [[1.0, 2.0, 0]]),
    "sums for answers": line_of(of("loglikelihood"), SUMS),
    "numbers for truth values": line_of(of("loglikelihood"), [[-1.0, 1]]),
    "numbers for texts": line_of(of("generated text"), [1.0]),
    "deep": line_of(of("k"), [[[[1.0]]]]),
    "a table for sums": line_of(of("calibration"), {"a": 1}),
    "latencies without one": line_of(LATENCY_KEY, {"block_ms": [1.0], "attention_ms": [1.0]}),
    "latencies of text": line_of(LATENCY_KEY, {**LATENCIES, "block_ms": ["x"]}),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_entry_that_could_not_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, odd: str
) -> None:
    sound = [line_of({**of("calibration"), "candidate": f"blocks/6:{i}"}, SUMS) for i in range(3)]
    with pytest.raises(InputError, match=r"line 5: .*; nothing was imported") as caught:
        check([serialized_file(tmp_path / "odd.jsonl", *sound, ODD[odd])])
    str(caught.value).encode()


def test_every_kind_of_result_is_imported_also_from_a_clock_that_is_ahead(tmp_path: Path) -> None:
    lines = [
        line_of(of("calibration"), SUMS, made=str(time.time() + 10 * 86400)),
        line_of(of("calibration top 512"), SUMS),
        line_of(of("loglikelihood"), [[-1.5, True], [-2, False]]),
        line_of(of("generated text"), ["a", "", "\x00é😀"]),
        line_of(LATENCY_KEY, LATENCIES),
        line_of(of("of somebody's own"), {"a": [1, "b", True], "c": 2}),
    ]
    with (
        closing(LocalBackend(tmp_path / "b")) as backend,
        closing(SharedBackend(f"sqlite:///{tmp_path}/t.db")) as shared,
    ):
        assert merge(
            [serialized_file(tmp_path / "a.jsonl", *lines)], [shared, backend]
        ) == Imported(6, 6, 0)
        assert len(backend) == len(shared) == 6


def test_labels_that_no_database_stores_are_stored_as_others(tmp_path: Path, database: str) -> None:
    entry = Entry(Key.of(canonical_json(of("a\nb\x00", "\ud800"))), 1)
    assert entry.labels == ("?", "a?b?")
    with closing(LocalBackend(tmp_path / "b")) as local, closing(SharedBackend(database)) as shared:
        for backend in (local, shared):
            backend.put([entry])
            assert [(group.model, group.kind) for group in backend.groups()] == [("?", "a?b?")]


def test_a_whole_number_beyond_all_floats_is_compared(tmp_path: Path, key: MakeKey) -> None:
    assert Entry(key(1), [10**400]).agrees(Entry(key(1), [10**400]))
    assert not Entry(key(1), [10**400]).agrees(Entry(key(1), [1.0]))


def test_an_import_that_fails_half_way_says_what_is_there(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_BATCH", 2)
    check([exported])
    lines = exported.read_text().splitlines()
    exported.write_text("\n".join([*lines[:4], "nonsense"]))  # changed after it was checked
    with closing(LocalBackend(tmp_path / "b")) as backend:
        with pytest.raises(
            RunError, match="line 5: it is not JSON; 2 entries were imported before that and stay"
        ):
            add([exported], [backend])
        assert len(backend) == 2


def test_an_import_copies_what_another_import_put_first(
    tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(cache(tmp_path / "a", Entry(key(1), [[7.0]], 1, 7.0))) as backend:
        export([backend], tmp_path / "a.jsonl")
    with (
        closing(SharedBackend(f"sqlite:///{tmp_path}/t.db")) as shared,
        closing(LocalBackend(tmp_path / "b")) as local,
    ):
        put = local.put

        def put_late(*words: Any) -> Any:  # noqa: ANN401
            shared.put([Entry(key(1), [[7.0]], 1, 5.0)], "earliest")
            return put(*words)

        monkeypatch.setattr(local, "put", put_late)
        merge([tmp_path / "a.jsonl"], [shared, local])
        assert local.get([key(1).digest])[key(1).digest].made == 5.0


def test_an_export_follows_no_link_and_replaces_no_device(tmp_path: Path, exported: Path) -> None:
    victim, owned = tmp_path / "victim", tmp_path / "my.txt"
    victim.write_text("precious")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "out.jsonl").symlink_to(victim)
    with closing(LocalBackend(tmp_path / "a")) as backend:
        export([backend], tmp_path / "out.jsonl")
        with pytest.raises(RunError, match="is not a regular file"):
            export([backend], Path("/dev/null"))
        for content in (b"precious", b'{"text": "precious"}\n', b"\x1f\x8b precious"):
            owned.write_bytes(content)
            with pytest.raises(InputError, match="is not an export of a cache: give another file"):
                export([backend], owned)
            assert owned.read_bytes() == content
        assert export([backend], tmp_path / "empty.jsonl") == export([backend], exported) == 5
    assert victim.read_text() == "precious"
    assert (tmp_path / "out.jsonl").read_bytes() == exported.read_bytes()
