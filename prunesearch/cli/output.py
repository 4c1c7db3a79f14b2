"""What a command shows beside its result: progress, and no messages of libraries."""

from typing import TYPE_CHECKING

from prunesearch.runtime.silence import quiet, quiet_optuna, quiet_warnings

if TYPE_CHECKING:
    from prunesearch.report.progress import ProgressView

__all__ = ["progress", "quiet", "quiet_optuna", "quiet_warnings"]


def progress() -> "ProgressView":
    """Return a view of the progress, which is shown while it is open."""
    quiet()
    from prunesearch.report.progress import ProgressView

    return ProgressView()
