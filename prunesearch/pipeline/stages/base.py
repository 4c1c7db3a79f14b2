"""A stage: its name, the check of its input, and its work."""

from collections.abc import Callable
from dataclasses import dataclass

from prunesearch.pipeline.state import Request, State


def _accept(request: Request) -> None:
    """Accept every request."""


def _always(state: State) -> bool:
    """Want the stage in every command."""
    return True


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline.

    Attributes:
        name: name of the stage.
        run: does the work and returns the state with its results. It finds an earlier result by
            content, so a stage that ran before costs little.
        check: refuses a request that the stage cannot fulfil. All checks of a command are made
            before the first stage runs, so that bad input costs no work.
        wanted: tells whether the request asks for this stage; it is skipped otherwise.
        defers_signals: True if a signal only sets a flag, which the work checks at safe points.
            False if the stage itself does this for a part of its work, so that loading can be
            interrupted at once.
    """

    name: str
    run: Callable[[State], State]
    check: Callable[[Request], None] = _accept
    wanted: Callable[[State], bool] = _always
    defers_signals: bool = True
