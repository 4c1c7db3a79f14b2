"""`HealRecipe`: all that determines a healed model beside the model itself and the content of its data."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prunesearch.recipe import BUILTIN_TEXT, portable_name

ALL_LINEAR = "all-linear"
"""Name of all linear layers of the blocks, as target modules."""
_SOURCES = ("data", "held_out")


class HealRecipe(BaseModel):
    """LoRA on a pruned model, completely described. Unknown keys are refused.

    The defaults of steps and adapter follow Ratsapa et al. 2025 (4,000 iterations of LoRA) and Hu et al. 2021.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = BUILTIN_TEXT
    """What is trained on: a file (see `scoring.text_files`), a dataset (``id[:config[:split]]``) or ``builtin``."""
    held_out: str | None = None
    """What the loss is watched on; default: of ``builtin`` its held-out part, else a part of `data` kept apart."""
    held_out_tokens: Annotated[int, Field(ge=16)] = 8192
    window: Annotated[int, Field(ge=16)] = 256
    """Tokens of a packed sequence."""
    loss: Literal["lm", "distill", "mix"] = "lm"
    """Next-token cross-entropy; KL(teacher || student) to the dense model; or a weighted sum of both."""
    distill_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the KL in ``mix``."""
    kl_top: Annotated[int, Field(ge=1)] = 64
    """The KL is taken over so many of the dense model's likeliest tokens and one lump of the rest."""

    steps: Annotated[int, Field(ge=1)] = 4000
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Sequences of a forward pass."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Passes whose gradients are summed up to a step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-4
    """At its peak; it rises linearly during the warm-up and falls along a cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    rank: int = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's product is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str = ALL_LINEAR
    """Names of linear layers, with commas (``q_proj,mlp.down_proj``), or ``all-linear``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; ``auto``: bfloat16 where the device computes in it, else the model's own."""

    eval_every: Annotated[int, Field(ge=1)] = 100
    """Steps between two looks at the held-out text, and between two checkpoints."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Training stops after so many looks without a new best."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("rank")
    @classmethod
    def _rank_is_one(cls, rank: int) -> int:
        if rank < 1:
            raise ValueError("an adapter needs a rank of at least 1; 8 is usual")
        return rank

    @model_validator(mode="after")
    def _training_sees_no_held_out_text(self) -> "HealRecipe":
        if self.held_out == self.data:
            raise ValueError(f"--held-out {self.held_out} is what is trained on: leave it out to keep a part apart")
        return self

    @property
    def batch(self) -> int:
        """Sequences of a step."""
        return self.batch_size * self.accumulation

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.window

    def identity(self) -> dict[str, Any]:
        """Every choice that determines the result, except where the data lie, as plain JSON values.

        Settings of a loss that is not used are left out: they change nothing.
        """
        idle = {"lm": {"distill_weight", "kl_top"}, "distill": {"distill_weight"}, "mix": set[str]()}[self.loss]
        return self.model_dump(mode="json", exclude={*_SOURCES, *idle})

    def portable(self) -> dict[str, Any]:
        """As plain JSON values without the folders of any machine, to travel with a model."""
        values = self.model_dump(mode="json")
        for name in _SOURCES:
            if values[name] is not None:
                values[name] = portable_name(values[name])
        return values
