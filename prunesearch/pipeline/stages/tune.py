"""Stage `tune`: search for the hyper-parameters of the healing. Its study can be resumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from prunesearch.evaluation import ray_cluster
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.stages.heal import portable_recipe, with_dense_weights
from prunesearch.pipeline.state import Request, State
from prunesearch.recovery.healing import ask_teacher
from prunesearch.recovery.tuning import TrialRunner, largest, tune
from prunesearch.report.results import TuningReport


def tune_healing(state: State) -> State:
    """Search for hyper-parameters with short healings of the selected candidate."""
    recovery, candidate = state.request.recovery, state.choice.candidate
    assert recovery is not None
    assert recovery.heal is not None
    assert recovery.tune is not None
    references = state.request.references
    # The teacher logits of the largest trial contain those of all other trials.
    planned = state.resources.plan(candidate, largest(recovery.heal, recovery.tune))
    with with_dense_weights(state.resources):
        ask_teacher(planned, references)
    with _runner(state) as runner:
        tuned = tune(
            state.resources.loaded,
            candidate,
            recovery.heal,
            recovery.tune,
            state.request.options.storage,
            references=references,
            runner=runner,
            tracked=bool(state.request.options.track),
        )
    # The recipe is shown without folders of this machine.
    found = TuningReport(**{**vars(tuned), "recipe": portable_recipe(tuned.recipe)})
    return replace(state, tuned=tuned).with_recovery(tuning=found)


@contextmanager
def _runner(state: State) -> Iterator[TrialRunner | None]:
    """Return what runs the trials: workers of Ray, or None for this process."""
    if state.request.options.engine != "ray":
        yield None
        return
    # Ray is an extra, so what needs it is imported here.
    from prunesearch.pipeline.ray_trials import ray_runner

    with ray_runner(state) as runner:
        yield runner


def check(request: Request) -> None:
    """Refuse the engine if it cannot be used, before anything is loaded.

    Raises:
        InputError: see `ray_cluster.check`.
    """
    if request.options.engine == "ray":
        ray_cluster.check(request.options.ray_address)


def wanted(state: State) -> bool:
    """Return whether hyper-parameters are to be searched."""
    recovery = state.request.recovery
    return recovery is not None and recovery.tune is not None and state.earlier is None


TUNE = Stage("tune", tune_healing, check, wanted)
