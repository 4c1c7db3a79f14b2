"""Puts several jobs into one pass, and splits its states again.

A GPU computes a small model faster than a process can start its kernels, so a pass over few tokens
takes as long as one over many. Jobs with sequences of equal length and with the same candidates
share a pass. What a chunk is, and under which key its results are stored, does not depend on it.

Shapes: B sequences of L tokens, E hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import Batch, Rows

Job = tuple[Batch, Sequence[LayerSubset]]
"""The input of a pass, and the candidates that it is run for."""


@dataclass(frozen=True)
class MergedPass:
    """A pass over the sequences of one or more jobs.

    Attributes:
        jobs: numbers of the jobs, one after the other.
        batch: their sequences.
        sizes: number of sequences of each job.
        candidates: candidates of each of the jobs.
    """

    jobs: tuple[int, ...]
    batch: Batch
    sizes: tuple[int, ...]
    candidates: Sequence[LayerSubset]

    def split(
        self, states: Sequence[tuple[LayerSubset, torch.Tensor]]
    ) -> Iterator[tuple[int, LayerSubset, torch.Tensor]]:
        """Yield job number, candidate and its state, shape (B, L, E), job by job.

        Args:
            states: candidates and their states after the pass.
        """
        first = 0
        for job, size in zip(self.jobs, self.sizes, strict=True):
            for candidate, state_BLE in states:
                yield job, candidate, state_BLE[first : first + size]
            first += size

    def apart(self, jobs: Sequence[Job]) -> list["MergedPass"]:
        """Return a pass for each of the jobs.

        Args:
            jobs: all jobs.
        """
        return [alone(job, jobs[job]) for job in self.jobs]


def alone(number: int, job: Job) -> MergedPass:
    """Return the pass of a single job."""
    batch, candidates = job
    return MergedPass((number,), batch, (len(batch.ids),), candidates)


def merge(
    jobs: Sequence[Job], most_tokens: int, most_candidates: Callable[[Batch], int]
) -> Iterator[MergedPass]:
    """Put neighbouring jobs into passes.

    Args:
        jobs: all jobs, in order.
        most_tokens: tokens of a pass with several jobs. 0: every job has a pass of its own.
        most_candidates: function that returns how many candidates' states of a batch fit in memory.
            A pass with several jobs holds the states of all candidates.
    """
    waiting: list[int] = []
    for number in range(len(jobs)):
        if waiting and not _may_join(jobs, waiting, number, most_tokens, most_candidates):
            yield _joined(jobs, waiting)
            waiting = []
        waiting.append(number)
    if waiting:
        yield _joined(jobs, waiting)


def _may_join(
    jobs: Sequence[Job],
    members: Sequence[int],
    number: int,
    most_tokens: int,
    most_candidates: Callable[[Batch], int],
) -> bool:
    """Return whether a job can be put into a pass with others."""
    first_batch, first_candidates = jobs[members[0]]
    batch, candidates = jobs[number]
    if not isinstance(first_batch, Rows) or not isinstance(batch, Rows):
        return False
    if batch.ids.shape[1] != first_batch.ids.shape[1] or batch.positions is not None:
        return False
    if list(candidates) != list(first_candidates):
        return False
    joined = _rows(jobs, [*members, number])
    return joined.tokens <= most_tokens and len(set(candidates)) <= most_candidates(joined)


def _joined(jobs: Sequence[Job], members: Sequence[int]) -> MergedPass:
    """Return the pass of jobs."""
    if len(members) == 1:
        return alone(members[0], jobs[members[0]])
    sizes = tuple(len(jobs[member][0].ids) for member in members)
    return MergedPass(tuple(members), _rows(jobs, members), sizes, jobs[members[0]][1])


def _rows(jobs: Sequence[Job], members: Sequence[int]) -> Rows:
    """Return the sequences of jobs below one another."""
    return Rows(torch.cat([jobs[member][0].ids for member in members]))
