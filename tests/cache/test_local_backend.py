"""The local backend serves what was put or nothing, whatever lies in its file, and touches no other."""

import os
import pickle
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesearch.cache import local_backend, location
from prunesearch.cache.cache_file import DiskFile
from prunesearch.cache.entry import Entry, checksum, parse_entry
from prunesearch.cache.hardening import SCHEMA_VERSION, SETTINGS
from prunesearch.cache.incidents import DAMAGE, DISAGREEMENT
from prunesearch.cache.keys import (
    Key,
    canonical_json,
    evaluation_key,
    latency_key,
)
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.location import CacheLocation, check_writable
from prunesearch.cache.maintenance import reading, sweep, verified
from prunesearch.cache.shared_backend import SharedBackend
from prunesearch.errors import StorageError, UnavailableError
from prunesearch.runtime import failpoints

KEY = evaluation_key("f" * 64, "blocks/6:1", {"kind": "calibration"})
MakeKey = Callable[[int], Key]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=json_values)
@settings(max_examples=50, deadline=None)
def test_a_serialized_value_is_parsed_again(value: object) -> None:
    entry = Entry(KEY, value, 1.5, 1e9)
    assert parse_entry(KEY.digest, entry.serialized) == entry


def _put(folder: Path, *entries: Entry) -> None:
    with closing(LocalBackend(folder)) as backend:
        backend.put(entries or [Entry(KEY, [[1.5, 2.5, 3]])])


def _rows(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "cache.db", isolation_level=None)


def test_what_is_put_is_got_after_reopening(tmp_path: Path, key: MakeKey) -> None:
    _put(tmp_path / "c", *(Entry(key(i), [i], seconds=i, made=1e9) for i in range(5)))
    with closing(LocalBackend(tmp_path / "c")) as backend:
        found = backend.get([key(i).digest for i in range(7)])
        assert [found[key(i).digest].value for i in range(5)] == [[i] for i in range(5)]
        assert len(backend) == len(found) == 5
        assert [(g.kind, g.entries) for g in backend.groups()] == [("calibration", 5)]
        assert sorted(digest for digest, entry in backend.scan() if entry) == sorted(found)
        assert backend.check() == []


def test_the_first_value_stays_and_a_second_that_differs_is_an_incident(tmp_path: Path) -> None:
    with closing(LocalBackend(tmp_path / "c")) as backend:
        backend.put([Entry(KEY, [[1.0]])])
        assert backend.put([Entry(KEY, [[1.0005]])])[KEY.digest].value == [[1.0]]
        assert backend.read_incidents() == []
        for _ in range(2):
            assert backend.put([Entry(KEY, [[1.1]])])[KEY.digest].value == [[1.0]]
        (incident,) = backend.read_incidents()
        assert (incident.kind, incident.key) == (DISAGREEMENT, KEY.digest)
        assert "1.1" in incident.detail


def test_measured_times_may_differ(tmp_path: Path) -> None:
    latency = latency_key("f" * 64, "a machine", {"dtype": "float32"}, 256)
    with closing(LocalBackend(tmp_path / "c")) as backend:
        for milliseconds in (1.0, 2.0):
            assert backend.put([Entry(latency, [milliseconds])])[latency.digest].value == [1.0]
        assert backend.read_incidents() == []


def test_a_changed_value_is_taken_out_and_reported(tmp_path: Path) -> None:
    _put(tmp_path / "c")
    with _rows(tmp_path / "c") as rows:
        rows.execute("UPDATE Cache SET value = replace(value, '1.5', '1.6')")
    with closing(LocalBackend(tmp_path / "c")) as backend:
        assert [entry for _, entry in backend.scan()] == [None]
        assert backend.get([KEY.digest]) == {}
        assert len(backend) == 0
        (incident,) = backend.read_incidents()
        assert (incident.kind, incident.key) == (DAMAGE, KEY.digest)
        assert "1.6" in incident.detail, "what was found is kept"


