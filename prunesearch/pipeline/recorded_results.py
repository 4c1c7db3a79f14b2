"""What the stages after a search have measured of a study's candidate, stored in the study.

Reports show it beside the search. The stages' own results do not depend on it, so a study that
cannot be written is only logged.
"""

import logging
import time

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.errors import PruneSearchError, one_line
from prunesearch.execution.latency import machine
from prunesearch.export.results import Exported
from prunesearch.objectives.identity import tokens_digest
from prunesearch.pipeline.state import Selected, State
from prunesearch.studies import measurements, persistence
from prunesearch.studies.exports import remember_export
from prunesearch.studies.measurements import Measurement

_METRIC = "cross_entropy"
_log = logging.getLogger(__name__)


def record_export(state: State, choice: Selected, made: Exported) -> None:
    """Store where a checkpoint of a study lies, and what was measured of it.

    Args:
        state: state after the stages that changed the candidate's weights.
        choice: the candidate.
        made: the verified checkpoint.
    """
    name = choice.facts.get("study")
    if not isinstance(name, str):
        return
    try:
        storage = persistence.open_storage(state.request.options.storage, create=False)
        study = persistence.load(storage, name)
        remember_export(study, made.folder)
        for measurement in _measured(state, choice, made):
            measurements.add(study, measurement)
    except (PruneSearchError, SQLAlchemyError, StorageInternalError) as error:
        _log.warning("study %r does not know its checkpoint: %s", name, one_line(error))


def _measured(state: State, choice: Selected, made: Exported) -> list[Measurement]:
    """Return the held-out losses of the last stage that changed weights: of the dense model, and of
    the checkpoint.
    """
    # 1. The last stage that changed weights decides what the losses are.
    windows_BL = state.resources.held_out_BL
    if state.recovery is not None and state.recovery.healed is not None:
        recipe, losses = state.heal_recipe, state.recovery.losses
        assert recipe is not None
        assert losses is not None
        windows_BL = state.resources.plan(choice.candidate, recipe).sequences.held_out_BL
        role, dense, after = "healed", losses["dense"], state.recovery.healed.after
    elif state.compensation is not None and windows_BL is not None:
        done = state.compensation
        role, dense, after = "compensated", done.dense[_METRIC], done.compensated[_METRIC]
    else:
        return []
    # 2. The dense model and the checkpoint were scored on the same windows.
    loaded = state.resources.loaded
    sizes = {
        "dense": (loaded.sizes.params(), loaded.sizes.bytes()),
        role: (made.params, made.bytes),
    }
    found = []
    for each, candidate, value in (
        ("dense", measurements.DENSE, dense),
        (role, choice.candidate.text, after),
    ):
        params, size = sizes[each]
        found.append(
            Measurement(
                candidate=candidate,
                role=each,
                data=f"held-out text of {role} weights, {windows_BL.numel():,} tokens",
                data_content=tokens_digest(windows_BL.tolist()),
                badge="held out",
                metric=_METRIC,
                value=value,
                stderr=None,
                n=len(windows_BL),
                params=params,
                bytes=size,
                made=time.time(),
                machine=machine(loaded.model),
            )
        )
    return found
