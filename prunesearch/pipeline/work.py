"""Help with somebody's study: score what its running trials lack, through the leases of the cache.

The search finds the results in the cache. A process that helps never asks or tells: a study has one
writer. It ends by itself when the study has its number of trials, or when nobody has searched the
study for some time and nothing is left to score.
"""

import time
from dataclasses import dataclass

from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.config.identity import differences
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError, StudyError
from prunesearch.evaluation.batch_evaluation import CandidateRequest
from prunesearch.pipeline.prepared_study import sampler_of, scored_identity
from prunesearch.pipeline.search_loop import candidate_of, race_of
from prunesearch.pipeline.session import Session, open_session
from prunesearch.report.work import WorkReport
from prunesearch.runtime import stopping
from prunesearch.studies import persistence, places, study_recipe
from prunesearch.studies.writer_process import Writer

IDLE_EXIT = 60.0
"""Seconds without a search and without work after which a helper ends."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_GROWTH = 1.25  # of the pause between two looks at the study
_WRITER_SECONDS = 1.0  # seconds between two looks for the process that searches the study


@dataclass(frozen=True)
class _Reading:
    """What was read of a study.

    Attributes:
        running: trials that the study is evaluating, in the order of their numbers.
        done, total: number of finished trials, and of all trials that it shall have.
    """

    running: tuple[FrozenTrial, ...]
    done: int
    total: int

    @property
    def is_complete(self) -> bool:
        """True if the study has its number of trials."""
        return not self.running and self.done >= self.total


def work(
    name: str,
    options: RunOptions,
    *,
    idle_exit: float = IDLE_EXIT,
    trust_remote_code: bool = False,
    **location: str | None,
) -> WorkReport:
    """Help with a study until it is complete, or until nobody searches it any more.

    Args:
        name: name of the study.
        options: where the study and the cache are, and how candidates are scored.
        idle_exit: seconds without a search and without work after which this ends.
        trust_remote_code: run the checkpoint's own code. The setting of the study's creator does
            not count.
        location: present locations of model and data, by the recipe's names. Their content must be
            what is searched.

    Raises:
        StudyError: the study does not exist, or its model or data cannot be found or differ.
        RunError: the database failed, or the study was deleted.
        StopRequested: a signal has ended the work. What was scored is in the cache.
    """
    if not 0 <= idle_exit < float("inf"):
        raise InputError(f"`idle_exit` {idle_exit:g}: give a number of seconds, 0 or more")
    storage = persistence.open_storage(options.storage, create=False)
    study = persistence.load(storage, name)
    recipe = places.located(study, location).with_changes(trust_remote_code=trust_remote_code)
    with persistence.database_failures(name, storage):
        # A study that is complete needs no model.
        reading = _read(study)
        if reading.is_complete:
            return WorkReport(name, recipe.model.path, "complete", reading.done)
        with open_session(recipe, options) as session:
            _refuse_other_content(study, session, recipe)
            return Helper(session, recipe, study, storage, idle_exit).run()


def _refuse_other_content(study: Study, session: Session, recipe: Recipe) -> None:
    """Refuse a model or data whose results a study cannot use.

    Raises:
        StudyError: the content differs.
    """
    asked = scored_identity(session, recipe)
    stored = study_recipe.identity_of(study)
    known = {name: value for name, value in stored.items() if name in asked}
    if differing := differences(known, asked):
        raise StudyError(
            f"study {study.study_name!r} is searched on other content than is here "
            f"({'; '.join(differing)}): give `model` and the data that it is searched on, and the "
            f"same kind of `device`"
        )


def _read(study: Study) -> _Reading:
    """Read the trials of a study. A trial without all its parameters is not running yet."""
    trials = study.get_trials(deepcopy=False)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    total = study.user_attrs.get(persistence.TRIALS_ATTR)
    # A search that was just begun has not written its number of trials.
    if not isinstance(total, int):
        total = len(trials) + 1
    return _Reading(tuple(running), sum(trial.state.is_finished() for trial in trials), total)


class Helper:
    """Scores what a study's running trials lack, until the study ends.

    Args:
        session: model, data and cache.
        recipe: recipe of the study.
        study: the study. It is only read.
        storage: database of the study.
        idle_exit: seconds without a search and without work after which this ends.
    """

    def __init__(
        self, session: Session, recipe: Recipe, study: Study, storage: RDBStorage, idle_exit: float
    ) -> None:
        self._session, self._recipe = session, recipe
        self._study, self._storage = study, storage
        self._idle_exit = idle_exit
        self._space = session.space_of(recipe.search)
        self._failed: set[LayerSubset] = set()
        self._candidates: set[LayerSubset] = set()
        self._seconds = 0.0
        self._writer: Writer | None = None
        self._looked = self._active = float("-inf")
        self._told: events.WorkProgress | None = None

    def run(self) -> WorkReport:
        """Help until the study ends."""
        self._active = time.monotonic()
        pause = _FIRST_PAUSE
        while True:
            stopping.check()
            reading = _read(self._study)
            self._find_writer()
            self._tell(reading)
            if reading.is_complete:
                return self._report("complete", reading)
            if self._score(reading):
                pause = _FIRST_PAUSE
                self._active = time.monotonic()
                continue
            if self._writer is None and time.monotonic() - self._active >= self._idle_exit:
                return self._report("idle", reading)
            _wait(pause)
            pause = min(_LONGEST_PAUSE, _GROWTH * pause)

    def _find_writer(self) -> None:
        """Look for the process that searches the study, but not too often."""
        now = time.monotonic()
        if now - self._looked < min(_WRITER_SECONDS, self._idle_exit):
            return
        self._looked = now
        self._writer = persistence.writer_of(self._storage, self._study.study_name)
        if self._writer is not None:
            self._active = now

    def _score(self, reading: _Reading) -> bool:
        """Score what is free, and return whether there was anything."""
        requests = self._requests(reading)
        if not requests:
            return False
        begun, before = time.perf_counter(), self._session.engine.results.scored
        batch = self._session.engine.score_free(requests)
        # A candidate that failed is left to the search, which records the reason.
        self._failed |= batch.failed
        if self._session.engine.results.scored == before:
            return False
        self._candidates |= batch.computed
        self._seconds += time.perf_counter() - begun
        return True

    def _requests(self, reading: _Reading) -> list[CandidateRequest]:
        """Return requests for the candidates of the running trials, as the search makes them."""
        candidates: dict[LayerSubset, None] = {}
        numbers = []
        for trial in reading.running:
            # Optuna's samplers write a trial before its parameters.
            if set(self._space.param_names) <= set(trial.params):
                numbers.append(trial.number)
                candidates[candidate_of(trial, self._space)] = None
        if not numbers:
            return []
        race = None
        if self._recipe.objective.race:
            sampler = sampler_of(self._session, self._recipe, self._study, self._space)
            race = race_of(self._study, sampler, min(numbers))
        return [CandidateRequest(c, race) for c in candidates if c not in self._failed]

    def _tell(self, reading: _Reading) -> None:
        """Publish the progress if it has changed."""
        progress = events.WorkProgress(
            self._study.study_name,
            reading.done,
            max(reading.done, reading.total),
            self._session.engine.results.scored,
            len(self._candidates),
            len(reading.running),
            None if self._writer is None else str(self._writer),
        )
        if progress != self._told:
            self._told = progress
            events.tell(progress)

    def _report(self, ended: str, reading: _Reading) -> WorkReport:
        results = self._session.engine.results
        return WorkReport(
            self._study.study_name,
            self._recipe.model.path,
            ended,
            reading.done,
            results.scored,
            len(self._candidates),
            results.tokens,
            round(self._seconds, 3),
            self._idle_exit,
        )


def _wait(seconds: float) -> None:
    """Wait, or less if a stop is requested."""
    end = time.monotonic() + seconds
    while not stopping.requested() and (left := end - time.monotonic()) > 0:
        time.sleep(min(0.05, left))
