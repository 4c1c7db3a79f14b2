"""Silences libraries, so that only our own progress and errors are shown."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_optuna() -> None:
    """Let Optuna log warnings and errors only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def quiet() -> None:
    """Silence libraries. Our errors contain their messages."""
    import transformers

    quiet_optuna()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("huggingface_hub", "datasets", "lm_eval", "psycopg"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Show no warnings of libraries, such as those of a letter that a font lacks.

    A reader of a report can do nothing about them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
