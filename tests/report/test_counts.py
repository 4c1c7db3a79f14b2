"""Messages fit a count of 1 as well as larger counts."""

import pytest

from prunesearch.cache.maintenance import Swept
from prunesearch.cache.transfer import Imported
from prunesearch.report import cache
from prunesearch.report.work import WorkReport, worked


@pytest.mark.parametrize(
    ("count", "entries", "conflicts"),
    [
        (1, "1 entry", "1 disagrees with the value for its key"),
        (2, "2 entries", "2 disagree with the value for their key"),
    ],
)
def test_imports_that_contradict_the_cache(count: int, entries: str, conflicts: str) -> None:
    first, second = cache.imported(Imported(count, 0, count))
    assert first == f"read {entries}, 0 of them new"
    assert str(second).startswith(f"{conflicts}; the one that was computed first stays")


def test_what_was_removed_from_the_cache() -> None:
    assert cache.swept(Swept(1, 1, 1, 1, "2026-01-01")) == [
        "removed 1 entry stored before 2026-01-01, 1 lease that had run out, 1 trace of a dead "
        "process, 1 damaged file"
    ]
    assert cache.swept(Swept(2000, 0, 2, 3, "2026-01-01")) == [
        "removed 2,000 entries stored before 2026-01-01, 0 leases that had run out, 2 traces of "
        "dead processes, 3 damaged files"
    ]


def test_what_a_helper_has_scored() -> None:
    report = WorkReport("s", "model", "complete", trials=1, results=1, candidates=1)
    assert worked(report) == ["scored 1 result of 1 candidate here in 0 s; study s has its 1 trial"]
