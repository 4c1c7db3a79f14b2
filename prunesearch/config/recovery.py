"""Section `recover` of a recipe: compensation, tuning, healing and evaluation after a search."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from prunesearch.algorithms.registry import names_with
from prunesearch.config.data import DataSection
from prunesearch.config.names import portable_name
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.settings import Settings
from prunesearch.errors import UnknownNameError
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.runtime.json_values import JsonObject

ALL_LINEAR = "all-linear"
"""Target modules: all linear layers of the blocks."""
_SOURCES = ("data", "held_out")


class HealRecipe(Settings):
    """Complete settings of LoRA on a pruned model. Unknown keys are refused.

    The defaults of steps and adapter follow Ratsapa et al. 2025 (4,000 iterations of LoRA) and Hu
    et al. 2021.
    """

    title: ClassVar[str] = "healing"

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
    def _training_sees_no_held_out_text(self) -> Self:
        if self.held_out == self.data:
            raise ValueError(
                f"`held_out` {self.held_out} is what is trained on: leave it out to keep a part "
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

    def identity(self) -> JsonObject:
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

    def portable(self) -> JsonObject:
        """Return the recipe as plain JSON values, without folders of this machine."""
        values: JsonObject = self.model_dump(mode="json")
        for name in _SOURCES:
            path = getattr(self, name)
            if path is not None:
                values[name] = portable_name(path)
        return values


LOOKS = 4
"""Evaluations on the held-out text in a tuning trial, without that of step 0. A trial can stop at
each."""


class Tuning(Settings):
    """Settings of the search for hyper-parameters."""

    title: ClassVar[str] = "tuning"

    trials: int = Field(ge=1)
    """Total number of complete and pruned trials."""
    steps: int = Field(default=200, ge=LOOKS)
    """Steps of a trial whose share is 1."""
    sampler: str = "pso"
    """An algorithm of `algorithms.registry` that can search ordinary parameters."""
    pruner: Literal["median", "halving"] = "median"
    learning_rate: tuple[float, float] = (2e-5, 5e-3)
    batch_size: tuple[int, ...] = (2, 4, 8, 16)
    rank: tuple[int, ...] = (4, 8, 16, 32)
    share: tuple[float, float] = (0.25, 1.0)
    """Range of the share of the steps that a trial takes."""

    @field_validator("sampler")
    @classmethod
    def _sampler_searches_parameters(cls, name: str) -> str:
        able = names_with("ordinary_parameters")
        if name not in able:
            raise UnknownNameError("sampler", name, able)
        return name


class EvaluationSection(Settings):
    """Settings of the evaluation of the recovered model, as for `prunesearch evaluate`."""

    title: ClassVar[str] = "evaluation"

    task: str | None = None
    task_data: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    calibration: str | None = None
    """Text for perplexity, if no task is given."""
    tokens: Annotated[int, Field(ge=16)] = 4096

    @model_validator(mode="after")
    def _data_go_with_the_objective(self) -> Self:
        self.objective.check_data(self.data)
        return self

    @property
    def objective(self) -> ObjectiveSection:
        """The objective: the task, or perplexity without one."""
        if self.task is None:
            return ObjectiveSection(name="perplexity")
        return ObjectiveSection(task=self.task)

    @property
    def data(self) -> DataSection:
        """The data that the objective reads."""
        values = self.model_dump(exclude={"task"}, exclude_none=True)
        return DataSection(**values)

    def portable(self) -> Self:
        """Return the settings without folders of this machine."""
        named = {}
        if self.calibration is not None:
            named["calibration"] = portable_name(self.calibration)
        if self.task_data is not None:
            named["task_data"] = portable_name(self.task_data, always=True)
        return self.model_copy(update=named)


class Recovery(Settings):
    """Settings of the recovery of a search's best candidates. Unknown keys are refused."""

    title: ClassVar[str] = "recovery"

    finalists: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of diverse candidates that get a short healing; 1: take the best without it."""
    finalist_steps: Annotated[int, Field(ge=1)] = 50
    """Steps of the short healing."""
    compensate: bool = True
    """Compensate the candidates before they are healed."""
    tune: Tuning | None = None
    """Search for the hyper-parameters of healing first; null for no search."""
    heal: HealRecipe | None = HealRecipe(loss="distill")
    """Healing of the chosen candidate; null for no healing."""
    evaluate: EvaluationSection | None = None
    """Evaluation of the recovered model; null for no evaluation."""

    @model_validator(mode="after")
    def _something_is_done(self) -> Self:
        if self.heal is None and self.finalists > 1:
            raise ValueError("finalists are told apart by healing: leave heal in, or finalists out")
        if self.heal is None and self.tune is not None:
            raise ValueError("what is tuned is healing: leave heal in, or tune out")
        if self.heal is None and not self.compensate:
            raise ValueError(
                "with neither compensate nor heal nothing is recovered: leave the section out"
            )
        return self

    @property
    def short(self) -> HealRecipe:
        """Recipe of the finalists' healing: the same recipe with fewer steps."""
        assert self.heal is not None
        steps = min(self.finalist_steps, self.heal.steps)
        return self.heal.model_copy(update={"steps": steps, "eval_every": max(1, steps // 2)})

    def portable(self) -> Self:
        """Return the settings without folders of this machine."""
        named: dict[str, Settings] = {}
        if self.heal is not None:
            named["heal"] = self.heal.model_copy(update=self.heal.portable())
        if self.evaluate is not None:
            named["evaluate"] = self.evaluate.portable()
        return self.model_copy(update=named)
