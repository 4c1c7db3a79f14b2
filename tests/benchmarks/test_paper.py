"""The benchmark of the source paper: which candidates are measured together."""

from benchmarks.paper_parts.measuring import TOGETHER, Job, _groups
from prunesearch.candidate import LayerSubset


def job(dropped: str, healed: bool = False) -> Job:
    return Job(dropped, healed)


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
    groups = _groups([job("none"), *mixed, job("1", healed=True)], n_layers, workers=1)
    # All are there once, and a healed one is alone.
    assert sorted(one.dropped for group in groups for one in group) == sorted(
        one.dropped for one in [job("none"), *mixed, job("1")]
    )
    assert groups[-1] == [job("1", healed=True)]
    assert max(map(len, groups)) == TOGETHER
    # In the order in which they came, the groups would share less.
    as_they_came = [job("none"), *mixed]
    starts = range(0, len(as_they_came), TOGETHER)
    before = sum(shared_blocks(as_they_came[at : at + TOGETHER], n_layers) for at in starts)
    after = sum(shared_blocks(group, n_layers) for group in groups[:-1])
    assert after > before
    # Several processes have something to do also with few candidates.
    assert [len(group) for group in _groups(early[:6], n_layers, workers=4)] == [2, 2, 2]
