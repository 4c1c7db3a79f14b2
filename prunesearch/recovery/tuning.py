"""Search for hyper-parameters of healing with Optuna.

The hyper-parameters are learning rate, batch size, rank and share of the steps. A trial is a short
healing whose weights are discarded. Its value is the best loss on the held-out text. A pruner stops
hopeless trials. A trial that was running in a killed process is enqueued again and continues from
its checkpoints.
"""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from prunesearch import events
from prunesearch.cache.keys import canonical_json
from prunesearch.candidate import LayerSubset
from prunesearch.config.names import slug
from prunesearch.config.recovery import LOOKS, HealRecipe, Tuning
from prunesearch.errors import RunError, StudyBusyError, StudyError
from prunesearch.models.loading import LoadedModel
from prunesearch.recovery.healing import HealPlan, carry_out, plan_healing
from prunesearch.recovery.run_folder import RUN_FOLDERS, Healed
from prunesearch.recovery.training import LossCheck
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers import build_for_parameters
from prunesearch.studies import persistence
from prunesearch.studies.tracker_run import run_of, told_trials
from prunesearch.tracking.parameters import flat, versions
from prunesearch.units import noun_for

IDENTITY_ATTR = "healing"
"""User attribute of a tuning study. It holds everything that determines its trials."""
# Particles of a swarm. A tuning study has few trials.
_POPULATION = 4


def suggest(trial: Trial, tuning: Tuning, recipe: HealRecipe, steps: int) -> HealRecipe:
    """Return the recipe with the parameters of a trial, for a share of `steps` steps."""
    params = {
        "learning_rate": trial.suggest_float("learning_rate", *tuning.learning_rate, log=True),
        "batch_size": trial.suggest_categorical("batch_size", tuning.batch_size),
        "rank": trial.suggest_categorical("rank", tuning.rank),
        "steps_share": trial.suggest_float("steps_share", *tuning.share),
    }
    return with_params(recipe, params, steps)


def with_params(recipe: HealRecipe, params: Mapping[str, float], steps: int) -> HealRecipe:
    """Return the recipe with tuned parameters, for their share of `steps` steps."""
    found = {name: params[name] for name in ("learning_rate", "batch_size", "rank")}
    taken = max(1, round(steps * params["steps_share"]))
    # Keep alpha / rank constant, so that only the rank varies.
    scaled = recipe.alpha * params["rank"] / recipe.rank
    return recipe.model_copy(update={**found, "steps": taken, "alpha": scaled})


def largest(recipe: HealRecipe, tuning: Tuning) -> HealRecipe:
    """Return the recipe of the trial that reads the most text.

    Every other trial reads a prefix of this text.
    """
    return recipe.model_copy(update={"batch_size": max(tuning.batch_size), "steps": tuning.steps})


@dataclass(frozen=True)
class Tuned:
    """Result of a tuning study.

    Attributes:
        study: name of the study.
        params: parameters of the best trial.
        value: watched loss of the best trial, in nats per token.
        trials: number of complete trials.
        pruned: number of trials that the pruner stopped.
        computed: number of trials that this process ran.
        recipe: the given recipe with the best parameters.
    """

    study: str
    params: Mapping[str, float]
    value: float
    trials: int
    pruned: int
    computed: int
    recipe: HealRecipe


@dataclass(frozen=True)
class TrialRun:
    """A trial that is about to be run.

    Attributes:
        trial: the trial.
        planned: plan of its healing.
        folder: run folder.
        check: reports the losses to the pruner, and raises `optuna.TrialPruned` if it says so.
    """

    trial: Trial
    planned: HealPlan
    folder: Path
    check: LossCheck


class TrialRunner(Protocol):
    """Runs the trials of a tuning study."""

    at_once: int
    """Number of trials that are run at once."""

    def run(self, runs: Sequence[TrialRun]) -> Sequence[Healed | None]:
        """Run trials, and return their results in the same order. None: the trial was pruned."""
        ...


class LocalRunner:
    """Runs trials in this process."""

    at_once = 1

    def __init__(self, references: Path | None) -> None:
        self._references = references

    def run(self, runs: Sequence[TrialRun]) -> Sequence[Healed | None]:
        """Run trials one after the other."""
        return [run_trial(run.planned, run.folder, self._references, run.check) for run in runs]


