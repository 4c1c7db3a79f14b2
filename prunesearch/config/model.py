"""Section `model` of a recipe: the model that is pruned."""

from typing import ClassVar, Literal

from prunesearch.config.settings import Settings


class ModelSection(Settings):
    """The model, and how its weights are read."""

    title: ClassVar[str] = "recipe"
    section: ClassVar[str] = "model"

    path: str
    """Hugging Face id, local folder or ``.gguf`` file."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    trust_remote_code: bool = False
    """Run modelling code that ships with the checkpoint."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision that the weights are loaded in and scored with; ``auto``: as stored."""
