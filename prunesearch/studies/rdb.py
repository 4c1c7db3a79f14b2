"""Optuna's RDB storage with three changes that long studies need.

First, a study of 10,000 trials with 80 parameters opens in seconds instead of minutes. Trials are
read as plain rows, and each distinct distribution is parsed once. The objects that Optuna's ORM
would build for every parameter are not built. Second, a trial's last attributes are written in the
transaction that finishes the trial, instead of in one transaction each. Third, an operation that an
outage of the database interrupts is repeated (`reconnection`).

If the connection is lost during a commit, nobody knows whether the transaction was committed. The
repeated operation finds out. A trial that was created is found by its id, number and content. A
trial that was finished, and a study that was made or deleted, are recognised. All other operations
write the same values again. A repeated operation locks the row that the interrupted one had locked,
so it looks only after the interrupted transaction has ended.

The tables and their meaning are Optuna's, so any other Optuna client can read and write the same
studies.
"""

import json
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, TypedDict

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, event
from sqlalchemy.orm import ORMExecuteState, Session

from prunesearch.runtime.json_values import Json
from prunesearch.runtime.masking import masked_url
from prunesearch.studies.optuna_internals.storage import (
    OPERATIONS,
    TRIAL_STARTED,
    OpenStorage,
    ParameterRow,
    TrialRow,
    started_of,
    without_parameters,
)
from prunesearch.studies.reconnection import Reconnection
from prunesearch.studies.trial_reader import TrialReader

_WROTE = "prunesearch wrote"  # key in a session's `info`: the transaction has written
_MOST_IDS = 500  # largest number of ids in one IN clause; every database takes that many


class EngineOptions(TypedDict, total=False):
    """Options of SQLAlchemy's engine that studies are opened with."""

    pool_pre_ping: bool
    connect_args: Mapping[str, int | None]


@dataclass(frozen=True)
class _Creation:
    """An attempt to create a trial, whose transaction may not have been committed.

    Attributes:
        trial_id: the storage's id of the trial.
        number: number of the trial.
        started: start of the trial, in UTC without a zone.
    """

    trial_id: int
    number: int
    started: datetime | None


class _Creations(threading.local):
    """The last attempt of a thread to create a trial; None after a commit."""

    last: _Creation | None = None


