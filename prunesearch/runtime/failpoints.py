"""Failpoints: named places where a test makes the process fail, to check that no result is lost.

The package names the points, but only tests arm them. A test enforces that. No option
and no environment variable arms them.
"""

from collections.abc import Callable

POINTS = (
    *("after_acquire", "after_score", "before_commit", "after_commit"),
    *("before_tell", "after_tell", "mid_export", "mid_salvage"),
)

Action = Callable[[str, str], None]
"""Called with the name of the point and its subject: a key's digest, or a trial's number."""

_action: Action | None = None


def enable(action: Action | None) -> None:
    """Call `action` at every point of this process from now on. None disarms all points."""
    global _action
    _action = action


def hit(point: str, subject: str = "") -> None:
    """Call the armed action, if any, because the code has reached a point."""
    if _action is not None:
        assert point in POINTS, point
        _action(point, subject)
