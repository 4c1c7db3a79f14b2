"""Worker processes: the same numbers, whatever dies."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.errors import RunError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.stretches import split
from prunesearch.evaluation.worker import Content
from prunesearch.evaluation.worker_pool import WorkerPool
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from prunesearch.objectives.base import Chunk, ChunkResult, ChunkWork, Work
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from tests.support.models import N_LAYERS
from tests.support.toy_objective import (
    DIES,
    DIES_ONCE,
    NO_DATA,
    NO_MEMORY,
    SLOW,
    TOYS,
    WELL,
    build_nothing,
    build_other_once,
    build_toy,
    chunks,
    toys,
)

WINDOWS = torch.arange(6 * 512).view(6, 512) % 264  # three chunks
CANDIDATES = [LayerSubset.of(N_LAYERS, [i, j]) for i in range(3) for j in range(i + 1, N_LAYERS)]


def build_real(folder: str, number: int) -> tuple[CalibrationObjective, Forward, str]:
    """Workers stream their weights; the process that they are compared with has them in memory."""
    torch.set_num_threads(1)
    loaded = open_streamed(folder, device="cpu")
    return (
        CalibrationObjective(loaded, WINDOWS, KL()),
        Forward(loaded.model, loaded.layers),
        loaded.fingerprint,
    )


def values(scored: list[ChunkResult]) -> dict[tuple[int, LayerSubset], float]:
    found = {}
    for result in scored:
        if result.error is None:
            found[result.chunk.index, result.candidate] = numbers(result)[0]
    return found


def numbers(result: ChunkResult) -> list[float]:
    """The sum of a candidate's dropped blocks, and the process that scored it."""
    (row,) = result.rows
    assert not isinstance(row, str)
    return row


def expected(work: Work) -> dict[tuple[int, LayerSubset], float]:
    sums = {}
    for piece in work:
        for candidate in piece.candidates:
            sums[piece.chunk.index, candidate] = float(sum(candidate.dropped))
    return sums


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[WorkerPool]:
    with WorkerPool(functools.partial(build_toy, folder), 2, TOYS) as pool:
        yield pool


def test_two_workers_give_the_numbers_of_one_process(tiny_folder: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    build = functools.partial(build_real, str(tiny_folder))
    objective, _, fingerprint = build(0)
    loaded: LoadedModel = load(str(tiny_folder), device="cpu")
    found: list[Any] = []
    try:
        with WorkerPool(build, 2, Content.of(fingerprint, objective)) as pool:
            for scorer in (None, pool):
                with EvaluationCache(tmp_path / str(len(found))) as cache:
                    engine = LocalEngine(loaded, objective, cache, scorer)
                    found.append(engine.evaluate_now(CANDIDATES))
    finally:
        torch.set_num_threads(threads)
    alone, together = found
    assert [e.candidate for e in together] == CANDIDATES
    assert [e.metrics for e in together] == [e.metrics for e in alone]
    assert all(e.failure is None and not e.cached for e in together)


def test_both_work_and_results_come_one_by_one(pool: WorkerPool) -> None:
    work = chunks(toys(*[SLOW] * 8))
    start = time.monotonic()
    arrived = [(time.monotonic() - start, scored) for scored in pool.score(work, never)]
    assert values([scored for _, scored in arrived]) == expected(work)
    assert len({numbers(scored)[1] for _, scored in arrived}) == 2, "processes"
    times = [at for at, _ in arrived[2:]]
    assert times[-1] - times[0] > 0.5, "not all at the end"


def test_a_worker_that_is_killed_is_started_again_for_what_is_left(pool: WorkerPool) -> None:
    before = pool.restarts
    work = chunks(toys(WELL, WELL, DIES_ONCE, WELL, WELL, WELL), toys(*[WELL] * 6))
    scored = list(pool.score(work, never))
    assert pool.restarts == before + 1
    assert values(scored) == expected(work)
    assert len(scored) == len(expected(work)), "nothing is scored twice"


def test_a_worker_that_is_killed_from_outside_is_started_again(pool: WorkerPool) -> None:
    before = pool.restarts
    work = chunks(toys(*[SLOW] * 6))
    scored: list[ChunkResult] = []
    for at, found in enumerate(pool.score(work, never)):
        scored.append(found)
        if at == 1:
            os.kill(int(numbers(found)[1]), signal.SIGKILL)
    assert values(scored) == expected(work)
    assert pool.restarts == before + 1


def test_one_that_dies_again_and_again_is_one_line_and_the_rest_is_kept(pool: WorkerPool) -> None:
    before = pool.restarts
    work = chunks(toys(*[WELL] * 5, DIES))
    scored = []
    with pytest.raises(
        RunError, match=r"worker \d died 3 times over the same candidates.*fewer `workers`"
    ) as raised:
        for found in pool.score(work, never):
            scored.append(found)
    assert "\n" not in str(raised.value)
    assert len(values(scored)) == 5
    assert pool.restarts == before + 2
    again = chunks(toys(*[WELL] * 4))
    assert values(list(pool.score(again, never))) == expected(again), "the pool is still of use"


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [(NO_MEMORY, MemoryError, "no room"), (NO_DATA, RunError, "the data went away")],
)
def test_what_a_share_fails_of_is_heard_when_the_others_are_done(
    pool: WorkerPool, act: int, kind: type[Exception], message: str
) -> None:
    before = pool.restarts
    work = chunks(toys(act, WELL, SLOW, SLOW))
    scored = []
    with pytest.raises(kind, match=message):
        for found in pool.score(work, never):
            scored.append(found)
    assert len(values(scored)) == 2
    assert pool.restarts == before


