"""The registry of calibration sources.

A file in this folder that calls `register` adds a source. A source says which names it matches, and
how their text is read. The first source that matches is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError, UnknownNameError
from prunesearch.runtime.registry import Registry

ReadTexts = Callable[[str, PreTrainedTokenizerBase | None], list[str]]
"""Takes the name of a text and the tokenizer with the chat template for conversations, or None.
Returns the documents. Raises a `DataError` if the text cannot be read."""


def no_held_out(name: str) -> str | None:
    """Return None: the source has no text of its own for measuring."""
    return None


def no_check(name: str) -> None:
    """Do nothing: what is wrong with a name shows when its text is read."""


@dataclass(frozen=True)
class CalibrationSource:
    """Facts about one calibration source.

    Attributes:
        name: name of the source.
        label: the names that it matches, for help texts.
        order: position among the sources. A source that matches almost every name comes last.
        matches: function that returns whether the source reads a name, which the user gave.
        read: function that reads the documents of a name.
        held_out: function that returns the name of text that has nothing in common with the text of
            a name; None if there is none.
        check: function that raises a `DataError` if it is certain that the text cannot be read. It
            reads little.
    """

    name: str
    label: str
    order: int
    matches: Callable[[str], bool]
    read: ReadTexts
    held_out: Callable[[str], str | None] = no_held_out
    check: Callable[[str], None] = no_check


REGISTRY: Registry[CalibrationSource] = Registry(
    "prunesearch.objectives.calibration_sources",
    lambda name, known: UnknownNameError("calibration source", name, known),
)
register = REGISTRY.register


def source_of(name: str) -> CalibrationSource:
    """Return the first source that matches a name.

    Raises:
        DataError: no source matches.
    """
    for source in REGISTRY.entries():
        if source.matches(name):
            return source
    labels = ", ".join(source.label for source in REGISTRY.entries())
    raise DataError(f"no calibration text {name!r}: give {labels}")
