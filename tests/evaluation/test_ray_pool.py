"""Workers of Ray: the same study as in one process, whatever dies. Ray is started once for all."""

import functools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
import ray

from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.config.recovery import HealRecipe, Tuning
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError, RunError
from prunesearch.evaluation import ray_cluster
from prunesearch.evaluation.ray_handle import WorkerResources
from prunesearch.evaluation.ray_pool import RayPool
from prunesearch.evaluation.ray_worker import CONTROL
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.models.loading import load
from prunesearch.objectives.base import ChunkResult
from prunesearch.pipeline.session import open_session
from prunesearch.recovery.ray_trial_worker import TrialModel
from prunesearch.recovery.ray_tuning import RayRunner
from prunesearch.recovery.tuning import LocalRunner, TrialRunner, tune
from tests.support import toy_objective
from tests.support.disturbed_studies import CHUNKS, Disturbed, InProcess, trials_of
from tests.support.fixed_cost import generation, scored, stand_in, values
from tests.support.models import N_LAYERS
from tests.support.paths import REPOSITORY
from tests.support.ray_nodes import Nodes, nodes
from tests.support.toy_objective import (
    DIES,
    NO_DATA,
    NO_MEMORY,
    SLOW,
    TOYS,
    WELL,
    build_nothing,
    build_toy,
    toys,
)

TRIALS = 24
CANDIDATE = LayerSubset.of(N_LAYERS, (1, 3))
Rows = list[tuple[str, list[float] | None, dict[str, float], dict[int, float]]]


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head with six CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        # Workers import the stand-ins of the tests.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), *sys.path]))
        with nodes(6) as started:
            yield started


@pytest.fixture(scope="module")
def pool(cluster: Nodes) -> Iterator[RayPool]:
    """Four workers."""
    build, content = stand_in(CHUNKS, 0.02)
    with RayPool(build, 4, content) as started:
        assert started.wait_for_all(60)
        yield started


