"""The results of `prunesearch doctor`."""

from dataclasses import dataclass

FINE, NOTE, BROKEN = "fine", "note", "broken"


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: name of the check.
        found: what was found.
        status: `FINE`, `NOTE` (worth knowing, but nothing is broken) or `BROKEN`.
        remedy: advice to the user; empty if there is nothing to do.
    """

    name: str
    found: str
    status: str = FINE
    remedy: str = ""


@dataclass(frozen=True)
class Checks:
    """Results of all checks."""

    checks: tuple[Check, ...]
