"""Reports of what went wrong in a cache: entries that were damaged, and values that disagree."""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from prunesearch.cache.entry import Entry
from prunesearch.runtime.json_values import as_float, as_object

DAMAGE, DISAGREEMENT = "damage", "disagreement"
NAME = "incidents.jsonl"
"""Name of the file in the folder of a cache."""
_OLDER_NAME = "alarms.jsonl"
_MOST = 2**16  # largest number of characters of a damaged row that are kept
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Incident:
    """A report that a user should look at.

    Attributes:
        kind: `DAMAGE` or `DISAGREEMENT`.
        key: digest of the entry, or name of the file.
        detail: the damaged row, or the value that stays and the value that disagrees with it.
        at: time of the report in seconds since 1970.
    """

    kind: str
    key: str
    detail: str
    at: float

    @classmethod
    def damage(cls, key: object, found: object) -> Self:
        """Make the report of a damaged entry that was removed."""
        text = found if isinstance(found, str) else repr(found)
        return cls(DAMAGE, str(key)[:100], text[:_MOST], time.time())

    @classmethod
    def disagreement(cls, kept: Entry, other: Entry) -> Self:
        """Make the report of two values of one key that differ by more than the tolerance."""
        detail = json.dumps(
            {"preimage": kept.key.preimage, "stays": kept.value, "other": other.value}
        )
        return cls(DISAGREEMENT, kept.key.digest, detail[:_MOST], time.time())

    def log(self, where: str) -> None:
        """Log the report as a warning."""
        if self.kind == DAMAGE:
            _log.warning(
                "damaged entry %s was taken out of %s and will be computed again",
                self.key[:12],
                where,
            )
        else:
            _log.warning(
                "two computations of entry %s disagree: the first value stays in %s; see "
                "prunesearch cache verify",
                self.key[:12],
                where,
            )


class IncidentFile:
    """The file of a folder's incidents, as JSON lines. Each line is written by one call.

    Args:
        folder: folder of the cache, which holds the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        # Versions before 0.2 wrote the same lines to a file of another name.
        self._older = folder / _OLDER_NAME

    def add(self, incident: Incident) -> None:
        """Append an incident to the file and log it. If the disk does not work, log only."""
        # Report the same two values once.
        if incident.kind == DISAGREEMENT:
            for known in self.read():
                if (known.key, known.detail) == (incident.key, incident.detail):
                    return
        incident.log(str(self.path.parent))
        line = json.dumps(asdict(incident), ensure_ascii=True) + "\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line.encode())
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            _log.warning("the incident could not be recorded: %s", error.strerror)

    def read(self) -> list[Incident]:
        """Return all incidents that can be read, oldest first."""
        found = []
        for path in (self._older, self.path):
            try:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                continue
            for line in lines:
                incident = _read(line)
                if incident is not None:
                    found.append(incident)
        return found


def _read(line: str) -> Incident | None:
    try:
        fields = as_object(json.loads(line), "an incident")
        return Incident(
            str(fields["kind"]),
            str(fields["key"]),
            str(fields["detail"]),
            as_float(fields["at"], "at"),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
