"""Section `search` of a recipe: what is removed and how much, and how the best candidate is
searched.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prunesearch.algorithms.registry import REGISTRY, names_with
from prunesearch.config.settings import Settings
from prunesearch.errors import UnknownNameError, either
from prunesearch.importance.criteria.registry import REGISTRY as CRITERIA
from prunesearch.space import SPACES, UNITS, WIDTHS, split_drop
from prunesearch.widths.budgets import parse_target

RANKINGS = ("none", "influence", "magnitude", "taylor", "single")
SCORES = "scores"
"""Name of the ranking by the scores of the channels, which searches over widths start from."""
DEFAULT_CRITERION = "flap"
"""Criterion that orders channels if none is named."""
ORDER_TOKENS = 8192
"""Default number of tokens that channels are ordered on."""
_OF_WIDTHS = {
    "criterion": DEFAULT_CRITERION,
    "order_tokens": ORDER_TOKENS,
    "align": 64,
    "first_allocations": True,
}
"""Settings that only a search over widths has, and their defaults."""


def _absent(value: object) -> bool:
    """Return whether a setting was not given. It is not part of documents then."""
    return value is None


_LARGEST_MODEL = 10**15  # parameters of a model that any target fits into


def _with_space(values: dict[str, object]) -> dict[str, object]:
    """Sort the values of `space` into the fields, and fill in the defaults of widths.

    Raises:
        UnknownNameError: the space does not exist.
        ValueError: `units` names another space.
    """
    space = values.get("space")
    if space is None:
        return values
    if space not in SPACES:
        raise UnknownNameError("space", str(space), SPACES)
    if space in UNITS:
        del values["space"]
        if values.get("units") not in (None, space):
            raise ValueError(
                f"`space` {space} and `units` {values['units']} contradict each other: give one"
            )
        return {**values, "units": space}
    for name, default in _OF_WIDTHS.items():
        if values.get(name) is None:
            values[name] = default
    return values


class SearchSection(Settings):
    """The search space, the sampler and its settings."""

    title: ClassVar[str] = "recipe"
    section: ClassVar[str] = "search"

    space: Literal["widths", "blocks+widths"] | None = Field(default=None, exclude_if=_absent)
    """What is searched instead of layers to drop: widths of layers, or these and whole blocks.

    ``blocks`` and ``sublayers`` are accepted too; they are stored as `units`.
    """
    target: str | None = Field(default=None, exclude_if=_absent)
    """What a search over widths removes: ``20%`` of the parameters, ``26M`` parameters, or
    ``100MiB``."""
    criterion: str | None = Field(default=None, exclude_if=_absent)
    """Importance score that orders the channels of a search over widths (see
    `importance.criteria`); default ``flap``."""
    order_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, exclude_if=_absent)
    """Most tokens of the calibration text that the channels are ordered on; default 8192.

    More tokens than a candidate is scored on are worth it: the order is made once, and the means
    and variances of a channel vary more than a loss.
    """
    align: Annotated[int, Field(ge=1)] | None = Field(default=None, exclude_if=_absent)
    """Number that all widths in channels are multiples of; default 64."""
    first_allocations: bool | None = Field(default=None, exclude_if=_absent)
    """Whether a search over widths begins with the fixed allocations (see
    `importance.allocations`); default True."""
    drop: str = ""
    """Number of units to drop: ``8``, ``25%`` (rounded to the nearest whole number), at most 8
    (``..8``), or ``pareto`` for the best of every number, optionally with a limit
    (``pareto:25%``)."""
    protect: str = ""
    """Blocks that are kept: ``first:1,last:1``, single indices and ranges (``0,5-8``), or a mix."""
    units: Literal["blocks", "sublayers"] = "blocks"
    """Units that are dropped: whole blocks, or single attention and MLP sublayers."""
    keep_pattern: bool = False
    """Drop whole periods of the pattern in which the kinds of blocks repeat (see
    `models.config_edits.period_of`).
    """
    against: Literal["size", "latency"] = "size"
    """Second objective when `drop` is ``pareto``."""

    sampler: str = "pso"
    """An algorithm of `algorithms.registry`."""
    encoding: Literal["set", "keys", "slots", "binary"] = "set"
    """Encoding of a subset: a set, or one of the papers' encodings (see
    `algorithms.vector_swarms`), which the sampler must have.
    """
    preselect: bool = True
    """Let a surrogate choose among the sampler's moves, if the sampler can."""
    ranking: Literal["none", "influence", "magnitude", "taylor", "single"] | None = None
    """Ranking of the units that the search starts from (see `objectives.importance`). With
    ``single``, the first trials drop each unit alone. Default: that of the sampler."""
    warm_start: str | None = Field(default=None, exclude_if=_absent)
    """Name of another study of the same model, whose trials are prior knowledge of this search.

    It takes the place of the ranking. Its trials do not count as evaluations of this search."""
    asynchronous: bool = False
    """Propose from the finished trials instead of waiting for a generation, if the sampler can."""
    population: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Trials per generation; default: that of the sampler."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the random generator."""

    @model_validator(mode="before")
    @classmethod
    def _read_shorthands(cls, values: object) -> object:
        """Accept numbers and lists for text."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name in ("drop", "protect", "target"):
            if isinstance(values.get(name), int) and not isinstance(values[name], bool):
                values[name] = str(values[name])
        if isinstance(values.get("protect"), list | tuple):
            values["protect"] = ",".join(map(str, values["protect"]))
        return _with_space(values)

    @model_validator(mode="after")
    def _amount_is_given(self) -> Self:
        """Check what says how much is removed, and what belongs to a search over widths."""
        if not self.narrows:
            if not self.drop:
                raise ValueError(
                    "drop is missing in section search: every recipe needs it, or `space` widths "
                    "with `target` 20%"
                )
            for name in ("target", *_OF_WIDTHS):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` goes with `space` {either(WIDTHS)}")
            return self
        for name, value in (
            ("drop", self.drop),
            ("keep_pattern", self.keep_pattern),
            ("units", self.units != "blocks"),
        ):
            if value:
                raise ValueError(
                    f"`{name}` goes with layers to drop, not with `space` {self.space}: leave it "
                    "out and give `target` 20%"
                )
        if self.target is None:
            raise ValueError(f"target is missing: `space` {self.space} needs `target` 20%")
        parse_target(self.target, _LARGEST_MODEL, 1)
        CRITERIA.get(self.criterion or "")
        REGISTRY.get(self.sampler).check_widths(self.encoding)
        if self.ranking not in (None, "none"):
            raise ValueError(
                f"`ranking` {self.ranking} ranks layers, and a search over widths starts from the "
                f"scores of channels: leave it out, or give `ranking` none"
            )
        return self

    @model_validator(mode="after")
    def _space_is_possible(self) -> Self:
        if self.keep_pattern and self.units != "blocks":
            raise ValueError("`keep_pattern` drops whole blocks: leave out `units` sublayers")
        if not self.is_pareto and self.against != "size":
            given = f"`space` {self.space}" if self.narrows else f"`drop` {self.drop}"
            raise ValueError(f"`against` goes with `drop` pareto, not {given}")
        return self

    @model_validator(mode="after")
    def _sampler_has_what_is_asked(self) -> Self:
        """Check that the sampler supports the budget and the settings."""
        algorithm = REGISTRY.get(self.sampler)
        if self.is_pareto and not algorithm.several_objectives:
            raise ValueError(
                f"`sampler` {self.sampler} cannot search `drop` {self.drop}: use "
                f"{either(names_with('several_objectives'))}"
            )
        # Settings that only some algorithms have.
        able: list[str] = []
        setting = ""
        if self.encoding not in algorithm.encodings:
            able = [entry.name for entry in REGISTRY.entries() if self.encoding in entry.encodings]
            setting = "encoding"
        elif self.asynchronous and not algorithm.asynchronous:
            able, setting = names_with("asynchronous"), "asynchronous"
        elif not self.preselect and not algorithm.surrogate:
            able, setting = names_with("surrogate"), "preselect=False"
        if setting:
            raise ValueError(f"`{setting}` goes with `sampler` {either(able)}, not {self.sampler}")
        # The ranking.
        if self.ranking not in (None, "none") and not algorithm.takes_ranking:
            raise ValueError(f"`ranking` cannot start `sampler` {self.sampler}: leave it out")
        if self.ranking == "none" and algorithm.needs_ranking:
            raise ValueError(f"`sampler` {self.sampler} is its ranking: use {either(RANKINGS[1:])}")
        return self

    @model_validator(mode="after")
    def _can_start_warm(self) -> Self:
        """Check that a warm start goes with the other settings."""
        if self.warm_start is None:
            return self
        given = f"`warm_start` {self.warm_start}"
        if self.narrows:
            raise ValueError(f"{given} goes with layers to drop, not with `space` {self.space}")
        if not REGISTRY.get(self.sampler).surrogate:
            able = either(names_with("surrogate"))
            raise ValueError(f"{given} goes with `sampler` {able}, not {self.sampler}")
        if not self.preselect:
            raise ValueError(f"{given} informs the surrogate: leave out preselect=False")
        if self.ranking not in (None, "none"):
            raise ValueError(
                f"{given} takes the place of `ranking` {self.ranking}: leave one of them out"
            )
        return self

    @property
    def narrows(self) -> bool:
        """True if layers are narrowed: the search is over widths."""
        return self.space is not None

    @property
    def amount(self) -> str:
        """How much is removed: `drop`, or the target and the space, as in ``20% widths``."""
        if self.space is None:
            return self.drop
        return f"{self.target} {self.space}"

    @property
    def removed(self) -> str:
        """What is removed, in words: ``6 blocks``, ``up to 8 sublayers``, ``20% by widths``."""
        if self.space is not None:
            return f"{self.target} by {self.space}"
        budget, amount = split_drop(self.drop)
        if amount is None:
            return f"any number of {self.units}"
        if amount == "1":
            words = f"1 {self.units.removesuffix('s')}"
        else:
            words = f"{amount} {'' if amount.isdigit() else 'of '}{self.units}"
        return words if budget == "exactly" else f"up to {words}"

    @property
    def is_pareto(self) -> bool:
        """True if the search looks for the best subset of every size."""
        return split_drop(self.drop)[0] == "pareto"

    @property
    def second_objective(self) -> str | None:
        """Second objective of a Pareto search; None for other searches."""
        return self.against if self.is_pareto else None

    @property
    def start(self) -> str:
        """Ranking that the search starts from, with the sampler's default filled in."""
        if self.narrows:
            entry = REGISTRY.get(self.sampler)
            starts = entry.needs_ranking or (entry.surrogate and self.ranking is None)
            return SCORES if starts else "none"
        if self.ranking is not None:
            return self.ranking
        if self.warm_start is not None:
            return "none"
        return REGISTRY.get(self.sampler).ranking
