"""Jobs share a pass where they may, and nobody can tell from the numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import Batch, Rows
from prunesearch.execution.merged_passes import Job, merge
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.metrics.kl import KL
from tests.support.models import N_LAYERS, results_of

DENSE, FIRST, LAST = (LayerSubset.of(N_LAYERS, dropped) for dropped in ((), (1,), (4, 5)))
BOTH = [FIRST, LAST]


def rows(sequences: int, length: int = 8) -> Rows:
    return Rows(torch.arange(sequences * length).view(sequences, length) * 7 % 250 + 1)


def many(_: Batch) -> int:
    return 100


def numbers(jobs: Sequence[Job], tokens: int, candidates: int = 100) -> list[tuple[int, ...]]:
    return [merged.jobs for merged in merge(jobs, tokens, lambda _: candidates)]


def test_neighbours_of_one_length_with_the_same_candidates_share_a_pass() -> None:
    jobs: list[Job] = [(rows(2), BOTH), (rows(2), BOTH), (rows(2), BOTH), (rows(1), BOTH)]
    assert numbers(jobs, 32) == [(0, 1), (2, 3)]
    assert numbers(jobs, 1000) == [(0, 1, 2, 3)]
    assert numbers(jobs, 0) == [(0,), (1,), (2,), (3,)]
    assert numbers([], 1000) == []


def test_other_lengths_candidates_and_too_little_memory_keep_jobs_apart() -> None:
    assert numbers([(rows(1), BOTH), (rows(1, 9), BOTH)], 1000) == [(0,), (1,)]
    assert numbers([(rows(1), BOTH), (rows(1), [FIRST])], 1000) == [(0,), (1,)]
    assert numbers([(rows(1), BOTH), (rows(1), BOTH)], 1000, candidates=1) == [(0,), (1,)]


def test_states_come_job_by_job() -> None:
    jobs: list[Job] = [(rows(2), BOTH), (rows(1), BOTH)]
    (merged,) = merge(jobs, 1000, many)
    states = [(FIRST, torch.arange(3)[:, None, None]), (LAST, torch.arange(3, 6)[:, None, None])]
    found = [(job, c, s.flatten().tolist()) for job, c, s in merged.split(states)]
    assert found == [(0, FIRST, [0, 1]), (0, LAST, [3, 4]), (1, FIRST, [2]), (1, LAST, [5])]


def passes_of(forward: Forward, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that gets the tokens and the candidates of each pass."""
    seen: list[tuple[int, int]] = []
    original = forward._wave

    def noted(jobs: Any) -> Iterator[Any]:  # noqa: ANN401
        seen.extend((batch.tokens, len(candidates)) for _, batch, candidates in jobs)
        return original(jobs)

    monkeypatch.setattr(forward, "_wave", noted)
    return seen


def test_merged_passes_give_the_same_states(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [(rows(2), BOTH), (rows(3), BOTH)]
    apart = list(Forward(loaded.model, loaded.layers).run(jobs))
    forward = Forward(loaded.model, loaded.layers)
    forward.pass_tokens = 1000
    seen = passes_of(forward, monkeypatch)
    together = list(forward.run(jobs))
    assert seen == [(40, 2)]
    assert [(job, c) for job, c, _ in together] == [(job, c) for job, c, _ in apart]
    for (_, _, ours), (_, _, theirs) in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_chunks_keep_their_keys_and_numbers_in_merged_passes(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows_BL = rows(6).ids
    objective = CalibrationObjective(loaded, windows_BL, KL(), chunk_tokens=16)
    identities = [chunk.identity for chunk in objective.chunks]
    expected = results_of(loaded, objective, DENSE, *BOTH)
    monkeypatch.setattr(Forward, "_tokens_of_pass", lambda *_: 1000)
    merged = CalibrationObjective(loaded, windows_BL, KL(), chunk_tokens=16)
    found = results_of(loaded, merged, DENSE, *BOTH)
    assert [chunk.identity for chunk in merged.chunks] == identities
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def short_of_memory(
    forward: Forward, most: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, int]]:
    """Let passes run out of memory that have more tokens times candidates than `most`."""
    seen = passes_of(forward, monkeypatch)
    original = forward._wave

    def limited(jobs: Any) -> Iterator[Any]:  # noqa: ANN401
        finished = original(jobs)
        if any(batch.tokens * len(candidates) > most for _, batch, candidates in jobs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from finished

    monkeypatch.setattr(forward, "_wave", limited)
    return seen


def test_a_pass_that_runs_out_of_memory_goes_on_in_halves(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [(rows(2), [DENSE, *BOTH]), (rows(2), [DENSE, *BOTH])]
    expected = list(Forward(loaded.model, loaded.layers).run(jobs))
    forward = Forward(loaded.model, loaded.layers)
    forward.pass_tokens = 1000
    seen = short_of_memory(forward, 32, monkeypatch)
    found = list(forward.run(jobs))
    assert seen == [(32, 3), (16, 3), (16, 1), (16, 2), (16, 3), (16, 1), (16, 2)]
    assert [(job, c) for job, c, _ in found] == [(job, c) for job, c, _ in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(found, expected, strict=True))
    assert forward.pass_tokens == 16, "the next jobs are not merged that far"


def test_one_candidate_that_does_not_fit_fails(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Forward(loaded.model, loaded.layers)
    short_of_memory(forward, 1, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        list(forward.run([(rows(2), BOTH)]))


def test_what_did_not_fit_is_not_tried_again(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is chosen by what is free would be chosen again for each pass."""
    forward = Forward(loaded.model, loaded.layers, state_memory=None)
    list(forward.run([(rows(2), BOTH)]))
    before = forward.max_candidates(rows(2))
    short_of_memory(forward, 16, monkeypatch)
    list(forward.run([(rows(2), [DENSE, *BOTH])]))
    list(forward.run([(rows(2), BOTH)]))
    assert forward.max_candidates(rows(2)) <= before // 2
