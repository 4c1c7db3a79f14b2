"""Section `search` of a recipe: how much is dropped, and how the best subset is searched."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prunesearch.algorithms.registry import REGISTRY, names_with
from prunesearch.config.settings import Settings
from prunesearch.errors import either
from prunesearch.space import split_drop

RANKINGS = ("none", "influence", "magnitude", "taylor", "single")


class SearchSection(Settings):
    """The search space, the sampler and its settings."""

    title: ClassVar[str] = "recipe"
    section: ClassVar[str] = "search"

    drop: str
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
        for name in ("drop", "protect"):
            if isinstance(values.get(name), int) and not isinstance(values[name], bool):
                values[name] = str(values[name])
        if isinstance(values.get("protect"), list | tuple):
            values["protect"] = ",".join(map(str, values["protect"]))
        return values

    @model_validator(mode="after")
    def _space_is_possible(self) -> Self:
        if self.keep_pattern and self.units != "blocks":
            raise ValueError("`keep_pattern` drops whole blocks: leave out `units` sublayers")
        if not self.is_pareto and self.against != "size":
            raise ValueError(f"`against` goes with `drop` pareto, not `drop` {self.drop}")
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
        if self.ranking is not None:
            return self.ranking
        return REGISTRY.get(self.sampler).ranking
