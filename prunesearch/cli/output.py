"""What a command shows beside its result: progress, and no messages of libraries."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunesearch.report.progress import ProgressView


def progress() -> "ProgressView":
    """Return a view of the progress, which is shown while it is open."""
    quiet()
    from prunesearch.report.progress import ProgressView

    return ProgressView()


def quiet_optuna() -> None:
    """Let Optuna log warnings and errors only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def quiet() -> None:
    """Silence libraries, so that the terminal shows our own progress only.

    Our errors contain their messages.
    """
    import transformers

    quiet_optuna()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("huggingface_hub", "datasets", "lm_eval", "psycopg"):
        logging.getLogger(name).setLevel(logging.ERROR)
