"""Latency of a search's best candidate beside the dense model's, which a study measures once."""

import json
from typing import TypedDict
from weakref import WeakKeyDictionary

from optuna.study import Study
from transformers import PreTrainedModel

from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.execution.latency import compare_latency, machine
from prunesearch.studies.stored_facts import stored_object

ATTRIBUTE = "winner_latency"


class StoredWinnerLatency(TypedDict):
    """What a study keeps of the last measurement.

    Attributes:
        dropped: the candidate.
        machine: hardware and threads, as `latency.machine` names them.
        dense_ms, best_ms: median milliseconds of a prefill of each model.
    """

    dropped: str
    machine: str
    dense_ms: float
    best_ms: float


_measured: WeakKeyDictionary[PreTrainedModel, StoredWinnerLatency] = WeakKeyDictionary()
"""The last measurement of each model of this process. Two searches often have the same winner."""


def winner_latency(
    study: Study, model: PreTrainedModel, candidate: LayerSubset
) -> tuple[float, float]:
    """Return the median milliseconds of a prefill: dense, and of the candidate.

    A measurement of the same candidate on the same machine is taken from the study, or from
    another search of the same model in this process. Both numbers come from one measurement.
    """
    here = machine(model)
    stored = _stored(study)
    for known in (stored, _measured.get(model)):
        if known is not None and (known["dropped"], known["machine"]) == (candidate.text, here):
            break
    else:
        events.tell(events.StageProgress("timing the winner beside the dense model"))
        dense_ms, best_ms = compare_latency(model, candidate)
        known = StoredWinnerLatency(
            dropped=candidate.text, machine=here, dense_ms=dense_ms, best_ms=best_ms
        )
    _measured[model] = known
    if known != stored:
        study.set_user_attr(ATTRIBUTE, json.dumps(known))
    return known["dense_ms"], known["best_ms"]


def _stored(study: Study) -> StoredWinnerLatency | None:
    """Return the measurement that a study keeps; None if there is none, or it is damaged."""
    found = stored_object(study.user_attrs.get(ATTRIBUTE))
    dropped, here = found.get("dropped"), found.get("machine")
    dense_ms, best_ms = found.get("dense_ms"), found.get("best_ms")
    if not isinstance(dropped, str) or not isinstance(here, str):
        return None
    if not isinstance(dense_ms, float) or not isinstance(best_ms, float):
        return None
    return StoredWinnerLatency(dropped=dropped, machine=here, dense_ms=dense_ms, best_ms=best_ms)
