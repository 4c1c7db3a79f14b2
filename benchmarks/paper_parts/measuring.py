"""Scores winners on documents that no search has seen, before and after healing.

The documents come in parts. A candidate on a part is a file that is named by the digest of what is
measured, so an interrupted run loses a part at most. Several processes share the work: each takes
the candidates that no other one is measuring.
"""

import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from benchmarks.paper_parts.experiment import Experiment
from prunesearch import events
from prunesearch.analysis.intervals import standard_error
from prunesearch.cache.files import replaced_file
from prunesearch.candidate import LayerSubset
from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.execution.shared_forward import Forward
from prunesearch.objectives.base import ChunkWork, Objective
from prunesearch.pipeline.session import Session, objective_for, open_session, require
from prunesearch.recovery import heal, weights_restored

TOGETHER = 14
"""Most candidates that are scored together."""


@dataclass(frozen=True)
class Job:
    """A candidate that is to be measured.

    Attributes:
        dropped: the candidate, as text.
        healed: whether it is healed before.
    """

    dropped: str
    healed: bool


@dataclass(frozen=True)
class Measured:
    """A candidate on held-out documents.

    Attributes:
        dropped: the candidate.
        healed: whether it was healed.
        acc_norm, stderr: normalised accuracy, and its standard error over documents.
        right: for each document 1 if it was answered rightly, else 0.
        params, bytes: size of the model.
        heal_seconds: time of the healing; 0 without.
        heal_loss: held-out loss before and after the healing; empty without.
    """

    dropped: str
    healed: bool
    acc_norm: float
    stderr: float
    right: tuple[float, ...]
    params: int
    bytes: int
    heal_seconds: float = 0.0
    heal_loss: tuple[float, ...] = ()


def measure_all(experiment: Experiment, jobs: Sequence[Job]) -> dict[Job, Measured]:
    """Make all measurements that are not made yet, and return all of them."""
    distinct = list(dict.fromkeys(jobs))
    (experiment.folder / "measured").mkdir(exist_ok=True)
    parts = range(len(experiment.held_out_data))
    if any(_left(experiment, distinct, part) for part in parts):
        if experiment.workers == 1:
            work(experiment, distinct)
        else:
            _start_workers(experiment, distinct)
        # A process that was ended may have left some.
        work(experiment, distinct, wait=True)
    return {job: joined([read(_path(experiment, job, part)) for part in parts]) for job in distinct}


def joined(parts: Sequence[Measured]) -> Measured:
    """Return the measurement on all documents, from those on their parts."""
    right = tuple(each for part in parts for each in part.right)
    return replace(
        parts[0], right=right, acc_norm=float(np.mean(right)), stderr=standard_error(right)
    )


def _start_workers(experiment: Experiment, jobs: Sequence[Job]) -> None:
    """Measure in several processes, and wait for them."""
    context = multiprocessing.get_context("spawn")
    processes = []
    for number in range(experiment.workers):
        turned = [*jobs[number:], *jobs[:number]]
        processes.append(context.Process(target=work, args=(experiment, turned)))
        processes[-1].start()
    for process in processes:
        process.join()


def _path(experiment: Experiment, job: Job, part: int) -> Path:
    """Return the file of a candidate on a part of the documents."""
    content = hashlib.sha256(experiment.held_out_data[part].read_bytes())
    content.update(experiment.model.encode())
    if job.healed:
        content.update(experiment.heal_recipe().model_dump_json().encode())
    text = f"{job.dropped} {job.healed} {content.hexdigest()}"
    name = hashlib.sha256(text.encode()).hexdigest()[:24] + ".json"
    return experiment.folder / "measured" / name


def _left(experiment: Experiment, jobs: Sequence[Job], part: int) -> list[Job]:
    """Return the candidates that are not measured yet on a part of the documents."""
    return [job for job in jobs if not _path(experiment, job, part).exists()]


def read(path: Path) -> Measured:
    """Read a measurement."""
    stored = json.loads(path.read_text())
    for name in ("right", "heal_loss"):
        stored[name] = tuple(stored[name])
    return Measured(**stored)


def work(experiment: Experiment, jobs: Sequence[Job], wait: bool = False) -> None:
    """Make the measurements that no other process is making.

    Pruned models come first, one part of the documents after the other. A healed model is measured
    on all parts, so that it is healed once.

    Args:
        experiment: settings.
        jobs: the candidates.
        wait: wait for those that other processes are measuring.
    """
    torch.set_num_threads(1)
    parts = range(len(experiment.held_out_data))
    if not any(_left(experiment, jobs, part) for part in parts):
        return
    recipe = experiment.recipe(experiment.methods[0], experiment.ks[0], 0)
    with open_session(recipe, experiment.options()) as session:
        pruned = [job for job in jobs if not job.healed]
        for part in parts:
            todo = _left(experiment, pruned, part)
            if not todo:
                continue
            objective = _on_part(experiment, session, part)
            for group in _groups(todo, experiment.n_layers, experiment.workers):
                paths = {job: _path(experiment, job, part) for job in group}
                with _reserved(paths, wait) as own:
                    own = [job for job in own if not paths[job].exists()]
                    _measure_pruned(experiment, session, objective, own, part)
        for job in jobs:
            # The first part stands for all of them.
            if job.healed:
                with _reserved({job: _path(experiment, job, 0)}, wait) as own:
                    if own:
                        _measure_healed(experiment, session, job)


