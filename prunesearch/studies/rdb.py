"""Optuna's RDB storage with two changes that long studies need.

First, a study of 10,000 trials with 80 parameters opens in seconds instead of minutes. Trials are
read as plain rows, and each distinct distribution is parsed once. The objects that Optuna's ORM
would build for every parameter are not built. Second, a trial's last attributes are written in the
transaction that finishes the trial, instead of in one transaction each.

The tables and their meaning are Optuna's, so any other Optuna client can read and write the same
studies.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypedDict

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, event
from sqlalchemy.orm import ORMExecuteState, Session

from prunesearch.runtime.json_values import Json
from prunesearch.studies.optuna_internals.storage import (
    TRIAL_FINISHED,
    TRIAL_STARTED,
    OpenStorage,
    ParameterRow,
    ReportRow,
    SystemAttributeRow,
    TrialRow,
    UserAttributeRow,
    ValueRow,
    without_parameters,
)

_WROTE = "prunesearch wrote"  # key in a session's `info`: the transaction has written
_MOST_IDS = 500  # largest number of ids in one IN clause; every database takes that many


class EngineOptions(TypedDict, total=False):
    """Options of SQLAlchemy's engine that studies are opened with."""

    pool_pre_ping: bool
    connect_args: Mapping[str, int | None]


class StudyStorage(OpenStorage):
    """An `RDBStorage` that reads many trials fast and finishes a trial in one transaction."""

    def __init__(self, url: str, engine_kwargs: EngineOptions | None = None) -> None:
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
        with self.transaction() as session:
            self.write_ending(session, trial_id, attributes, reports)
            # A session belongs to a thread. So this call joins the transaction, and its end commits
            # everything.
            return super().set_trial_state_values(trial_id, state, values)

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

        Optuna writes them one by one.
        """
        if template is None or not template.params:
            return super().add_trial(study_id, template, session)
        # Let Optuna add the trial without its parameters, as one that is running. Its state is set
        # last.
        added = super().add_trial(study_id, without_parameters(template), session)
        self._set_trial_params_in_bulk(session, study_id, int(added.trial_id), template)
        added.state = template.state
        return added

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial.

        Raises:
            KeyError: the trial does not exist.
        """
        with self.transaction() as session:
            chosen = TrialRow.trial_id == trial_id
            found = _Reader(session.connection(), chosen, self._distributions).trials()
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
            return _Reader(session.connection(), chosen, self._distributions).trials()


def _note_flush(session: Session, _: object) -> None:
    session.info[_WROTE] = True


def _note_statement(statement: ORMExecuteState) -> None:
    if not statement.is_select:
        statement.session.info[_WROTE] = True


class _Reader:
    """Reads some trials with one query per table."""

    def __init__(
        self,
        connection: sqlalchemy.Connection,
        chosen: ColumnElement[bool],
        distributions: dict[str, BaseDistribution],
    ) -> None:
        self._connection, self._chosen, self._distributions = connection, chosen, distributions

    def trials(self) -> list[FrozenTrial]:
        """Return the trials in the order of their ids."""
        # 1. Read the trials themselves.
        heads = self._connection.execute(
            sqlalchemy.select(
                TrialRow.trial_id,
                TrialRow.number,
                TrialRow.state,
                TRIAL_STARTED,
                TRIAL_FINISHED,
            )
            .where(self._chosen)
            .order_by(TrialRow.trial_id)
        ).all()
        if not heads:
            return []
        # 2. Read everything that belongs to them, by trial id.
        params, distributions = self._params()
        user = self._attributes(UserAttributeRow)
        system = self._attributes(SystemAttributeRow)
        values, steps = self._values(), self._steps()
        # 3. Put the parts together.
        found = []
        for i, number, state, start, complete in heads:
            # The values in the order of objectives; None for a trial without values.
            objectives: list[float] | None = None
            if i in values:
                objectives = [values[i][objective] for objective in sorted(values[i])]
            found.append(
                FrozenTrial(
                    number=number,
                    state=state,
                    value=None,
                    values=objectives,
                    datetime_start=_local(start),
                    datetime_complete=_local(complete),
                    params=params.get(i, {}),
                    distributions=distributions.get(i, {}),
                    user_attrs=user.get(i, {}),
                    system_attrs=system.get(i, {}),
                    intermediate_values=steps.get(i, {}),
                    trial_id=i,
                )
            )
        return found

    def _rows(
        self,
        table: Any,  # noqa: ANN401
        *columns: Any,  # noqa: ANN401
        order: Any = None,  # noqa: ANN401
    ) -> Iterator[Any]:
        query = sqlalchemy.select(table.trial_id, *columns).join(
            TrialRow, table.trial_id == TrialRow.trial_id
        )
        return iter(self._connection.execute(query.where(self._chosen).order_by(order)))

    def _params(
        self,
    ) -> tuple[dict[int, dict[str, CategoricalChoiceType]], dict[int, dict[str, BaseDistribution]]]:
        params: defaultdict[int, dict[str, CategoricalChoiceType]] = defaultdict(dict)
        distributions: defaultdict[int, dict[str, BaseDistribution]] = defaultdict(dict)
        parsed = self._distributions
        for i, name, value, text in self._rows(
            ParameterRow,
            ParameterRow.param_name,
            ParameterRow.param_value,
            ParameterRow.distribution_json,
            order=ParameterRow.param_id,
        ):
            # Parse each distinct distribution once.
            distribution = parsed.get(text)
            if distribution is None:
                distribution = parsed[text] = json_to_distribution(text)
            params[i][name] = distribution.to_external_repr(value)
            distributions[i][name] = distribution
        return params, distributions

    def _attributes(self, table: Any) -> dict[int, dict[str, Json]]:  # noqa: ANN401
        found: defaultdict[int, dict[str, Json]] = defaultdict(dict)
        for i, key, text in self._rows(table, table.key, table.value_json):
            found[i][key] = json.loads(text)
        return found

    def _values(self) -> dict[int, dict[int, float]]:
        table = ValueRow
        found: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for i, objective, value, kind in self._rows(
            table, table.objective, table.value, table.value_type
        ):
            found[i][objective] = table.stored_repr_to_value(value, kind)
        return found

    def _steps(self) -> dict[int, dict[int, float]]:
        table = ReportRow
        found: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for i, step, value, kind in self._rows(
            table, table.step, table.intermediate_value, table.intermediate_value_type
        ):
            found[i][step] = table.stored_repr_to_intermediate_value(value, kind)
        return found


def _local(utc: datetime | None) -> datetime | None:
    """Convert a stored time to local time.

    Optuna stores UTC and shows local time, both without a zone.
    """
    if utc is None:
        return None
    return utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
