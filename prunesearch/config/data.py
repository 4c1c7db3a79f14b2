"""Section `data` of a recipe: the text or the documents that candidates are scored on."""

from typing import Annotated, ClassVar

from pydantic import Field

from prunesearch.config.settings import Settings
from prunesearch.objectives.base import BUILTIN_TEXT

ORDER_TEXT = ("calibration", "tokens", "window")
"""Settings of the text that a channel order is measured on."""


class DataSection(Settings):
    """Calibration text, and the documents of tasks."""

    title: ClassVar[str] = "recipe"

    calibration: str = BUILTIN_TEXT
    """Text for the objectives on calibration text: a file (see `objectives.text_files`), a dataset
    (``id[:config[:split]]``) or ``builtin``."""
    tokens: Annotated[int, Field(ge=16)] = 1024
    """Number of calibration tokens that are scored."""
    window: Annotated[int, Field(ge=16)] = 256
    """Length of one calibration sequence, in tokens."""
    task_data: str | None = None
    """A local .jsonl[.gz|.bz2] file that replaces the task's own data."""
    include_path: str | None = None
    """A folder with additional task YAML files."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of documents of the task that are used; default: all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Number of few-shot examples; default: the task's."""
    batch_tokens: Annotated[int, Field(ge=16)] | None = None
    """Tokens per forward pass of a task; default: 2,048 on a CPU, 16,384 on a GPU.

    It changes bfloat16 sums.
    """