@contextmanager
def _reserved(paths: Mapping[Job, Path], wait: bool) -> Iterator[list[Job]]:
    """Keep other processes from measuring some candidates, and yield those that are free.

    Args:
        paths: the candidates, with the files beside which the locks are.
        wait: wait for those that other processes are measuring.
    """
    with ExitStack() as locks:
        free = []
        for job, path in paths.items():
            lock = FileLock(f"{path}.lock", timeout=-1 if wait else 0)
            try:
                locks.enter_context(lock)
            except Timeout:
                continue
            free.append(job)
        yield free


def _on_part(experiment: Experiment, session: Session, part: int) -> Objective:
    """Return the accuracy on a part of the documents."""
    data = DataSection(task_data=str(experiment.held_out_data[part]))
    section = ObjectiveSection.of({"task": "hellaswag"})
    return objective_for(section, data, session.loaded, experiment.options())


def _groups(jobs: Sequence[Job], n_layers: int, workers: int) -> list[list[Job]]:
    """Return pruned candidates in groups that are measured together.

    Candidates of a group share the blocks before their first difference, so those that begin alike
    are put together. There is a group for each process at least.
    """
    ordered = sorted(jobs, key=lambda job: LayerSubset.parse(job.dropped, n_layers).kept)
    size = max(1, min(TOGETHER, math.ceil(len(ordered) / workers)))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _measure_pruned(
    experiment: Experiment, session: Session, objective: Objective, jobs: Sequence[Job], part: int
) -> None:
    """Measure candidates as they are on a part of the documents, and keep the results."""
    engine = LocalEngine(session.loaded, objective, session.cache)
    candidates = [LayerSubset.parse(job.dropped, experiment.n_layers) for job in jobs]
    engine.evaluate_now(candidates)
    for job, candidate in zip(jobs, candidates, strict=True):
        _keep(experiment, job, part, _pruned(session, engine, candidate))


def _keep(experiment: Experiment, job: Job, part: int, made: Measured) -> None:
    """Write a measurement, and tell it."""
    with replaced_file(_path(experiment, job, part)) as scratch:
        scratch.write_text(json.dumps(asdict(made)) + "\n")
    state = "healed" if job.healed else "pruned"
    events.tell(
        events.StageProgress(
            f"part {part + 1} of {len(experiment.held_out_data)}, {state}, without {made.dropped}: "
            f"acc_norm {made.acc_norm:.4f}"
        )
    )


def _pruned(session: Session, engine: LocalEngine, candidate: LayerSubset) -> Measured:
    """Score a candidate as it is, through the cache."""
    (evaluation,) = engine.evaluate_now([candidate])
    (losses,) = engine.losses([candidate])
    require(evaluation)
    sizes = session.loaded.sizes
    return Measured(
        candidate.text,
        False,
        evaluation.metrics["acc_norm"],
        evaluation.stderr["acc_norm"],
        tuple(-float(loss) for loss in losses),
        sizes.params(candidate),
        sizes.bytes(candidate),
    )


def _measure_healed(experiment: Experiment, session: Session, job: Job) -> None:
    """Heal a candidate, score it on the parts that are left, and restore the weights."""
    loaded, recipe = session.loaded, experiment.heal_recipe()
    parts = range(len(experiment.held_out_data))
    todo = [part for part in parts if _left(experiment, [job], part)]
    if not todo:
        return
    candidate = LayerSubset.parse(job.dropped, experiment.n_layers)
    folder = experiment.folder / "heals"
    folder.mkdir(exist_ok=True)
    healing = f"{experiment.model} {candidate.text} {recipe.model_dump_json()}"
    name = hashlib.sha256(healing.encode()).hexdigest()[:16]
    with weights_restored(loaded, [candidate], recipe.target_modules):
        report = heal(loaded, candidate, recipe, folder / name)
        for part in todo:
            objective = _on_part(experiment, session, part)
            # The healed weights are scored directly: they are kept nowhere, so the cache could not
            # hand them to anybody.
            work = [ChunkWork(chunk, [candidate]) for chunk in objective.chunks]
            rows = {}
            for result in objective.score(work, Forward(loaded.model, loaded.layers)):
                rows[result.chunk.index] = result.rows
            in_order = [rows[chunk.index] for chunk in objective.chunks]
            metrics = objective.metrics(in_order)
            made = Measured(
                candidate.text,
                True,
                metrics.values["acc_norm"],
                metrics.stderr["acc_norm"],
                tuple(-float(loss) for loss in objective.losses(in_order)),
                loaded.sizes.params(candidate),
                loaded.sizes.bytes(candidate),
                report.seconds,
                (report.before, report.after),
            )
            _keep(experiment, job, part, made)