def run_trial(
    planned: HealPlan, folder: Path, references: Path | None, check: LossCheck
) -> Healed | None:
    """Run the healing of a trial, without a change of the weights.

    Returns:
        The result. None: the trial was pruned, and its files are removed.
    """
    try:
        return carry_out(planned, folder, references, merge=False, check=check)
    except optuna.TrialPruned:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def tune(
    loaded: LoadedModel,
    candidate: LayerSubset,
    recipe: HealRecipe,
    tuning: Tuning,
    storage: str,
    *,
    run_folders: Path = RUN_FOLDERS,
    references: Path | None = None,
    runner: "TrialRunner | None" = None,
    tracked: bool = False,
) -> Tuned:
    """Search for hyper-parameters in a study. The same call resumes the study.

    Args:
        loaded: the dense model, or the compensated one.
        candidate: the candidate that is healed.
        recipe: recipe whose hyper-parameters are searched.
        tuning: settings of the search.
        storage: Optuna RDB URL.
        run_folders: folder in which the study gets a folder for its trials.
        references: folder of the dense model's logits. None keeps them in memory.
        runner: where trials are run. Default: in this process, one after the other.
        tracked: give the study an identifier for experiment trackers.

    Raises:
        InputError: see `healing.plan_healing`; the data do not suffice for the largest batch.
        StudyError: another process writes to the study.
        RunError: no trial is complete.
    """
    # The name of the study follows from everything that determines its trials.
    identity = {
        **plan_healing(loaded, candidate, largest(recipe, tuning)).identity,
        "tuning": tuning.model_dump(mode="json", exclude={"trials"}),
    }
    digest = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    name = f"heal-{slug(Path(loaded.name).name, 30)}-{digest[:8]}"
    database = persistence.open_storage(storage, create=True)
    with ExitStack() as held:
        held.enter_context(persistence.database_failures(name, database))
        # Only one process writes to a study. A finished study can be read without that.
        try:
            held.enter_context(persistence.sole_writer(database, name))
        except StudyBusyError:
            finished = persistence.load(database, name)
            if len(_done(finished)) < tuning.trials:
                raise
            return _tuned(finished, recipe, 0)
        study = optuna.create_study(
            storage=database,
            study_name=name,
            sampler=build_for_parameters(tuning.sampler, seed=recipe.seed, population=_POPULATION),
            pruner=_pruner(tuning.pruner),
            load_if_exists=True,
        )
        # Check an existing study, and enqueue the trials that a killed process left.
        _write_metadata(study, identity)
        _adopt(study)
        if tracked:
            events.tell(_opened(study, loaded, candidate, recipe, tuning))
        # Run the missing trials, as many at once as the runner takes.
        runner = runner or LocalRunner(references)
        computed = 0
        while (missing := tuning.trials - len(_done(study))) > 0:
            stopping.check()
            runs = []
            for _ in range(min(missing, runner.at_once)):
                runs.append(_ask(study, loaded, candidate, recipe, tuning, run_folders / name))
            # The trials are told in their order, after all of them. A pruner that compares a trial
            # with the complete ones then decides the same, whichever trial is the fastest.
            for run, healed in zip(runs, runner.run(runs), strict=True):
                _tell(study, run, healed)
                events.tell(_progress(study, run, healed))
            computed += len(runs)
        tuned = _tuned(study, recipe, computed)
        best: dict[str, events.Scalar] = {"best.value": tuned.value}
        events.tell(events.StudyFinished(name, {**best, **flat(dict(tuned.params), "best.")}))
        return tuned


def _ask(
    study: Study,
    loaded: LoadedModel,
    candidate: LayerSubset,
    recipe: HealRecipe,
    tuning: Tuning,
    run_folders: Path,
) -> TrialRun:
    """Ask for the parameters of a trial, and plan its healing."""
    trial = study.ask()
    short = suggest(trial, tuning, recipe, tuning.steps)
    # Evaluate at equal distances, and leave stopping to the pruner.
    every = max(1, math.ceil(short.steps / LOOKS))
    short = short.model_copy(update={"eval_every": every, "patience": LOOKS})
    planned = plan_healing(loaded, candidate, short, f"trial {trial.number}")
    return TrialRun(trial, planned, run_folders / planned.digest[:16], _reporter(trial))


