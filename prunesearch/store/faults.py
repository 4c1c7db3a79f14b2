"""Places where a process can be made to die or to stop, to see that nothing is lost: reachable under test only.

The package names the points and never arms them; a test enforces that. No option and no environment variable does.
"""

from collections.abc import Callable

POINTS = (
    *("after_claim", "after_score", "before_commit", "after_commit"),
    *("before_tell", "after_tell", "mid_export", "mid_salvage"),
)

Action = Callable[[str, str], None]
"""Called with the point's name and what the code is about there: a key's digest, or a trial's number."""

_action: Action | None = None


def arm(action: Action | None) -> None:
    """Have `action` called at every point of this process; None disarms."""
    global _action
    _action = action


def reach(point: str, subject: str = "") -> None:
    """Say that the code has come to a point."""
    if _action is not None:
        assert point in POINTS, point
        _action(point, subject)
