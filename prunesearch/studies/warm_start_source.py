"""Where the prior knowledge of a study comes from."""

from dataclasses import dataclass

from optuna.study import Study

from prunesearch.runtime.json_values import JsonObject, as_int, as_text
from prunesearch.studies.stored_facts import stored_object
from prunesearch.units import noun_for

WARM_START_ATTR = "warm start"
"""User attribute of a study: its prior knowledge."""


@dataclass(frozen=True)
class WarmStartSource:
    """Where the prior knowledge of a study comes from.

    Attributes:
        study: name of the other study.
        trials: number of its trials that were used. They do not count here.
    """

    study: str
    trials: int

    @property
    def text(self) -> str:
        """The source in words."""
        trials = f"{self.trials} {noun_for(self.trials, 'trial')}"
        return f"warm start: {trials} of study {self.study}"


def warm_start_line(source: WarmStartSource | None) -> list[str]:
    """Return a line about the source; empty without one."""
    return [] if source is None else [source.text]


def source_in(study: Study) -> WarmStartSource | None:
    """Return where a study's prior knowledge comes from; None if it began without."""
    return source_of(stored_object(study.user_attrs.get(WARM_START_ATTR)))


def source_of(stored: JsonObject) -> WarmStartSource | None:
    """Return the source that a study has stored; None for an empty object."""
    if not stored:
        return None
    return WarmStartSource(as_text(stored["study"], "study"), as_int(stored["trials"], "trials"))