@pytest.fixture(scope="module")
def toy_pool(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayPool]:
    """A worker that misbehaves."""
    build = functools.partial(build_toy, tmp_path_factory.mktemp("toys"))
    with RayPool(build, 1, TOYS) as started:
        yield started


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The study of one process."""
    return trials_of(InProcess(), tmp_path_factory.mktemp("alone"), TRIALS)


def test_a_killed_worker_costs_nothing_and_the_study_is_that_of_one_process(
    pool: RayPool, alone: str, tmp_path: Path
) -> None:
    before = pool.restarts

    def kill() -> None:
        os.kill(pool.places[0].pid, signal.SIGKILL)

    assert trials_of(Disturbed(pool, 9, kill), tmp_path, TRIALS) == alone
    assert pool.wait_for_all(60)
    # A worker that was killed while it had no stretch is noticed when it gets one.
    work = generation(24, CHUNKS)
    assert scored(list(pool.score(work, never))) == values(work)
    assert pool.restarts > before


def test_a_worker_that_was_started_again_while_it_was_idle_loads_its_model_anew(
    pool: RayPool,
) -> None:
    assert pool.wait_for_all(60)
    before = pool.restarts
    place = pool.places[0]
    os.kill(place.pid, signal.SIGKILL)
    # Wait until Ray has started it again: another process answers.
    member = next(each for each in pool._members if each.place == place)
    method = member._actor.place.options(concurrency_group=CONTROL, max_task_retries=-1)
    assert ray.get(method.remote(), timeout=60).pid != place.pid
    work = generation(24, CHUNKS)
    assert scored(list(pool.score(work, never))) == values(work)
    assert pool.restarts == before + 1


def test_each_result_comes_once_and_all_workers_score(pool: RayPool) -> None:
    work = generation(24, CHUNKS)
    results = list(pool.score(work, never))
    assert scored(results) == values(work)
    assert len(results) == len(values(work))
    assert len({place.pid for place in pool.places}) == 4


def test_a_removed_node_costs_only_its_unfinished_candidates(
    cluster: Nodes, alone: str, tmp_path: Path
) -> None:
    log, node = tmp_path / "log", cluster.add(2)
    build, content = stand_in(CHUNKS, 0.02, log)
    with RayPool(build, 2, content, WorkerResources(2)) as pool:
        assert pool.wait_for_all(60)
        assert len({place.node for place in pool.places}) == 2
        head = cluster.head

        def remove() -> None:
            cluster.remove(node, [place.pid for place in pool.places if place.node != head])

        disturbed = Disturbed(pool, 5, remove)
        assert trials_of(disturbed, tmp_path / "cache", TRIALS) == alone
        assert pool.restarts >= 1
    cluster.wait_until_gone(node)
    # Only the stretch that was under way on the removed node is scored twice.
    lines = [line.rpartition(" ")[0] for line in log.read_text().splitlines()]
    assert len(lines) - len(set(lines)) <= 3


def test_candidates_over_which_workers_die_are_one_line_and_the_rest_is_kept(
    toy_pool: RayPool,
) -> None:
    found = []
    with pytest.raises(RunError, match=r"workers died 3 times over the same candidates") as raised:
        for result in toy_pool.score(toy_objective.chunks(toys(WELL, WELL, DIES)), never):
            found.append(result)
    assert "\n" not in str(raised.value)
    assert len(found) == 2
    again = toy_objective.chunks(toys(WELL, WELL))
    assert len(list(toy_pool.score(again, never))) == 2, "the pool is still of use"


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [(NO_MEMORY, MemoryError, "no room"), (NO_DATA, RunError, "the data went away")],
)
def test_the_failure_of_a_stretch_is_raised_when_the_others_are_done(
    toy_pool: RayPool, act: int, kind: type[Exception], message: str
) -> None:
    found = []
    with pytest.raises(kind, match=message):
        for result in toy_pool.score(toy_objective.chunks(toys(act, WELL, WELL)), never):
            found.append(result)
    assert len(found) == 2


def test_stopping_ends_a_pass_at_its_next_block_and_keeps_what_is_done(toy_pool: RayPool) -> None:
    found: list[ChunkResult] = []
    with pytest.raises(EvaluationCancelled):
        for result in toy_pool.score(
            toy_objective.chunks(toys(*[SLOW] * 20)), lambda: len(found) > 2
        ):
            found.append(result)
    assert 2 < len(found) < 6
    unwanted = toy_pool.score(toy_objective.chunks(toys(*[SLOW] * 9)), never)
    next(unwanted)
    unwanted.close()  # type: ignore[attr-defined]
    assert len(list(toy_pool.score(toy_objective.chunks(toys(WELL)), never))) == 1


def test_a_worker_without_the_model_or_with_another_one_names_its_node(cluster: Nodes) -> None:
    host = socket.gethostname()
    start = rf"worker 0 on node {host} "
    build, content = stand_in(CHUNKS, 0)
    work = generation(1, 1)
    with (
        RayPool(build_nothing, 1, content) as pool,
        pytest.raises(RunError, match=start + "cannot start: the model is missing"),
    ):
        list(pool.score(work, never))
    other = content._replace(data="0123456789abcdef")
    difference = (
        rf"has other content than this process \(calibration text or task data: digest "
        rf"{content.data[:12]} there, 0123456789ab here\): .*copy the same model and data"
    )
    with RayPool(build, 1, other) as pool, pytest.raises(RunError, match=start + difference):
        list(pool.score(work, never))


def test_a_cluster_without_room_says_what_it_has(cluster: Nodes) -> None:
    build, content = stand_in(CHUNKS, 0)
    with (
        RayPool(build, 1, content, WorkerResources(1, 2), room_seconds=0.3) as pool,
        pytest.raises(
            RunError,
            match=r"has had room for a worker of 1 CPU and 2 GPUs for 0 s: it has 1 node with 6 CPUs and "
            r"0 GPUs .*give less `gpus_per_worker`",
        ),
    ):
        list(pool.score(generation(1, 1), never))


def test_workers_that_never_have_room_here_are_refused_at_once(cluster: Nodes) -> None:
    ray_cluster.check_fits(3, 2, 0)
    for workers, cpus, gpus in ((4, 2, 0.0), (1, 1, 1.0)):
        with pytest.raises(InputError, match="have no room on this machine: Ray has 6 CPUs and 0"):
            ray_cluster.check_fits(workers, cpus, gpus)


def test_a_session_with_ray_scores_the_numbers_of_this_process(
    cluster: Nodes, tiny_folder: Path, prose: Path, tmp_path: Path
) -> None:
    recipe = Recipe(model=str(tiny_folder), drop="2", calibration=str(prose), tokens=128, window=64)
    options = RunOptions(cache=str(tmp_path / "local"), storage=f"sqlite:///{tmp_path}/study.db")
    placed = RunOptions(
        cache=str(tmp_path / "ray"), storage=options.storage, engine="ray", ray_address="auto"
    )
    found = []
    for given in (options, placed):
        with open_session(recipe, given) as session:
            space = session.space_of(recipe.search)
            candidates = [space.with_units([0, other]) for other in (1, 2, 3)]
            found.append(session.engine.evaluate_now(candidates))
    here, there = found
    assert [each.metrics for each in there] == [each.metrics for each in here]
    assert not any(each.cached or each.failure for each in there)
    assert ray.is_initialized(), "a connection of the program is left open"


def tuned(runner: TrialRunner, folder: Path, model: TrialModel, recipe: HealRecipe) -> Rows:
    """A tuning study of two rates, the second of which is hopeless. Returns its trials."""
    wanted = Tuning(trials=3, steps=8, batch_size=(2,), rank=(2,), learning_rate=(1e-7, 3e-2))
    found = tune(
        model.loaded, CANDIDATE, recipe, wanted, f"sqlite:///{folder}/study.db",
        run_folders=model.run_folders, references=model.references, runner=runner,
    )  # fmt: skip
    study = optuna.load_study(study_name=found.study, storage=f"sqlite:///{folder}/study.db")
    return [(t.state.name, t.values, t.params, t.intermediate_values) for t in study.trials]


def trial_model(tiny: Path, folder: Path) -> TrialModel:
    return TrialModel(load(str(tiny), device="cpu"), folder / "references", folder / "runs")


def test_trials_of_a_tuning_are_pruned_in_workers_as_in_one_process(
    cluster: Nodes, tiny_folder: Path, prose: Path, tmp_path: Path
) -> None:
    recipe = HealRecipe(
        data=str(prose), held_out_tokens=64, window=32, batch_size=2, loss="mix", kl_top=8, seed=1
    )
    here = trial_model(tiny_folder, tmp_path / "here")
    with RayRunner(
        functools.partial(trial_model, tiny_folder, tmp_path / "there"), 1, WorkerResources()
    ) as runner:
        (tmp_path / "ray").mkdir()
        there = tuned(runner, tmp_path / "ray", here, recipe)
    assert there == tuned(LocalRunner(here.references), tmp_path, here, recipe)
    assert {row[0] for row in there} == {"COMPLETE", "PRUNED"}
    assert list((tmp_path / "there" / "runs").glob("*/*")), "the workers have folders of their own"


SCRIPT = """
import functools, sys
from pathlib import Path

