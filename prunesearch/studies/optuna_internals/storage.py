"""An `RDBStorage` whose private methods have public names, and the tables that it uses."""

import copy
import re
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Table
from sqlalchemy.orm import Session

from prunesearch.runtime.json_values import Json

# The tables, by what a row holds. Their columns are typed for Optuna's ORM and not for plain rows.
TrialRow: Any = models.TrialModel
ParameterRow: Any = models.TrialParamModel
ValueRow: Any = models.TrialValueModel
ReportRow: Any = models.TrialIntermediateValueModel
UserAttributeRow: Any = models.TrialUserAttributeModel
SystemAttributeRow: Any = models.TrialSystemAttributeModel
StudyRow: Any = models.StudyModel
DirectionRow: Any = models.StudyDirectionModel
StudyAttributeRow: Any = models.StudyUserAttributeModel
TRIAL_STARTED: Any = TrialRow._datetime_start_utc
TRIAL_FINISHED: Any = TrialRow._datetime_complete_utc
"""Columns with the times of a trial, in UTC without a zone."""
STUDY_TABLE: Table = models.StudyModel.__table__
STUDY_PARTS: tuple[Table, ...] = (
    models.StudyDirectionModel.__table__,
    models.StudyUserAttributeModel.__table__,
)
"""Tables whose rows belong to a study, but for its system attributes."""
STUDY_SYSTEM_ATTRIBUTES: Table = models.StudySystemAttributeModel.__table__
TRIAL_TABLE: Table = models.TrialModel.__table__
TRIAL_PARTS: tuple[Table, ...] = (
    models.TrialParamModel.__table__,
    models.TrialValueModel.__table__,
    models.TrialIntermediateValueModel.__table__,
    models.TrialUserAttributeModel.__table__,
    models.TrialSystemAttributeModel.__table__,
    models.TrialHeartbeatModel.__table__,
)
"""Tables whose rows belong to a trial."""
ALL_TABLES = frozenset(models.BaseModel.metadata.tables)
"""Names of all of Optuna's tables."""
KEYS_WITH_TRIAL_ID = re.compile(
    r"(?P<before>dashboard:|dashboard:artifacts:|preference:skip_trial:)(?P<trial_id>\d+)(?=:|$)"
)
"""Names of system attributes of a study that contain the id of a trial.

optuna-dashboard 0.21.0 writes them: the notes and the artifacts of a trial, and the trials that a
user has skipped.
"""
OPERATIONS = (
    *("create_new_study", "delete_study", "set_study_user_attr", "set_study_system_attr"),
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions"),
    *("get_study_user_attrs", "get_study_system_attrs", "get_all_studies", "get_best_trial"),
    *("get_trial_user_attrs", "get_trial_system_attrs", "get_trial_param", "get_trial"),
    *("get_trial_id_from_study_id_trial_number", "get_all_trials", "create_new_trial"),
    *("set_trial_param", "set_trial_state_values", "set_trial_intermediate_value"),
    *("set_trial_user_attr", "set_trial_system_attr", "record_heartbeat"),
    # Optuna's cache calls these instead of some of the above.
    *("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id"),
    *("_get_stale_trial_ids",),
)
"""Names of the methods of `RDBStorage` that open a transaction."""


class OpenStorage(RDBStorage):
    """An `RDBStorage` that lets a subclass replace how trials are read and added.

    A subclass overrides `read_trials` and `add_trial`. The default of each does what Optuna does.

    Args:
        url: SQLAlchemy URL of the database.
        engine_kwargs: options of the connections.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(url, engine_kwargs=engine_kwargs, skip_compatibility_check=True)
        # Optuna's own check holds one session while it opens another. Processes that start together
        # would wait for each other where a pool has few sessions. So it is called only where it
        # fails, for its message.
        manager = self._version_manager
        if manager.get_current_version() != manager.get_head_version():
            manager.check_table_schema_compatibility()

    def transaction(self) -> AbstractContextManager[Session]:
        """Open the thread's session. It is committed when the outermost block ends."""
        transaction: AbstractContextManager[Session] = _create_scoped_session(self.scoped_session)
        return transaction

    def require_study(self, session: Session, study_id: int) -> None:
        """Check that a study exists.

        Raises:
            KeyError: it does not.
        """
        models.StudyModel.find_or_raise_by_id(study_id, session)

    def find_trial(self, session: Session, trial_id: int) -> models.TrialModel | None:
        """Return a trial as Optuna's ORM has it; None if it does not exist."""
        found: models.TrialModel | None = session.get(models.TrialModel, trial_id)
        return found

    def write_ending(
        self,
        session: Session,
        trial_id: int,
        attributes: Mapping[str, Json],
        reports: Mapping[int, float],
    ) -> None:
        """Write user attributes and intermediate values of a trial, without a commit."""
        for name, value in attributes.items():
            self._set_trial_attr_without_commit(
                session, models.TrialUserAttributeModel, trial_id, name, value
            )
        for step, reported in reports.items():
            self._set_trial_intermediate_value_without_commit(session, trial_id, step, reported)

    def read_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included: set[int],
        after: int,
    ) -> list[FrozenTrial]:
        """Read trials of a study.

        Args:
            study_id: the storage's number of the study.
            states: states of the trials to read; None for all.
            included: ids of trials to read.
            after: trials with larger ids are read too.
        """
        trials: list[FrozenTrial] = super()._get_trials(study_id, states, included, after)
        return trials

    def add_trial(
        self, study_id: int, template: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        """Add a trial to the session, with everything that its template holds."""
        added: models.TrialModel = super()._get_prepared_new_trial(study_id, template, session)
        return added

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        # Optuna's cache calls this method.
        return self.read_trials(study_id, states, included_trial_ids, trial_id_greater_than)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        # `create_new_trial` calls this method.
        return self.add_trial(study_id, template_trial, session)


def started_of(trial: Any) -> datetime | None:  # noqa: ANN401 (Optuna's models are untyped)
    """Return the start of a trial, in UTC without a zone, as it is stored."""
    started: datetime | None = trial._datetime_start_utc
    return started


def without_parameters(template: FrozenTrial) -> FrozenTrial:
    """Return a copy of a template that is running and has no parameters."""
    bare = copy.copy(template)
    bare._params, bare._distributions, bare.state = {}, {}, TrialState.RUNNING
    return bare