def test_a_row_under_anothers_key_is_not_served(tmp_path: Path, key: MakeKey) -> None:
    _put(tmp_path / "c")
    with _rows(tmp_path / "c") as rows:
        rows.execute("UPDATE Cache SET key = ?", (key(2).digest,))
    with closing(LocalBackend(tmp_path / "c")) as backend:
        assert backend.get([key(2).digest, KEY.digest]) == {}


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle from the cache was run",))


HOSTILE = {
    "pickle": "UPDATE Cache SET mode = 4, value = :pickle",
    "pickled key": "UPDATE Cache SET raw = 0, key = :pickle",
    "file to read": "UPDATE Cache SET mode = 3, filename = :outside",
    "file to delete": "UPDATE Cache SET filename = :outside",
    "blob": "UPDATE Cache SET value = CAST(value AS BLOB)",
    "not UTF-8": "UPDATE Cache SET value = CAST(X'FF' || value AS TEXT)",
    "huge row": "UPDATE Cache SET value = CAST(zeroblob(300000000) AS TEXT)",
    "huge key": "UPDATE Cache SET key = CAST(zeroblob(20000000) AS TEXT)",
    "attribute": "INSERT INTO Settings VALUES ('_directory', :outside)",
    "disk setting": "INSERT INTO Settings VALUES ('disk_nonsense', 1)",
    "eviction": "UPDATE Settings SET value = 1 WHERE key IN ('size_limit', 'cull_limit')",
    "trigger": "CREATE TRIGGER t AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
    "view": "CREATE VIEW v AS SELECT * FROM Cache",
    "no table": "DROP TABLE Settings",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_files_run_nothing_and_reach_nothing(
    tmp_path: Path, key: MakeKey, attack: str
) -> None:
    folder, outside = tmp_path / "c", tmp_path / "precious.txt"
    outside.write_text("precious")
    _put(folder)
    with _rows(folder) as rows:
        values = {"pickle": pickle.dumps(Trap()), "outside": str(outside)}
        rows.execute(
            HOSTILE[attack],
            {name: value for name, value in values.items() if f":{name}" in HOSTILE[attack]},
        )
    with closing(LocalBackend(folder)) as backend:
        assert backend.get([KEY.digest]).get(KEY.digest, Entry(KEY, [[1.5, 2.5, 3]])).value == [
            [1.5, 2.5, 3]
        ]
        list(backend.scan())
        backend.put([Entry(KEY, [[9]]), *(Entry(key(i), [i]) for i in range(2, 30))])
        assert len(backend.get([key(i).digest for i in range(2, 30)])) == 28, "nothing is evicted"
        backend.discard([KEY.digest])
        assert {name: getattr(backend._cache, name) for name in SETTINGS} == dict(SETTINGS)
    found = verified(CacheLocation(folder))
    assert found.backends[0].sound == 28
    assert verified(CacheLocation(folder)).backends[0].damaged == 0, "what is damaged is gone"
    assert outside.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"c", "precious.txt"}


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o700)
    (tmp_path / "c" / "cache.db").write_bytes(b"this is not a database" * 100)
    with closing(LocalBackend(tmp_path / "c")) as backend:
        backend.put([Entry(KEY, 1)])
        assert [incident.key for incident in backend.read_incidents()] == ["cache.db"]
    (quarantined,) = (tmp_path / "c" / "quarantine").glob("*/cache.db")
    assert quarantined.read_bytes().startswith(b"this is not a database")