from prunesearch.evaluation.ray_cluster import connected
from prunesearch.evaluation.ray_pool import RayPool
from prunesearch.evaluation.ray_worker import CONTROL
from prunesearch.execution.shared_forward import EvaluationCancelled
from prunesearch.runtime import stopping
from tests.support.toy_objective import DIES_ONCE, SLOW, TOYS, build_toy, chunks, toys

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with (
        stopping.handled(),
        connected(None, 1),
        RayPool(functools.partial(build_toy, folder), 1, TOYS) as pool,
    ):
        work = chunks(*[toys(DIES_ONCE, *[SLOW] * 25)] * 9)
        try:
            list(pool.score(work, stopping.requested))
        except (KeyboardInterrupt, EvaluationCancelled):
            print("stopped", pool.restarts, pool.places[0].pid)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_ray_that_was_started_here_is_quiet_listens_on_loopback_and_ends_with_the_command(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "busy").exists() or process.poll() is not None)
    listening = addresses_of(process.pid)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does, which workers get too
    out, err = process.communicate(timeout=60)
    assert (out.split()[:2], err) == (["stopped", "1"], "")
    assert listening == {"127.0.0.1"}
    wait_for(lambda: not members_of(process.pid))


def members_of(session: int) -> set[int]:
    """The processes of a session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.add(int(path.parent.name))
    return found


def addresses_of(session: int) -> set[str]:
    """The addresses that the processes of a session listen on."""
    sockets = set()
    for pid in members_of(session):
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(str(path.readlink()))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                number = int(fields[1].partition(":")[0][-8:], 16)
                found.add(socket.inet_ntoa(struct.pack("<I", number)))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = Recipe(model="nowhere", drop="2")
    with (
        pytest.raises(InputError, match=r"pip install 'prunesearch\[ray\]'"),
        open_session(recipe, RunOptions(engine="ray")),
    ):
        pass
