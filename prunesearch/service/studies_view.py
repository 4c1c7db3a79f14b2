"""Studies, as the HTTP interface and the pages show them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from optuna.trial import TrialState
from sqlalchemy import Connection

from prunesearch.cache.location import sqlite_file
from prunesearch.cache.tables import connect
from prunesearch.errors import NotFoundError
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies import persistence, study_rows, summary, trial_rows
from prunesearch.studies.selection import SelectionCriteria
from prunesearch.studies.study_rows import ListedStudy
from prunesearch.studies.summary import ChosenTrial, StudyLayers
from prunesearch.studies.trial_rows import ListedTrial, StudyKey

_KEPT = 50  # results that are kept
Result = TypeVar("Result")


class StudiesView:
    """Reads the studies of a database. Its methods can be called from several threads.

    Args:
        storage: URL of the database of studies. It may not exist yet.
    """

    def __init__(self, storage: str) -> None:
        self._storage = storage
        self._file = sqlite_file(storage)
        # A transaction that only reads does not wait for a writer.
        self._engine = connect(storage).execution_options(reading=True)
        self._lock = threading.Lock()
        self._results: OrderedDict[tuple[object, ...], object] = OrderedDict()

    def studies(self, limit: int, after: str = "") -> list[ListedStudy]:
        """Return studies in the order of their names.

        Args:
            limit: largest number of studies.
            after: only studies with later names.
        """
        with self._connected() as connection:
            if connection is None:
                return []
            return study_rows.list_studies(
                connection, study_rows.find_studies(connection, limit, after)
            )

    def study(self, name: str) -> ListedStudy:
        """Return a study.

        Raises:
            NotFoundError: the study does not exist. This holds for the other methods too.
        """
        with self._found(name) as (connection, key):
            return study_rows.list_studies(connection, [key])[0]

    def recipe(self, name: str) -> JsonObject:
        """Return the recipe of a study as it is stored, without the folders of any machine."""
        with self._found(name) as (_, key):
            recipe = study_rows.recipe_of(key)
        return {} if recipe is None else recipe.portable().document()

    def trials(
        self, name: str, limit: int, first: int = 0, states: Collection[str] = ()
    ) -> list[ListedTrial]:
        """Return trials in the order of their numbers.

        Args:
            name: name of the study.
            limit: largest number of trials.
            first: smallest number of a trial.
            states: states of the trials, in lower case; empty for all.
        """
        wanted = [TrialState[state.upper()] for state in states]
        with self._found(name) as (connection, key):
            return trial_rows.list_trials(connection, key, limit, first, wanted)

    def attribute_names(self, name: str) -> list[str]:
        """Return the names of the attributes that trials of a study have."""
        with self._found(name) as (connection, key):
            return trial_rows.attribute_names(connection, key)

    def front(self, name: str) -> list[ListedTrial]:
        """Return the trials that no other trial dominates, the best quality first."""
        with self._found(name) as (connection, key):
            return trial_rows.front_of(connection, key)

    def best(self, name: str, wanted: SelectionCriteria) -> ChosenTrial:
        """Return the best trial that meets limits, as `prunesearch study best` does.

        Raises:
            StudyError: no trial meets the limits.
        """

        def choose() -> ChosenTrial:
            with persistence.opened_briefly(self._storage) as storage:
                return summary.chosen_trial(persistence.load(storage, name), wanted)

        return self._kept("best", name, choose, wanted)

    def layers(self, name: str) -> StudyLayers:
        """Return the importance of every layer."""

        def layers() -> StudyLayers:
            with persistence.opened_briefly(self._storage) as storage:
                return summary.layers_of(persistence.load(storage, name))

        return self._kept("layers", name, layers)

    def _kept(self, kind: str, name: str, make: Callable[[], Result], *more: object) -> Result:
        """Return a result that needs all trials. It is kept until the study changes."""
        listed = self.study(name)
        finished = listed.trials + listed.failed + listed.partial_subsets
        # A recommendation is made after the last trial.
        place = (kind, name, listed.started, finished, listed.recommendation, *more)
        with self._lock:
            found = self._results.get(place)
        if found is None:
            found = make()
            with self._lock:
                self._results[place] = found
                while len(self._results) > _KEPT:
                    self._results.popitem(last=False)
        return found  # type: ignore[return-value]

    @contextmanager
    def _connected(self) -> Iterator[Connection | None]:
        """Open a connection. None: the file of the studies does not exist yet."""
        if self._file is not None and not self._file.exists():
            yield None
            return
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _found(self, name: str) -> Iterator[tuple[Connection, StudyKey]]:
        """Open a connection and find a study.

        Raises:
            NotFoundError: the study does not exist.
        """
        with self._connected() as connection:
            found = []
            if connection is not None and "\0" not in name:
                found = study_rows.find_studies(connection, 1, name=name)
            if connection is None or not found:
                raise NotFoundError(f"there is no study {name[:200]!r}: see /v1/studies")
            yield connection, found[0]
