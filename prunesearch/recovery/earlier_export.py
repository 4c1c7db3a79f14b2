"""An export that an earlier, equal recovery wrote. The same command again leaves it as it is."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from prunesearch.cache.keys import canonical_json
from prunesearch.candidate import LayerSubset
from prunesearch.config.recovery import Recovery
from prunesearch.export import MANIFEST, check_destination
from prunesearch.models.loading import LoadedModel
from prunesearch.recovery.healing import HealPlan
from prunesearch.runtime.json_values import JsonObject

FACT = "recovery"
"""Name of the report of a recovery in an export's manifest."""
_IDENTIFYING = {"finalists", "finalist_steps", "compensate", "tune"}
"""Settings of a recovery that determine the checkpoint, besides the recipe of healing."""


def digest_of(
    loaded: LoadedModel,
    candidates: Sequence[LayerSubset],
    recovery: Recovery,
    planned: HealPlan | None,
) -> str:
    """Return the digest of everything that determines the checkpoint.

    These are the model, the candidates, the recipes and the content of the text.

    Args:
        loaded: the dense model.
        candidates: the candidates, best first.
        recovery: settings of the recovery.
        planned: plan of the healing of the first candidate; None for no healing.
    """
    identity: JsonObject = {
        "model": loaded.fingerprint,
        "candidates": [candidate.canonical for candidate in candidates],
        "recovery": recovery.model_dump(mode="json", include=_IDENTIFYING),
        "heal": None if planned is None else planned.identity,
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def report_at(out: Path) -> JsonObject | None:
    """Read the report of a recovery from its export. None if the folder holds no such export."""
    try:
        report = json.loads((out / MANIFEST).read_text(encoding="utf-8"))[FACT]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(report, dict) or "digest" not in report:
        return None
    return report


def check_out(out: Path) -> None:
    """Check a destination before any work is done.

    A folder that holds an earlier recovery is accepted, because it may be the wanted export.

    Raises:
        StorageError: the folder holds something else, or it cannot be written.
    """
    if report_at(out) is None:
        check_destination(out)
