"""The builtin text: English prose that is present on every machine.

It consists of Python's language reference (`pydoc_data.topics`) and the descriptions of
prunesearch's dependencies. It needs no download. Text of the user's own domain is better.
"""

import functools
import hashlib
import importlib.metadata
import re

from transformers import PreTrainedTokenizerBase

from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.calibration_sources.registry import CalibrationSource, register

HELD_OUT = "builtin-held-out"
"""Name of the part of the builtin text that is not used for calibration."""

_DESCRIBED = """accelerate alembic click datasets diskcache hf-xet huggingface-hub joblib lm-eval
    multiprocess nltk numpy optuna pandas peft psutil pydantic rich safetensors scikit-learn scipy
    sqlalchemy tokenizers torch tqdm transformers""".split()


def read(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Return the paragraphs of the part that is named."""
    return paragraphs(held_out=name == HELD_OUT)


def paragraphs(*, held_out: bool) -> list[str]:
    """Return the distinct paragraphs of prose of one part of the builtin text.

    A quarter of the documents is held out. The digest of a document's name decides its part. The
    language reference repeats itself, and a paragraph that is in both parts belongs to calibration.

    Args:
        held_out: return the held-out part instead of the calibration part.
    """
    calibration, measuring = _parts()
    return list(measuring if held_out else calibration)


@functools.cache
def _parts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paragraphs for calibration and those that are held out.

    Finding them takes a second, so it is done once per process.
    """
    from pydoc_data.topics import topics

    # Collect the documents.
    documents = dict(topics)
    for name in _DESCRIBED:
        try:
            documents[name] = str(importlib.metadata.metadata(name).json["description"])
        except (importlib.metadata.PackageNotFoundError, KeyError):
            continue
    # Split them into paragraphs and assign these to the two parts.
    parts: dict[bool, list[str]] = {False: [], True: []}
    for name in sorted(documents):
        part = parts[hashlib.sha256(name.encode()).digest()[0] < 64]
        for lines in re.split(r"\n\s*\n", documents[name]):
            paragraph = " ".join(lines.split())
            if _is_prose(paragraph):
                part.append(paragraph)
    # Remove duplicates.
    calibration = dict.fromkeys(parts[False])
    held_out = (p for p in dict.fromkeys(parts[True]) if p not in calibration)
    return tuple(calibration), tuple(held_out)


def _is_prose(paragraph: str) -> bool:
    """Return True for a long paragraph that consists mostly of letters and ends like a sentence."""
    if len(paragraph) <= 120 or paragraph[-1] not in ".:)":
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return letters > 0.88 * len(paragraph)


def held_out_of(name: str) -> str | None:
    """Return the name of the held-out part."""
    return HELD_OUT if name == BUILTIN_TEXT else None


register(
    CalibrationSource(
        "builtin",
        f"{BUILTIN_TEXT} or {HELD_OUT}",
        order=10,
        matches=lambda name: name in (BUILTIN_TEXT, HELD_OUT),
        read=read,
        held_out=held_out_of,
    )
)