def _tell(study: Study, run: TrialRun, healed: Healed | None) -> None:
    """Tell the study the result of a trial. None: the trial was pruned."""
    trial = run.trial
    if healed is None:
        study.tell(trial, state=TrialState.PRUNED)
        return
    trial.set_user_attr("steps", healed.steps)
    trial.set_user_attr("seconds", healed.seconds)
    trial.set_user_attr("held_out_loss", healed.after)
    trial.set_user_attr("diverged", healed.diverged)
    study.tell(trial, healed.watched)


def _opened(
    study: Study, loaded: LoadedModel, candidate: LayerSubset, recipe: HealRecipe, tuning: Tuning
) -> events.StudyOpened:
    """Return the event of a tuning whose trials are about to be run."""
    parameters: dict[str, events.Scalar] = {
        "study": study.study_name,
        "model": loaded.name,
        "candidate": candidate.text,
        **flat(tuning.model_dump(mode="json"), "tuning."),
        **flat(recipe.portable(), "heal."),
        **versions(),
    }
    run, earlier = run_of(study), told_trials(study)
    return events.StudyOpened(study.study_name, "tuning", run, parameters, earlier=earlier)


def _progress(study: Study, run: TrialRun, healed: Healed | None) -> events.TuningProgress:
    """Return the event of a trial that was told."""
    figures = {}
    for name, value in run.trial.params.items():
        figures[name] = float(value)
    if healed is not None:
        figures.update({"steps": healed.steps, "seconds": healed.seconds})
        figures["held_out_loss"] = healed.after
    value = None if healed is None else healed.watched
    states = [trial.state.is_finished() for trial in study.get_trials(deepcopy=False)]
    return events.TuningProgress(study.study_name, sum(states), run.trial.number, value, figures)


def _reporter(trial: Trial) -> LossCheck:
    """Return a check that reports the losses of a trial to the pruner.

    Losses are reported by the number of the evaluation. The check stops the trial if the pruner
    says so.
    """
    reported = 0

    def report(watched: Sequence[tuple[int, float]]) -> None:
        nonlocal reported
        # Report the evaluations that are new.
        for look in range(reported, len(watched)):
            trial.report(watched[look][1], look)
        news, reported = len(watched) > reported, len(watched)
        # The first evaluation is that of the pruned model, which is the same for all trials.
        if news and reported > 1 and trial.should_prune():
            raise optuna.TrialPruned

    return report


def _pruner(name: str) -> BasePruner:
    if name == "halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return MedianPruner(n_startup_trials=2, n_warmup_steps=0)


def _write_metadata(study: Study, identity: JsonObject) -> None:
    """Write the identity to a new study, or check it in an existing one.

    Raises:
        StudyError: the study belongs to something else, or has another identity.
    """
    text = canonical_json(identity)
    held = study.user_attrs.get(IDENTITY_ATTR)
    if held is None and study.get_trials(deepcopy=False):
        raise StudyError(f"study {study.study_name!r} was not made by prunesearch heal: rename it")
    if held is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(["held-out loss"])
        study.set_user_attr(IDENTITY_ATTR, text)
    elif json.loads(held) != identity:
        raise StudyError(
            f"study {study.study_name!r} was made with other settings: delete it to tune anew"
        )


def _adopt(study: Study) -> None:
    """Enqueue the trials again that a killed process left running, and mark these as failed.

    The study has one writer, so no other process is running them.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _done(study: Study) -> Sequence[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _tuned(study: Study, recipe: HealRecipe, computed: int) -> Tuned:
    """Return the result of a study, with the parameters of its best trial."""
    done = _done(study)
    complete = [trial for trial in done if trial.state == TrialState.COMPLETE]
    if not complete:
        trials = noun_for(len(done), "the only trial", f"all {len(done)} trials")
        were = noun_for(len(done), "was", "were")
        raise RunError(f"{trials} of study {study.study_name!r} {were} stopped: raise `tune`")
    # Among equal values the earliest trial is the best.
    best = min(complete, key=lambda trial: (trial.values[0], trial.number))
    return Tuned(
        study=study.study_name,
        params=best.params,
        value=best.values[0],
        trials=len(complete),
        pruned=len(done) - len(complete),
        computed=computed,
        recipe=with_params(recipe, best.params, recipe.steps),
    )