class StudyStorage(OpenStorage):
    """An `RDBStorage` that is fast, finishes a trial in one transaction, and survives outages.

    Args:
        url: SQLAlchemy URL of the database.
        engine_kwargs: options of the connections.

    Attributes:
        reconnection: repeats the operations that an outage interrupts.
    """

    def __init__(self, url: str, engine_kwargs: EngineOptions | None = None) -> None:
        # The constructor itself repeats nothing: a database that was never reached is refused.
        self.reconnection = Reconnection(masked_url(url))
        self._creations = _Creations()
        super().__init__(url, engine_kwargs=None if engine_kwargs is None else {**engine_kwargs})
        self._distributions: dict[str, BaseDistribution] = {}
        # Distributions that are known to fit the other trials of their study.
        self._checked: dict[tuple[int, str], str] = {}
        self._attributes: dict[int, dict[str, Json]] = {}
        self._reports: dict[int, dict[int, float]] = {}
        self._fences: list[Callable[[Connection], None]] = []
        event.listen(self.scoped_session, "after_flush", _note_flush)
        event.listen(self.scoped_session, "do_orm_execute", _note_statement)
        event.listen(self.scoped_session, "before_commit", self._check_fences)
        event.listen(self.scoped_session, "after_commit", self._note_commit)

    @contextmanager
    def fenced(self, fence: Callable[[Connection], None]) -> Iterator[None]:
        """Call `fence` before every transaction that writes is committed, until the block ends."""
        self._fences.append(fence)
        try:
            yield
        finally:
            self._fences.remove(fence)

    def _check_fences(self, session: Session) -> None:
        # Objects that were not flushed yet will be written by the commit.
        wrote = session.info.pop(_WROTE, False)
        if wrote or session.new or session.dirty or session.deleted:
            for fence in self._fences:
                fence(session.connection())

    def with_end(
        self,
        trial_id: int,
        attributes: Mapping[str, Json],
        reports: Mapping[int, float] | None = None,
    ) -> None:
        """Keep user attributes and intermediate values of a running trial until it is finished.

        `set_trial_state_values` writes them.
        """
        self._attributes.setdefault(trial_id, {}).update(attributes)
        self._reports.setdefault(trial_id, {}).update(reports or {})

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Finish a trial, and write the values that `with_end` kept for it, in one transaction."""
        attributes, reports = self._attributes.pop(trial_id, {}), self._reports.pop(trial_id, {})

        def end() -> bool:
            with self.transaction() as session:
                # An earlier attempt may have been committed.
                again = self.reconnection.repeated
                if again and self._has_ended(session, trial_id, state, values):
                    return True
                self.write_ending(session, trial_id, attributes, reports)
                # A session belongs to a thread. So this call joins the transaction, and its end
                # commits everything.
                return super(StudyStorage, self).set_trial_state_values(trial_id, state, values)

        return self.reconnection.repeat(end)

    def _has_ended(
        self,
        session: Session,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> bool:
        """Return whether a trial has a state and values already, as an earlier attempt wrote them.

        The trial's row is locked first. So the transaction of that attempt has ended.
        """
        row = sqlalchemy.select(TrialRow.state).where(TrialRow.trial_id == trial_id)
        if session.execute(row.with_for_update()).scalar() != state:
            return False
        chosen = TrialRow.trial_id == trial_id
        (trial,) = TrialReader(session.connection(), chosen, self._distributions).trials()
        return list(trial.values or ()) == [float(value) for value in values or ()]

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Create a study. It is recognised if an interrupted attempt has created it.

        Raises:
            DuplicatedStudyError: another study of that name exists.
        """
        try:
            return super().create_new_study(directions, study_name)
        except DuplicatedStudyError:
            if study_name is None or not self.reconnection.repeated:
                raise
            study_id = self.get_study_id_from_name(study_name)
            if self.get_study_directions(study_id) != list(directions):
                raise
            return study_id

    def delete_study(self, study_id: int) -> None:
        """Delete a study. An interrupted attempt may have deleted it.

        Raises:
            KeyError: the study did not exist.
        """
        try:
            super().delete_study(study_id)
        except KeyError:
            if not self.reconnection.repeated:
                raise

    def _set_trial_params_in_bulk(
        self, session: Session, study_id: int, trial_id: int, template: FrozenTrial
    ) -> None:
        """Insert a template's parameters as plain rows.

        Raises:
            ValueError: a parameter's distribution differs in kind from that of the study.
        """
        rows = []
        for name, value in template.params.items():
            distribution = template.distributions[name]
            text = distribution_to_json(distribution)
            # Check a distribution once, and not for every trial.
            if self._checked.get((study_id, name)) != text:
                self._check_distribution(session, study_id, name, distribution)
                self._checked[study_id, name] = text
            rows.append(
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(value),
                    "distribution_json": text,
                }
            )
        if rows:
            session.execute(sqlalchemy.insert(ParameterRow), rows)

    def _check_distribution(
        self, session: Session, study_id: int, name: str, distribution: BaseDistribution
    ) -> None:
        stored = session.execute(
            sqlalchemy.select(ParameterRow.distribution_json)
            .join(TrialRow)
            .where(TrialRow.study_id == study_id, ParameterRow.param_name == name)
            .limit(1)
        ).scalar()
        if stored is not None:
            check_distribution_compatibility(json_to_distribution(stored), distribution)

    def add_trial(
        self,
        study_id: int,
        template: FrozenTrial | None,
        session: Session,
    ) -> Any:  # noqa: ANN401 (Optuna's models are untyped)
        """Add a trial to the session, and write its parameters in bulk.

        Optuna writes them one by one. Optuna has locked the row of the study. If the last attempt
        was interrupted but committed, its trial is returned instead.
        """
        if (created := self._created(session, study_id, template)) is not None:
            return created
        if template is None or not template.params:
            added = super().add_trial(study_id, template, session)
        else:
            # Let Optuna add the trial without its parameters, as one that is running. Its state is
            # set last.
            added = super().add_trial(study_id, without_parameters(template), session)
            self._set_trial_params_in_bulk(session, study_id, int(added.trial_id), template)
            added.state = template.state
        self._creations.last = _Creation(int(added.trial_id), int(added.number), started_of(added))
        return added

    def _created(self, session: Session, study_id: int, template: FrozenTrial | None) -> Any | None:  # noqa: ANN401 (Optuna's models are untyped)
        """Return the trial of this thread's last attempt, if that was committed; otherwise None."""
        last = self._creations.last
        if last is None:
            return None
        # After a crash the database may give the same id to another trial. So the trial must also
        # have the same number, start and content.
        chosen = sqlalchemy.and_(
            TrialRow.trial_id == last.trial_id,
            TrialRow.study_id == study_id,
            TrialRow.number == last.number,
            TRIAL_STARTED.is_not_distinct_from(last.started),
        )
        found = TrialReader(session.connection(), chosen, self._distributions).trials()
        # The connection may also be lost during this query. So the attempt is forgotten only here.
        if not found or not _is_made_from(found[0], template):
            self._creations.last = None
            return None
        return self.find_trial(session, last.trial_id)

    def _note_commit(self, _: Session) -> None:
        self._creations.last = None

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial.

        Raises:
            KeyError: the trial does not exist.
        """
        with self.transaction() as session:
            chosen = TrialRow.trial_id == trial_id
            found = TrialReader(session.connection(), chosen, self._distributions).trials()
        if not found:
            raise KeyError(f"no trial {trial_id}")
        return found[0]

    def read_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included: set[int],
        after: int,
    ) -> list[FrozenTrial]:
        """Read the trials of a study that are listed or have larger ids than a given one."""
        listed = [i for i in included if i <= after]
        if states is not None or len(listed) > _MOST_IDS:
            return super().read_trials(study_id, states, included, after)
        with self.transaction() as session:
            self.require_study(session, study_id)
            chosen: ColumnElement[bool] = TrialRow.trial_id > after
            if listed:
                chosen = sqlalchemy.or_(chosen, TrialRow.trial_id.in_(listed))
            chosen = sqlalchemy.and_(TrialRow.study_id == study_id, chosen)
            return TrialReader(session.connection(), chosen, self._distributions).trials()


def _is_made_from(trial: FrozenTrial, template: FrozenTrial | None) -> bool:
    """Return whether a stored trial has the content of a template. None: an empty running trial."""
    if template is None:
        return trial.state == TrialState.RUNNING and not trial.params and not trial.system_attrs
    # Attributes are stored as JSON, which turns tuples into lists.
    return (
        trial.state == template.state
        and trial.params == template.params
        and trial.user_attrs == json.loads(json.dumps(template.user_attrs))
        and trial.system_attrs == json.loads(json.dumps(template.system_attrs))
    )


def _repeat_operations() -> None:
    """Let every operation of a `StudyStorage` be repeated after an outage."""
    for name in OPERATIONS:
        # The end of a trial repeats itself, because it must not forget what `with_end` kept.
        if name != "set_trial_state_values":
            setattr(StudyStorage, name, _repeating(getattr(StudyStorage, name)))


def _repeating(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def repeating(self: StudyStorage, *given: Any, **named: Any) -> Any:  # noqa: ANN401 (any method)
        return self.reconnection.repeat(lambda: method(self, *given, **named))

    return repeating


_repeat_operations()


def _note_flush(session: Session, _: object) -> None:
    session.info[_WROTE] = True


def _note_statement(statement: ORMExecuteState) -> None:
    if not statement.is_select:
        statement.session.info[_WROTE] = True
