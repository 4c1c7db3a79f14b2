"""The checkpoints that were made of a study's candidates, by host."""

import json
import socket
from pathlib import Path

from optuna.study import Study

from prunesearch.studies.optuna_internals.access import set_system_attribute, system_attributes

EXPORTS_ATTR = "prunesearch:exports"
"""System attribute of a study: folders of its exports on each host, the latest first."""
_KEPT = 16  # number of folders that are kept for each host


def remember_export(study: Study, folder: Path) -> None:
    """Store where a checkpoint of the study lies on this host."""
    known = _known(study)
    host, place = socket.gethostname(), str(folder.absolute())
    before = known.get(host, [])
    if before[:1] == [place]:
        return
    known[host] = [place, *(other for other in before if other != place)][:_KEPT]
    set_system_attribute(study, EXPORTS_ATTR, json.dumps(known))


def exports_here(study: Study) -> list[Path]:
    """Return the checkpoints of the study that still exist on this host, the latest first."""
    found = []
    for place in _known(study).get(socket.gethostname(), []):
        folder = Path(place)
        if folder.is_dir():
            found.append(folder)
    return found


def _known(study: Study) -> dict[str, list[str]]:
    """Return the stored folders. Anybody may write into a shared database, so they may be none."""
    try:
        stored = json.loads(system_attributes(study).get(EXPORTS_ATTR, "{}"))
    except (TypeError, ValueError):
        return {}
    known: dict[str, list[str]] = {}
    if isinstance(stored, dict):
        for host, places in stored.items():
            if isinstance(places, list):
                known[host] = [place for place in places if isinstance(place, str)]
    return known
