"""What went wrong in a store and must be looked at: damage that was taken out, and values that disagree."""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from prunesearch.store.entry import Entry

DAMAGE, DISAGREEMENT = "damage", "disagreement"
_MOST = 2**16  # characters of a damaged row that are kept
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    """One thing to look at.

    Attributes:
        kind: `DAMAGE` or `DISAGREEMENT`.
        key: digest of the entry, or the name of the file.
        detail: what was found: the damaged row; the value that stays and the one that came later.
        at: when, seconds since 1970.
    """

    kind: str
    key: str
    detail: str
    at: float

    @classmethod
    def damage(cls, key: object, found: object) -> Self:
        """An entry that cannot be trusted was taken out."""
        return cls(DAMAGE, str(key)[:100], (found if isinstance(found, str) else repr(found))[:_MOST], time.time())

    @classmethod
    def disagreement(cls, stays: Entry, other: Entry) -> Self:
        """The same key was computed twice, with values that differ by more than the tolerance."""
        detail = json.dumps({"preimage": stays.key.preimage, "stays": stays.value, "other": other.value})
        return cls(DISAGREEMENT, stays.key.digest, detail[:_MOST], time.time())

    def say(self, where: str) -> None:
        """Warn whoever watches."""
        if self.kind == DAMAGE:
            _log.warning("damaged entry %s was taken out of %s and will be computed again", self.key[:12], where)
        else:
            _log.warning(
                "two computations of entry %s disagree: the first value stays in %s; see prunesearch cache verify",
                self.key[:12],
                where,
            )


class AlarmFile:
    """Alarms as JSON lines, one write each, in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, alarm: Alarm) -> None:
        """Keep an alarm. A disk that takes no more is said by the log alone: the alarm is not what must be saved."""
        if alarm.kind == DISAGREEMENT and any((a.key, a.detail) == (alarm.key, alarm.detail) for a in self.read()):
            return  # the same two values, once more
        alarm.say(str(self.path.parent))
        line = json.dumps(asdict(alarm), ensure_ascii=True) + "\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line.encode())
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            _log.warning("the alarm could not be kept: %s", error.strerror)

    def read(self) -> list[Alarm]:
        """All alarms that can be read, oldest first."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return [alarm for line in lines if (alarm := _read(line)) is not None]


def _read(line: str) -> Alarm | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        return Alarm(str(fields["kind"]), str(fields["key"]), str(fields["detail"]), float(fields["at"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
