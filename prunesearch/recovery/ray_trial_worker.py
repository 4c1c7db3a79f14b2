"""What runs in a worker of Ray that runs the trials of a tuning study.

Ray imports this module on every node.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna

from prunesearch.candidate import LayerSubset
from prunesearch.config.recovery import HealRecipe
from prunesearch.errors import PruneSearchError, RunError, one_line
from prunesearch.evaluation import FAILURES
from prunesearch.evaluation.ray_worker import NotLoaded, Place, place_here
from prunesearch.models.loading import LoadedModel
from prunesearch.recovery.healing import plan_healing
from prunesearch.recovery.run_folder import Healed
from prunesearch.recovery.tuning import run_trial

CONTROL = "control"
"""Concurrency group of the methods that answer while the worker trains."""
Losses = Sequence[tuple[int, float]]
"""Steps and losses of the evaluations of a trial so far."""


@dataclass(frozen=True)
class TrialModel:
    """What a worker needs for the trials.

    Attributes:
        loaded: the model, dense or compensated.
        references: folder of the dense model's logits.
        run_folders: folder in which each trial gets a run folder.
    """

    loaded: LoadedModel
    references: Path
    run_folders: Path


BuildTrials = Callable[[], TrialModel]
"""Function that loads what a worker needs. It is called in the worker, so it must be picklable."""


@dataclass(frozen=True)
class TrialRequest:
    """A trial that a worker is asked to run.

    Attributes:
        candidate: the candidate that is healed.
        recipe: recipe of the trial.
        name: name of the healing.
        folder: run folder, below that of all runs.
        digest: digest of the plan of the process that asks.
    """

    candidate: LayerSubset
    recipe: HealRecipe
    name: str
    folder: str
    digest: str


class RayTrialWorker:
    """A worker with a model of its own, which runs one trial at a time.

    After each evaluation, the training waits until the process that owns the study has answered
    whether the trial goes on. Trials are therefore pruned at the same step as in one process.

    Args:
        build: see `BuildTrials`.
    """

    def __init__(self, build: BuildTrials) -> None:
        self._build = build
        self._model: TrialModel | None = None
        self._changed = threading.Condition()
        self._losses: Losses | None = None
        self._goes_on: bool | None = None
        self._done = 0

    def place(self) -> Place:
        """Return where this worker runs."""
        return place_here()

    def load(self) -> RunError | None:
        """Load the model, once. Returns the reason if that fails."""
        try:
            self._model = self._model or self._build()
        except (PruneSearchError, *FAILURES) as error:
            return RunError(one_line(error))
        return None

    def run(self, request: TrialRequest, turn: int) -> Healed | Exception | NotLoaded | None:
        """Run a trial.

        Args:
            request: the trial.
            turn: number of the run. Later ones have larger numbers.

        Returns:
            The result, or the reason why there is none. None: the trial was pruned.
        """
        try:
            return self._run(request)
        except (PruneSearchError, *FAILURES) as error:
            return error if isinstance(error, RunError) else RunError(one_line(error))
        finally:
            # Wake a question for losses that will not come.
            with self._changed:
                self._done = turn
                self._changed.notify_all()

    def _run(self, request: TrialRequest) -> Healed | NotLoaded | None:
        if self._model is None:
            return NotLoaded()
        model = self._model
        # The plan names all that determines the result, so an equal digest means equal content.
        planned = plan_healing(model.loaded, request.candidate, request.recipe, request.name)
        if planned.digest != request.digest:
            raise RunError(
                f"has other weights, text or versions than this process (digest of the healing "
                f"{planned.digest[:12]} there, {request.digest[:12]} here): copy the same model "
                f"and data to every node, and install the same versions"
            )
        folder = model.run_folders / request.folder
        return run_trial(planned, folder, model.references, self._check())

    def _check(self) -> Callable[[Losses], None]:
        """Return a check that passes the losses on, and waits for the answer."""
        told = 0

        def check(watched: Losses) -> None:
            nonlocal told
            if len(watched) == told:
                return
            told = len(watched)
            # Pass the losses on, and wait until the process that owns the study has answered.
            with self._changed:
                self._losses, self._goes_on = list(watched), None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._goes_on is not None)
                if not self._goes_on:
                    raise optuna.TrialPruned

        return check

    def next_losses(self, turn: int) -> Losses | None:
        """Wait for the losses of a run after its next evaluation. None: the run is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._losses is not None or self._done >= turn)
            found, self._losses = self._losses, None
            return found

    def answer(self, goes_on: bool) -> None:
        """Let the training go on, or have the trial pruned."""
        with self._changed:
            self._goes_on = goes_on
            self._changed.notify_all()
