"""The benchmark of the source paper: its documents, its fitness, and what is measured together."""

from pathlib import Path

import pytest

from benchmarks.paper_parts import documents
from benchmarks.paper_parts.measuring import TOGETHER, Job, Measured, _groups, joined
from benchmarks.paper_parts.methods import METHODS
from prunesearch.analysis.intervals import standard_error
from prunesearch.candidate import LayerSubset
from tests.support.texts import hellaswag_rows, write_lines


def job(dropped: str) -> Job:
    return Job(dropped, healed=False)


def shared_blocks(group: list[Job], n_layers: int) -> int:
    """Number of block runs that the candidates of a group save."""
    paths = [LayerSubset.parse(one.dropped, n_layers).kept for one in group]
    runs = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    return sum(map(len, paths)) - len(runs)


def test_candidates_that_begin_alike_are_measured_together() -> None:
    n_layers = 40
    late = [job(f"{block},39") for block in range(20, 20 + TOGETHER)]
    early = [job(f"0,{block}") for block in range(20, 20 + TOGETHER)]
    mixed = [one for pair in zip(late, early, strict=True) for one in pair]
    groups = _groups([job("none"), *mixed], n_layers, workers=1)
    # All are there once.
    assert sorted(one.dropped for group in groups for one in group) == sorted(
        one.dropped for one in [job("none"), *mixed]
    )
    assert max(map(len, groups)) == TOGETHER
    # In the order in which they came, the groups would share less.
    as_they_came = [job("none"), *mixed]
    starts = range(0, len(as_they_came), TOGETHER)
    before = sum(shared_blocks(as_they_came[at : at + TOGETHER], n_layers) for at in starts)
    after = sum(shared_blocks(group, n_layers) for group in groups)
    assert after > before
    # Several processes have something to do also with few candidates.
    assert [len(group) for group in _groups(early[:6], n_layers, workers=4)] == [2, 2, 2]


def test_the_held_out_documents_come_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART", 3)
    lines = [f'{{"document": {number}}}\n' for number in range(12)]
    everything = tmp_path / "all.jsonl"
    everything.write_text("".join(lines))
    search, parts = documents.split(everything, 2, 8, tmp_path)
    assert search.read_text() == "".join(lines[:2])
    assert [part.name for part in parts] == [
        "held-out-2-4.jsonl",
        "held-out-5-7.jsonl",
        "held-out-8-9.jsonl",
    ]
    assert "".join(part.read_text() for part in parts) == "".join(lines[2:10])
    # More documents leave the parts that are full as they are, so their measurements hold.
    _, more = documents.split(everything, 2, 10, tmp_path)
    assert more[:2] == parts[:2]


def test_a_folder_keeps_to_the_documents_of_its_searches(tmp_path: Path) -> None:
    everything = write_lines(tmp_path / "all.jsonl", hellaswag_rows(10))
    others = write_lines(tmp_path / "others.jsonl", hellaswag_rows(12)[2:])
    folder = tmp_path / "run"
    folder.mkdir()
    documents.split(everything, 4, 2, folder)
    # The winners of these searches would be scored on documents that they have seen.
    for path, search in ((everything, 2), (others, 4)):
        with pytest.raises(SystemExit, match=r"searched on search-4\.jsonl, and other"):
            documents.split(path, search, 2, folder)
    searched, _ = documents.split(everything, 4, 6, folder)
    assert [path.name for path in folder.glob("search-*")] == [searched.name]


def test_the_parts_of_a_measurement_make_one() -> None:
    first = Measured("1", True, 0.5, 0.1, (1.0, 0.0), 10, 20, 3.0, (2.0, 1.0))
    second = Measured("1", True, 1.0, 0.0, (1.0, 1.0, 1.0), 10, 20, 3.0, (2.0, 1.0))
    whole = joined([first, second])
    assert whole.right == (1.0, 0.0, 1.0, 1.0, 1.0)
    assert whole.acc_norm == pytest.approx(0.8)
    assert whole.stderr == pytest.approx(standard_error(whole.right))
    assert (whole.dropped, whole.healed, whole.params, whole.bytes) == ("1", True, 10, 20)
    assert (whole.heal_seconds, whole.heal_loss) == (3.0, (2.0, 1.0))


@pytest.mark.parametrize("name", [name for name in METHODS if name.endswith("-kl")])
def test_a_method_by_kl_differs_in_its_fitness_only(name: str) -> None:
    by_accuracy, by_kl = METHODS[name.removesuffix("-kl")], METHODS[name]
    assert by_kl.by_kl
    assert not by_accuracy.by_kl
    assert (by_kl.sampler, by_kl.settings) == (by_accuracy.sampler, by_accuracy.settings)
