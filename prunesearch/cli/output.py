"""What a command shows beside its result: progress, and no messages of libraries."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prunesearch import events
from prunesearch.runtime.silence import quiet, quiet_optuna, quiet_warnings

__all__ = ["progress", "quiet", "quiet_optuna", "quiet_warnings"]


@contextmanager
def progress(loads_torch: bool = False) -> Iterator[None]:
    """Show the progress of the ``with`` block.

    Args:
        loads_torch: whether the block imports torch. That takes seconds, so a line says it.
    """
    from prunesearch.report.progress import ProgressView

    with ProgressView():
        if loads_torch and "torch" not in sys.modules:
            events.tell(events.StageProgress("loading torch and transformers"))
        quiet()
        yield
