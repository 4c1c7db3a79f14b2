"""The process that writes a study: its name in messages, and whether it still exists."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prunesearch.errors import StudyBusyError


@dataclass(frozen=True)
class Writer:
    """The process that writes a study. A field is None if it is unknown.

    Attributes:
        pid: process id.
        host: name of the host.
        since: time at which the process locked the study, in seconds since 1970.
    """

    pid: int | None = None
    host: str | None = None
    since: float | None = None

    def __str__(self) -> str:
        if self.pid is None or self.since is None:
            return "another process"
        began = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"another process (pid {self.pid} on {self.host}, since {began})"


def busy(name: str, writer: Writer, more: str = "") -> StudyBusyError:
    """Return the error for a study that another process writes."""
    return StudyBusyError(
        f"study {name!r} is being searched by {writer}{more}: wait for it, or give `study` NAME"
    )


def this_process() -> str:
    """Return an identifier of this process that is unique among all hosts and across restarts.

    It is empty if the system does not provide one.
    """
    return process_name(os.getpid())


def process_name(pid: int) -> str:
    """Return an identifier of a process of this host; see `this_process`.

    It is empty if the process is gone.
    """
    started = _started(pid)
    if not started:
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {pid} {started}"
    except OSError:
        return ""


def is_dead(process: str) -> bool:
    """Return whether a process is known to be gone.

    This is known only of processes that ran on this host, in this process namespace.
    """
    owned, words = this_process().split(" "), process.split(" ")
    if len(words) != 4 or len(owned) != 4 or words[:2] != owned[:2] or not words[2].isdecimal():
        return False
    # A process that was gone when it was named has no start.
    return not words[3] or _started(int(words[2])) != words[3]


def _started(pid: int) -> str:
    """Return the start of a process in ticks since the host started; empty if it is gone."""
    # The name of the process, in parentheses, may contain blanks.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie counts as gone.
    if fields[0] in "ZX":
        return ""
    return fields[19]