def test_stopping_leaves_at_the_next_block_and_keeps_what_is_done(pool: WorkerPool) -> None:
    scored: list[ChunkResult] = []
    with pytest.raises(EvaluationCancelled):
        for found in pool.score(chunks(toys(*[SLOW] * 20)), lambda: len(scored) > 2):
            scored.append(found)
    assert 2 < len(scored) < 8
    assert len(list(pool.score(chunks(toys(WELL, WELL)), never))) == 2


def test_results_that_nobody_wants_any_more_do_not_get_into_the_next_generation(
    pool: WorkerPool,
) -> None:
    first = pool.score(chunks(toys(*[SLOW] * 8)), never)
    assert len(list(islice(first, 1))) == 1
    first.close()  # type: ignore[attr-defined]
    work = chunks(toys(WELL, WELL, WELL)[1:])
    assert values(list(pool.score(work, never))) == expected(work)


def test_a_worker_that_cannot_start_says_why() -> None:
    with (
        WorkerPool(build_nothing, 1, TOYS) as pool,
        pytest.raises(RunError, match="worker 0 cannot start: the model is missing"),
    ):
        list(pool.score(chunks(toys(WELL)), never))


def build_changing(
    folder: str, text: Path, number: int
) -> tuple[CalibrationObjective, Forward, str]:
    """Reads model and text from disk, as a worker of a search does."""
    torch.set_num_threads(1)
    loaded = load(folder, device="cpu")
    windows = token_windows(str(text), loaded.tokenizer, 64, 32)
    return (
        CalibrationObjective(loaded, windows, KL()),
        Forward(loaded.model, loaded.layers),
        loaded.fingerprint,
    )


def test_a_worker_that_reads_something_else_is_refused_and_nothing_is_stored(
    make_model: Callable[..., Path], prose: Path, tmp_path: Path
) -> None:
    folder, text = make_model(), tmp_path / "text.txt"
    text.write_text(prose.read_text())
    build = functools.partial(build_changing, str(folder), text)
    objective, _, fingerprint = build(0)
    loaded = load(str(folder), device="cpu")
    text.write_text(prose.read_text().replace("ships", "boats"))
    with (
        EvaluationCache(tmp_path / "cache") as cache,
        WorkerPool(build, 1, Content.of(fingerprint, objective)) as pool,
        pytest.raises(
            RunError,
            match=r"worker 0 found other content on disk.*calibration text.*run the command again",
        ),
    ):
        LocalEngine(loaded, objective, cache, pool).evaluate_now(CANDIDATES[:2])
    with EvaluationCache(tmp_path / "cache") as cache:
        engine = LocalEngine(loaded, objective, cache)
        assert not any(evaluation.cached for evaluation in engine.evaluate_now(CANDIDATES[:2]))


def test_a_worker_that_is_started_again_after_a_change_is_refused(folder: Path) -> None:
    """The first worker is right; the one that replaces it finds another model."""
    mark = folder / "changed"
    mark.unlink(missing_ok=True)
    work = chunks(toys(WELL, WELL, DIES_ONCE, WELL))
    (folder / work[0].candidates[2].text).unlink(missing_ok=True)
    scored = []
    with (
        WorkerPool(functools.partial(build_other_once, folder), 1, TOYS) as pool,
        pytest.raises(RunError, match="weights or config of the model changed since the start"),
    ):
        for found in pool.score(work, never):
            scored.append(found)
    assert len(scored) < 4


def test_neighbours_stay_together_and_few_candidates_make_work_for_all() -> None:
    work = [ChunkWork(Chunk(i, {}, 1), CANDIDATES) for i in range(2)]
    shares = split(work, 3)
    handed: list[tuple[int, LayerSubset]] = []
    for share in shares:
        for piece in share:
            handed += [(piece.chunk.index, candidate) for candidate in piece.candidates]
    assert sorted(handed) == sorted((i, candidate) for i in range(2) for candidate in CANDIDATES)
    ordered = sorted(CANDIDATES, key=lambda c: c.path)
    for share in shares:
        for piece in share:
            at = ordered.index(piece.candidates[0])
            assert list(piece.candidates) == ordered[at : at + len(piece.candidates)]
    alone = split([ChunkWork(Chunk(i, {}, 1), CANDIDATES[:1]) for i in range(4)], 2)
    assert [len(share) for share in alone] == [2, 2]
    assert split([], 2) == [[], []]


SCRIPT = """
import functools, signal, sys, time
from pathlib import Path
from prunesearch.evaluation.worker_pool import WorkerPool
from tests.support.toy_objective import SLOW, TOYS, build_toy, chunks, toys

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # whatever the shell does with them, as under nohup
        signal.signal(number, signal.default_int_handler)
    with WorkerPool(functools.partial(build_toy, Path(sys.argv[1])), 1, TOYS) as pool:
        print(*(member._process.pid for member in pool._members), flush=True)
        try:
            list(pool.score(chunks(*[toys(*[SLOW] * 20)] * 10), lambda: False))
        except KeyboardInterrupt:
            print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    _wait_for(lambda: (tmp_path / "busy").exists() or parent.poll() is not None)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as Ctrl-C in a terminal, which the workers get too
    else:
        parent.send_signal(number)
    out, err = parent.communicate(timeout=30)
    assert out == ("" if number == signal.SIGKILL else "stopped\n")
    assert err == ""
    assert len(workers) == 1
    _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
