"""What is searched, on which data, and where its studies, cache and figures are kept.

All of a campaign lies in one folder, so the same command continues where it was interrupted, and
several processes share the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.record import precision
from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions

VARIANTS: dict[str, dict[str, bool]] = {
    "llm": {},
    "llm-shuffled": {"shuffle_scores": True},
    "llm-renamed": {"rename_layers": True},
}
"""Samplers that ask a language model, and their settings.

With shuffled scores the model can learn nothing from the history, and with renamed layers nothing
from their depth.
"""
_CANDIDATES = 8
"""Candidates in a reply."""
_HISTORY = 10
"""Scored candidates in a request."""


@dataclass(frozen=True)
class Optimizer:
    """The language model that proposes candidates.

    Attributes:
        name: name of the model.
        url: base URL of its endpoint; empty while it is not served.
        file: GGUF file that the benchmark serves itself; None for an endpoint of the user.
        timeout: most seconds of one reply.
    """

    name: str
    url: str = ""
    file: Path | None = None
    timeout: float = 1800.0


@dataclass(frozen=True)
class Campaign:
    """Settings of the searches.

    Attributes:
        folder: folder of studies, cache and figures.
        label: short name of the model, in names of studies and figures.
        model: folder or GGUF file of the model that is narrowed.
        calibration: text that candidates are scored on.
        test: text that winners are scored on.
        documents: HellaSwag documents.
        ratios: values of `target`.
        seeds: seeds of each search.
        trials: candidates of each search without a language model.
        llm_trials: candidates of each search with one. The other samplers are compared with it
            after as many.
        long_trials: candidates of `evolution`, which is compared at equal seconds too.
        tokens, test_tokens: scored tokens of the two texts.
        limit: number of HellaSwag documents.
        samplers: samplers and variants, by name.
        align: multiple of all widths.
        criterion: criterion of the channel order.
        optimizer: language model; None: the variants that need one are left out.
        workers: number of processes that search.
        slots: number of searches that ask the language model at once.
        large: settings of the searches of a large model; None to leave them out.
    """

    folder: Path
    label: str
    model: str
    calibration: Path
    test: Path
    documents: Path
    ratios: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: int
    llm_trials: int
    long_trials: int
    tokens: int
    test_tokens: int
    limit: int
    samplers: tuple[str, ...]
    align: int = 64
    criterion: str = "flap"
    window: int = 256
    optimizer: Optimizer | None = None
    workers: int = 1
    slots: int = 1
    large: "Campaign | None" = None

    def options(self, study: str | None = None, trials: int | None = None) -> RunOptions:
        """Return the run options of a study."""
        return RunOptions(
            storage=self.storage,
            cache=str(self.folder / "cache"),
            study=study,
            threads=1,
            trials=trials or self.trials,
        )

    @property
    def storage(self) -> str:
        """URL of the studies."""
        return f"sqlite:///{self.folder}/study.db"

    def recipe(self, *, method: str = "evolution", seed: int = 0, **space: str) -> Recipe:
        """Return the recipe of a search.

        Args:
            method: a sampler of the product, or one of `VARIANTS`.
            seed: seed of the sampler.
            space: settings of the search space, such as ``target="20%"``.
        """
        changes: dict[str, object] = dict(space)
        if "target" in space:
            changes = {"space": "widths", "criterion": self.criterion, "align": self.align} | space
        settings: dict[str, object] = {
            "model": {"path": self.model, "dtype": precision()},
            "data": {
                "calibration": str(self.calibration),
                "tokens": self.tokens,
                "window": self.window,
            },
            "search": {**changes, "sampler": _sampler(method), "seed": seed},
        }
        if method in VARIANTS and self.optimizer is not None:
            settings["llm"] = {
                "url": self.optimizer.url,
                "model": self.optimizer.name,
                "timeout": self.optimizer.timeout,
                "candidates": _CANDIDATES,
                "history": _HISTORY,
                **VARIANTS[method],
            }
        return Recipe(**settings)

    @property
    def perplexity(self) -> tuple[ObjectiveSection, DataSection]:
        """Objective and data of perplexity on the test text."""
        data = DataSection(calibration=str(self.test), tokens=self.test_tokens, window=self.window)
        return ObjectiveSection(name="perplexity"), data

    @property
    def hellaswag(self) -> tuple[ObjectiveSection, DataSection]:
        """Objective and data of HellaSwag."""
        data = DataSection(task_data=str(self.documents), limit=self.limit)
        return ObjectiveSection.of({"task": "hellaswag"}), data


@dataclass(frozen=True)
class Search:
    """One study.

    Attributes:
        campaign: settings.
        ratio: value of `target`, or another budget of `space`.
        method: a sampler or variant.
        seed: seed of the sampler.
        space: settings of the search space, as pairs.
    """

    campaign: Campaign
    ratio: str
    method: str
    seed: int
    space: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Name of the study."""
        ratio = self.ratio.replace("%", "pct")
        return f"{self.campaign.label}-{ratio}-{self.method}-s{self.seed}"

    @property
    def trials(self) -> int:
        """Number of trials of the study."""
        if self.method == "evolution":
            return max(self.campaign.trials, self.campaign.long_trials)
        if self.method in VARIANTS:
            return self.campaign.llm_trials
        return self.campaign.trials

    @property
    def options(self) -> RunOptions:
        """How the study is run."""
        return self.campaign.options(self.name, self.trials)

    @property
    def recipe(self) -> Recipe:
        """Recipe of the study."""
        space = dict(self.space) or {"target": self.ratio}
        return self.campaign.recipe(method=self.method, seed=self.seed, **space)


def _sampler(method: str) -> str:
    """Return the sampler of a method."""
    return "llm" if method in VARIANTS else method


def searches_of(campaign: Campaign, methods: Sequence[str]) -> list[Search]:
    """Return the studies of a campaign: for each seed all ratios and methods."""
    found = []
    for seed in campaign.seeds:
        for ratio in campaign.ratios:
            for method in methods:
                if method not in VARIANTS or campaign.optimizer is not None:
                    found.append(Search(campaign, ratio, method, seed))
    return found
