"""Keys name what they must; the disk store serves what was put or nothing."""

import pickle
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesearch.errors import CorruptEntryError, RunError, StorageError
from prunesearch.store.disk import SETTINGS, EvaluationStore, check_writable
from prunesearch.store.keys import canonical_json, evaluation_key, latency_key

KEY = evaluation_key("f" * 64, "blocks/6:1", {"tokens": "t"})


def test_every_part_of_a_key_counts() -> None:
    base = ("f", "blocks/6:1", {"tokens": "t", "numerics": {"dtype": "bfloat16"}, "version": 1, "kind": "calibration"})
    changed = [
        ("g", base[1], base[2]),
        (base[0], "blocks/6:2", base[2]),
        (base[0], "blocks/7:1", base[2]),
        *((base[0], base[1], base[2] | {field: "other"}) for field in base[2]),
    ]
    digests = {evaluation_key(*parts).digest for parts in [base, *changed]}
    assert len(digests) == 1 + len(changed)
    assert evaluation_key(*base) == evaluation_key(base[0], base[1], dict(reversed(base[2].items())))


def test_latencies_are_kept_per_machine_and_precision() -> None:
    keys = {latency_key("f", m, {"dtype": d}, t).digest for m in "ab" for d in "cd" for t in (1, 2)}
    assert len(keys) == 8


def test_json_that_is_not_portable_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=json_values)
@settings(max_examples=50, deadline=None)
def test_what_is_put_is_got_in_a_new_process_too(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    folder = tmp_path_factory.mktemp("cache")
    with EvaluationStore(folder) as store:
        store.put(KEY, value)
    with EvaluationStore(folder) as store:
        assert store.get(KEY) == value
        assert len(store) == 1


def _rows(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "cache.db")


def test_a_changed_value_is_detected_and_recomputed(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "c") as store:
        store.put(KEY, [[1.5, 2.5, 3]])
        with _rows(tmp_path / "c") as rows:
            (value,) = rows.execute("SELECT value FROM Cache").fetchone()
            rows.execute("UPDATE Cache SET value = ?", (value.replace("1.5", "1.6"),))
        with pytest.raises(CorruptEntryError, match="checksum"):
            store.get(KEY)
        store.discard(KEY)
        assert store.get(KEY) is None


def test_a_row_under_anothers_key_is_detected(tmp_path: Path) -> None:
    other = evaluation_key("f" * 64, "blocks/6:2", {"tokens": "t"})
    with EvaluationStore(tmp_path / "c") as store:
        store.put(KEY, 1)
        with _rows(tmp_path / "c") as rows:
            rows.execute("UPDATE Cache SET key = ?", (other.digest,))
        with pytest.raises(CorruptEntryError):
            store.get(other)


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle from the cache was run",))


@pytest.mark.parametrize("columns", [{"mode": 4, "value": pickle.dumps(Trap())}, {"filename": "../../etc/hostname"}])
def test_pickles_and_file_rows_are_refused(tmp_path: Path, columns: dict[str, object]) -> None:
    with EvaluationStore(tmp_path / "c") as store:
        store.put(KEY, 1)
        with _rows(tmp_path / "c") as rows:
            for column, value in columns.items():
                rows.execute(f"UPDATE Cache SET {column} = ?", (value,))
        with pytest.raises(CorruptEntryError):
            store.get(KEY)


def test_settings_in_the_file_are_not_obeyed(tmp_path: Path) -> None:
    """A row size_limit=1 makes a plain diskcache drop everything at the next write."""
    with EvaluationStore(tmp_path / "c") as store:
        store.put(KEY, 1)
    with _rows(tmp_path / "c") as rows:
        rows.execute("UPDATE Settings SET value = 1 WHERE key = 'size_limit'")
        rows.execute("UPDATE Settings SET value = 'least-recently-stored' WHERE key = 'eviction_policy'")
        rows.execute("UPDATE Settings SET value = 10 WHERE key = 'cull_limit'")
    with EvaluationStore(tmp_path / "c") as store:
        for i in range(50):
            store.put(evaluation_key("f", f"blocks/6:{i}", {}), i)
        assert len(store) == 51
        assert {name: getattr(store._cache, name) for name in SETTINGS} == dict(SETTINGS)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="written by others"):
        EvaluationStore(folder)
    assert (EvaluationStore(tmp_path / "new").folder.stat().st_mode & 0o777) == 0o700


def test_a_full_disk_is_said_and_earlier_entries_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EvaluationStore(tmp_path / "c") as store:
        store.put(KEY, 1)

        def full(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store._cache, "set", full)
        with pytest.raises(RunError, match="disk is full; free space and run again"):
            store.put(evaluation_key("f", "blocks/6:2", {}), 2)
        assert store.get(KEY) == 1


def test_unusable_places_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(StorageError, match="cannot"):
            check_writable(place)
    check_writable(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(StorageError, match="give a path"):
        EvaluationStore("postgresql://x/y")
    (tmp_path / "c").mkdir(mode=0o700)
    (tmp_path / "c" / "cache.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="move the folder away"):
        EvaluationStore(tmp_path / "c")
