"""Figures of a study that optuna-dashboard shows.

They are system attributes of the study, as optuna-dashboard itself writes them. All figures of one
drawing are written in one transaction over a connection of its own: a search writes into the same
database, and shall not wait for some hundred transactions.
"""

import json
from collections.abc import Mapping, Sequence

import sqlalchemy
from sqlalchemy import Engine

from prunesearch.studies.notes import optuna_dashboard_module
from prunesearch.studies.optuna_internals.access import as_gathering_study
from prunesearch.studies.optuna_internals.storage import STUDY_SYSTEM_ATTRIBUTES, STUDY_TABLE


class _GatheredAttributes:
    """A storage that keeps the system attributes of a study, instead of writing them.

    Args:
        known: names of the attributes that the study has.
    """

    def __init__(self, known: Sequence[str]) -> None:
        self._known = dict.fromkeys(known, "")
        self.written: dict[str, str] = {}

    def set_study_system_attr(self, _: int, name: str, value: str) -> None:
        """Keep an attribute."""
        self.written[name] = value

    def get_study_system_attrs(self, _: int) -> dict[str, str]:
        """Return the attributes."""
        return {**self._known, **self.written}


def save_figures(engine: Engine, name: str, figures: Mapping[str, object]) -> None:
    """Show figures in the dashboard, in place of earlier ones of the same names.

    Nothing is written if the study does not exist any more.

    Args:
        engine: database of the study.
        name: name of the study.
        figures: figures of plotly, by names that are valid ids in HTML.
    """
    table = STUDY_SYSTEM_ATTRIBUTES
    if not figures:
        return
    # 1. Read which attributes the study has.
    with engine.connect() as connection:
        found = sqlalchemy.select(STUDY_TABLE.c.study_id).where(STUDY_TABLE.c.study_name == name)
        study_id = connection.execute(found).scalar()
        if study_id is None:
            return
        names = sqlalchemy.select(table.c.key).where(table.c.study_id == study_id)
        gathered = _GatheredAttributes(connection.execute(names).scalars().all())
    # 2. Let optuna-dashboard divide each figure into attributes.
    save, target = optuna_dashboard_module().save_plotly_graph_object, as_gathering_study(gathered)
    for figure_name, figure in figures.items():
        save(target, figure, graph_object_id=figure_name)
    # 3. Replace the attributes.
    rows, replaced = [], []
    for key, value in gathered.written.items():
        rows.append({"study_id": study_id, "key": key, "value_json": json.dumps(value)})
        replaced.append({"replaced": key})
    same = sqlalchemy.and_(
        table.c.study_id == study_id, table.c.key == sqlalchemy.bindparam("replaced")
    )
    with engine.begin() as connection:
        connection.execute(sqlalchemy.delete(table).where(same), replaced)
        connection.execute(table.insert(), rows)
