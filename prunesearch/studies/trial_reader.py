"""Reads trials of Optuna's tables as plain rows.

Each distinct distribution is parsed once, and the objects that Optuna's ORM would build for every
parameter are not built.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalChoiceType, json_to_distribution
from optuna.trial import FrozenTrial
from sqlalchemy import ColumnElement

from prunesearch.runtime.json_values import Json
from prunesearch.studies.optuna_internals.storage import (
    TRIAL_FINISHED,
    TRIAL_STARTED,
    ParameterRow,
    ReportRow,
    SystemAttributeRow,
    TrialRow,
    UserAttributeRow,
    ValueRow,
)


class TrialReader:
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
                    datetime_start=_to_local(start),
                    datetime_complete=_to_local(complete),
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


def _to_local(utc: datetime | None) -> datetime | None:
    """Convert a stored time to local time.

    Optuna stores UTC and shows local time, both without a zone.
    """
    if utc is None:
        return None
    return utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