def test_what_is_sound_in_a_damaged_file_is_kept(tmp_path: Path, key: MakeKey) -> None:
    folder = tmp_path / "c"
    _put(folder, *(Entry(key(i), ["x" * 3000, i]) for i in range(200)))
    content = bytearray((folder / "cache.db").read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    (folder / "cache.db").write_bytes(content)
    with closing(LocalBackend(folder)) as backend:
        found = backend.get([key(i).digest for i in range(200)])
        assert 150 < len(found) < 200
        assert all(found[key(i).digest].value[1] == i for i in range(200) if key(i).digest in found)


def test_a_writer_notices_that_the_file_was_set_aside(tmp_path: Path, key: MakeKey) -> None:
    with (
        closing(LocalBackend(tmp_path / "c")) as first,
        closing(LocalBackend(tmp_path / "c")) as second,
    ):
        first.put([Entry(key(1), 1)])
        second._set_aside()
        first.put([Entry(key(2), 2)])
        assert set(second.get([key(2).digest])) == {key(2).digest}


def test_a_newer_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    _put(tmp_path / "c")
    with _rows(tmp_path / "c") as rows:
        assert rows.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        rows.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StorageError, match=r"newer prunesearch .* upgrade prunesearch"):
        LocalBackend(tmp_path / "c")


def test_files_of_early_versions_are_read(tmp_path: Path) -> None:
    _put(tmp_path / "c")
    body = canonical_json({"preimage": KEY.preimage, "value": [[1, 2, 3]]})
    with _rows(tmp_path / "c") as rows:
        rows.execute(
            "UPDATE Cache SET value = ?, tag = NULL", (f"{checksum(KEY.digest, body)}\n{body}",)
        )
        rows.execute("PRAGMA user_version = 0")
    with closing(LocalBackend(tmp_path / "c")) as backend:
        assert backend.get([KEY.digest])[KEY.digest].value == [[1, 2, 3]]
        assert [(g.model, g.entries) for g in backend.groups()] == [("unknown", 1)]


def test_folders_that_cannot_be_trusted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="written by others"):
        LocalBackend(folder)
    assert (LocalBackend(tmp_path / "new").folder.stat().st_mode & 0o777) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(StorageError, match="chown it to yourself"):
        LocalBackend(tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr(location, "file_system", lambda path: "nfs4")
    with pytest.raises(StorageError, match=r"network file system \(nfs4\)"):
        LocalBackend(tmp_path / "new")


def test_the_file_system_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert location.file_system(Path("/proc")) == "proc"
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / /net/my\\040home rw - nfs4 host:/home rw\n"
        "3 2 0:8 / /net/my\\040home/local rw - tmpfs tmpfs rw\n"
    )
    table = tmp_path / "mountinfo"
    table.write_text(mounts)
    monkeypatch.setattr(location, "_MOUNTS", table)
    found = [
        location.file_system(Path(p))
        for p in ("/x", "/net/my home/cache", "/net/my home/local/c", "/net/my homes")
    ]
    assert found == ["ext4", "nfs4", "tmpfs", "ext4"]


