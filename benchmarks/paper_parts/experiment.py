"""Settings of the experiment, and its studies.

All of a run lies in one folder: the studies in one database, one cache, and the measurements of
winners. So the same command continues where it was interrupted, and several processes share the
work.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper_parts.methods import METHODS
from benchmarks.support.record import precision
from prunesearch.config.recipe import Recipe
from prunesearch.config.recovery import HealRecipe
from prunesearch.config.run_options import RunOptions
from prunesearch.samplers import trials_needed
from prunesearch.space import SearchSpace


@dataclass(frozen=True)
class Experiment:
    """Settings of the experiment.

    Attributes:
        folder: folder of studies, cache and measurements.
        label: short name of the model, in names of studies.
        model: folder or GGUF file of the model.
        n_layers: number of its blocks.
        search_data: documents that candidates are scored on.
        held_out_data: documents that winners are scored on, in parts. No search sees them.
        ks: numbers of blocks to drop.
        methods: names of methods (see `methods.METHODS`).
        seeds: number of seeds of methods that are random.
        trials: evaluations of a search.
        healed: names of the methods whose winners are healed.
        heal_data: text that is trained on.
        heal_steps: steps of LoRA; 0 to heal nothing.
        heal_batch, heal_window: sequences of a step, and tokens of a sequence.
        kl_text, kl_tokens: text of KL, as fitness and for the ranking, and its number of tokens.
        workers: number of processes.
        turns: number of times that each model is timed.
        window: tokens of a timed prefill.
    """

    folder: Path
    label: str
    model: str
    n_layers: int
    search_data: Path
    held_out_data: tuple[Path, ...]
    ks: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: int
    trials: int
    healed: tuple[str, ...]
    heal_data: str
    heal_steps: int
    heal_batch: int
    heal_window: int
    kl_text: str
    kl_tokens: int
    workers: int
    turns: int
    window: int

    @property
    def storage(self) -> str:
        """URL of the studies."""
        return f"sqlite:///{self.folder}/study.db"

    def options(self, study: str | None = None, trials: int | None = None) -> RunOptions:
        """Return the run options of a study, or of a measurement."""
        return RunOptions(
            storage=self.storage,
            cache=str(self.folder / "cache"),
            study=study,
            threads=1,
            trials=trials or self.trials,
            # All numbers come from the model's own code, whatever the length of a search.
            compile="off",
        )

    @property
    def kl_data(self) -> dict[str, str | int]:
        """Section `data` of a recipe for KL."""
        window = min(256, self.kl_tokens)
        return {"calibration": self.kl_text, "tokens": self.kl_tokens, "window": window}

    def recipe(self, method: str, k: int, seed: int) -> Recipe:
        """Return the recipe of a search."""
        chosen = METHODS[method]
        data: dict[str, str | int] = {"task_data": str(self.search_data)}
        return Recipe(
            model={"path": self.model, "dtype": precision()},
            objective={"name": "kl"} if chosen.by_kl else {"task": "hellaswag"},
            data=self.kl_data if chosen.by_kl else data,
            search={
                "drop": str(k),
                "sampler": chosen.sampler,
                "seed": seed,
                **chosen.settings,
            },
        )

    def heal_recipe(self) -> HealRecipe:
        """Return the recipe of the healing."""
        return HealRecipe(
            data=self.heal_data,
            steps=self.heal_steps,
            batch_size=self.heal_batch,
            window=self.heal_window,
            eval_every=max(1, self.heal_steps // 4),
            held_out_tokens=max(4 * self.heal_window, 1024),
        )

    def studies(self) -> list["PaperStudy"]:
        """Return all studies: those of the first seed first, so that a partial run has all methods."""
        found = []
        for seed in range(self.seeds):
            for k in self.ks:
                for method in self.methods:
                    if seed == 0 or METHODS[method].random:
                        found.append(PaperStudy(self, method, k, seed))
        return found


@dataclass(frozen=True)
class PaperStudy:
    """One study.

    Attributes:
        experiment: settings.
        method: name of the method.
        k: number of blocks to drop.
        seed: seed of the sampler.
    """

    experiment: Experiment
    method: str
    k: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the study."""
        return f"{self.experiment.label}-k{self.k}-{self.method}-s{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """Recipe of the study."""
        return self.experiment.recipe(self.method, self.k, self.seed)

    @property
    def trials(self) -> int:
        """Number of trials. Greedy, and a ranking that a study measures itself, may need more than
        the budget; they get them, and the tables say so.
        """
        space = SearchSpace.parse(self.experiment.n_layers, str(self.k))
        search = self.recipe.search
        needed = trials_needed(search.sampler, search.start, space)
        return max(self.experiment.trials, needed.whole)

    @property
    def options(self) -> RunOptions:
        """How the study is run."""
        return self.experiment.options(self.name, self.trials)
