"""`HealRecipe`: the settings that determine a healed model, besides the model and its data."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prunesearch.config.recipe import BUILTIN_TEXT, portable_name

ALL_LINEAR = "all-linear"
"""Target modules: all linear layers of the blocks."""
_SOURCES = ("data", "held_out")


class HealRecipe(BaseModel):
    """Complete settings of LoRA on a pruned model. Unknown keys are refused.

    The defaults of steps and adapter follow Ratsapa et al. 2025 (4,000 iterations of LoRA) and Hu
    et al. 2021.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = BUILTIN_TEXT
    """Training text: a file, a dataset (``id[:config[:split]]``) or ``builtin``.

    The formats of files are those of `objectives.text_files`.
    """
    held_out: str | None = None
    """Held-out text.

    Default: the held-out part of ``builtin``, or else a part of `data` that is not trained on.
    """
    held_out_tokens: Annotated[int, Field(ge=16)] = 8192
    window: Annotated[int, Field(ge=16)] = 256
    """Tokens of a packed sequence."""
    loss: Literal["lm", "distill", "mix"] = "lm"
    """Loss: next-token cross-entropy, KL(teacher || student), or a weighted sum of both."""
    distill_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the KL in ``mix``."""
    kl_top: Annotated[int, Field(ge=1)] = 64
    """K of the top-k KL: over the dense model's K likeliest tokens and one tail bucket."""

    steps: Annotated[int, Field(ge=1)] = 4000
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Sequences per forward pass."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward passes per step, whose gradients are summed."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-4
    """Peak learning rate. It rises linearly during the warm-up and then falls along a cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    rank: int = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's product is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str = ALL_LINEAR
    """Names of linear layers, separated by commas (``q_proj,mlp.down_proj``), or ``all-linear``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the training.

    ``auto``: bfloat16 if the device supports it, else the model's own.
    """

    eval_every: Annotated[int, Field(ge=1)] = 100
    """Steps between two evaluations on the held-out text, and between two checkpoints."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Number of evaluations without a new best after which training stops."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the adapter and of the order of the data."""

    @field_validator("rank")
    @classmethod
    def _rank_is_one(cls, rank: int) -> int:
        if rank < 1:
            raise ValueError("an adapter needs a rank of at least 1; 8 is usual")
        return rank

    @model_validator(mode="after")
    def _training_sees_no_held_out_text(self) -> "HealRecipe":
        if self.held_out == self.data:
            raise ValueError(
                f"--held-out {self.held_out} is what is trained on: leave it out to keep a part "
                f"apart"
            )
        return self

    @property
    def batch(self) -> int:
        """Sequences per step."""
        return self.batch_size * self.accumulation

    @property
    def batch_tokens(self) -> int:
        """Tokens per step."""
        return self.batch * self.window

    def identity(self) -> dict[str, Any]:
        """Return every setting that determines the result, as plain JSON values.

        The paths of the data are left out. So are settings of losses that are not used, because
        they change nothing.
        """
        idle = {
            "lm": {"distill_weight", "kl_top"},
            "distill": {"distill_weight"},
            "mix": set[str](),
        }[self.loss]
        return self.model_dump(mode="json", exclude={*_SOURCES, *idle})

    def portable(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, without folders of this machine."""
        values = self.model_dump(mode="json")
        for name in _SOURCES:
            if values[name] is not None:
                values[name] = portable_name(values[name])
        return values