def test_a_full_disk_is_said_and_earlier_entries_stay(
    tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LocalBackend(tmp_path / "c")) as backend:
        backend.put([Entry(KEY, 1)])

        def full(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(backend._cache, "set", full)
        with pytest.raises(UnavailableError, match="disk is full; free space and run again"):
            backend.put([Entry(key(2), 2)])
        assert backend.get([KEY.digest])[KEY.digest].value == 1


def test_a_folder_that_became_read_only_can_be_read(tmp_path: Path) -> None:
    """As nobody: root may write everywhere."""
    _put(tmp_path / "c")
    found = DiskFile(tmp_path / "c")
    (tmp_path / "c" / "cache.db").chmod(0o400)
    (tmp_path / "c").chmod(0o500)
    assert [entry.value for _, entry in found.scan() if entry] == [[[1.5, 2.5, 3]]]
    (tmp_path / "c").chmod(0o700)


def test_unusable_places_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(StorageError, match="cannot"):
            check_writable(place)
    check_writable(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_places_are_read() -> None:
    assert CacheLocation.parse("some/dir") == CacheLocation(Path("some/dir"))
    assert CacheLocation.parse("postgresql+psycopg://me@h/d") == CacheLocation(
        Path("storage/cache"), "postgresql+psycopg://me@h/d"
    )
    assert CacheLocation.parse("/fast,postgresql+psycopg://me:x@h/d").folder == Path("/fast")
    assert (
        str(CacheLocation.parse("/fast,postgresql+psycopg://me:x@h/d"))
        == "/fast,postgresql+psycopg://me:***@h/d"
    )
    with pytest.raises(StorageError, match="`cache` 'mysql://h/d': unknown database 'mysql'"):
        CacheLocation.parse("mysql://h/d")


def _damage(file: Path, *shares: float) -> None:
    """Overwrite pages at these places of a file."""
    content = bytearray(file.read_bytes())
    for share in shares:
        at = int(len(content) * share) // 4096 * 4096
        content[at : at + 4096] = b"\xff" * 4096
    file.write_bytes(content)


def _die_while_salvaging(folder: Path) -> None:
    child = os.fork()
    if child == 0:
        failpoints.enable(lambda point, _: os._exit(9) if point == "mid_salvage" else None)
        with closing(LocalBackend(folder)) as backend:
            backend.rebuild()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_kill_while_a_damaged_file_is_copied_loses_nothing(
    tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_backend, "_BATCH", 10)
    location = CacheLocation(tmp_path / "c")
    _put(location.folder, *(Entry(key(i), [i]) for i in range(100)))
    for _ in range(2):
        _die_while_salvaging(location.folder)
    (quarantined,) = (location.folder / "quarantine").iterdir()
    for swept in (0, 1):
        os.utime(quarantined, (0, 0))
        assert sweep(location, time.time() - 3600).quarantined == swept, "it is copied first"
    with closing(LocalBackend(location.folder)) as backend:
        assert len(backend.get(key(i).digest for i in range(100))) == 100
    _die_while_salvaging(location.folder)
    with reading(location) as (file,):
        assert len(file) == 100, "those that only read see everything too"


def test_a_kill_between_a_file_and_its_journal_loses_nothing(tmp_path: Path, key: MakeKey) -> None:
    folder = tmp_path / "c"
    _put(folder, *(Entry(key(i), [i]) for i in range(10)))
    quarantined = folder / "quarantine" / "20260101T000000"
    quarantined.mkdir(parents=True)
    (folder / "cache.db").replace(quarantined / "cache.db")
    (folder / "cache.db-journal").write_bytes(b"")
    with closing(LocalBackend(folder)) as backend:
        assert len(backend) == 10
    assert (quarantined / "cache.db-journal").exists()


def test_what_lies_between_damaged_pages_is_kept(tmp_path: Path, key: MakeKey) -> None:
    folder = tmp_path / "c"
    _put(folder, *(Entry(key(i), ["x" * 3000, i]) for i in range(200)))
    _damage(folder / "cache.db", 0.3, 0.7)
    with closing(LocalBackend(folder)) as backend:
        backend.rebuild()
        assert 190 < len(backend) < 200


def test_what_another_has_stored_in_the_place_of_a_damaged_entry_stays(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    with closing(LocalBackend(tmp_path / "c")) as local, closing(SharedBackend(url)) as shared:
        for backend in (local, shared):
            backend.put([Entry(KEY, [5])])  # by now: it was damaged when it was read
            assert backend.take_out([KEY.digest])[KEY.digest].value == [5]
            assert backend.get([KEY.digest])[KEY.digest].value == [5]
            assert backend.damaged == 0
            assert backend.read_incidents() == []


def test_a_writer_whose_file_is_rebuilt_by_another_opens_the_new_one(
    tmp_path: Path, key: MakeKey
) -> None:
    with (
        closing(LocalBackend(tmp_path / "c")) as writer,
        closing(LocalBackend(tmp_path / "c")) as other,
    ):
        set_entry = writer._cache.set

        def set_after_the_rebuild(*words: object, **names: object) -> object:
            other._cache.close()
            other._set_aside()  # while the writer's transaction is under way
            return set_entry(*words, **names)

        writer.put([Entry(key(1), 1)])
        writer._cache.set = set_after_the_rebuild
        writer.put([Entry(key(2), 2)])
        other.rebuild()
        writer.put([Entry(key(3), 3)])
        assert len(other.get(key(i).digest for i in (1, 2, 3))) == 3
