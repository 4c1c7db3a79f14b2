"""Choosing, among a search's best candidates, the one that heals best.

Rankings turn around when models are trained after pruning (Tang et al. 2025, "DarwinLM", arXiv 2502.07780), so several
candidates that differ enough are compensated and given the same short healing, and held-out text decides.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunesearch import stopping
from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError
from prunesearch.heal.adapter import weights_restored
from prunesearch.heal.compensation import Compensation, compensate, fit_and_held_out
from prunesearch.heal.healing import ask_teacher, heal, held_out_loss, plan
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.training import HealProgress
from prunesearch.model.loading import LoadedModel

FIT_TOKENS = 8192
"""Tokens that a compensation is fitted to."""
LEAST_DISTANCE = 2
"""Blocks that differ between two finalists."""

CandidateListener = Callable[[LayerSubset, HealProgress], None]
"""Told which candidate is where."""


@dataclass(frozen=True)
class Finalist:
    """A candidate in the final; losses are cross-entropies of the held-out text in nats per token.

    Attributes:
        place: in the search, from 1.
        pruned: without its blocks.
        compensated: where a compensation was tried, what it left.
        healed: behind the short healing.
        seconds: of compensation and healing.
    """

    candidate: LayerSubset
    place: int
    pruned: float
    compensated: float | None
    healed: float
    seconds: float

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "candidate": self.candidate.text, "seconds": round(self.seconds, 2)}


def diverse(ranked: Sequence[LayerSubset], count: int, distance: int = LEAST_DISTANCE) -> list[LayerSubset]:
    """The best candidates of which each differs from every better one by so many blocks, dropped by one alone.

    Args:
        ranked: best first.
        count: how many at most.
    """
    chosen: list[LayerSubset] = []
    for candidate in ranked:
        if len(chosen) == count:
            break
        if all(_distance(candidate, other) >= distance for other in chosen):
            chosen.append(candidate)
    return chosen


def _distance(a: LayerSubset, b: LayerSubset) -> int:
    return max(len(set(a.dropped) - set(b.dropped)), len(set(b.dropped) - set(a.dropped)))


def run_off(
    loaded: LoadedModel,
    candidates: Sequence[LayerSubset],
    recipe: HealRecipe,
    *,
    compensated: bool = True,
    references: Path | None = None,
    compensations: Path | None = None,
    listener: CandidateListener = lambda candidate, progress: None,
) -> list[Finalist]:
    """Heal each candidate shortly, from the same dense weights, which are there again behind this.

    A healing that was finished before, by this process or another, is not repeated.

    Args:
        loaded: the dense model.
        candidates: by their place in the search.
        recipe: of the short healing; its steps are what each candidate gets.
        compensated: compensate first.
        references: folder of the dense model's answers.
        compensations: folder of compensations that were found.

    Returns:
        The candidates, the one that healed best first.

    Raises:
        PruneSearchError: see `compensate` and `heal`.
    """
    found = []
    for place, candidate in enumerate(candidates, 1):
        stopping.check()
        planned = plan(loaded, candidate, recipe)
        ask_teacher(planned, references)  # before a weight is changed
        pruned = held_out_loss(planned, candidate)
        with weights_restored(loaded.model, [candidate], recipe.target_modules), ExitStack() as stack:
            done = None
            if compensated:
                listener(candidate, HealProgress("compensation", 0, 1))
                try:
                    done = stack.enter_context(compensation_of(loaded, candidate, recipe, compensations))
                except ModelError:  # without a gap, or of a type that is not built for it: it can still be healed
                    done = None

            def tell(progress: HealProgress, candidate: LayerSubset = candidate) -> None:
                listener(candidate, progress)

            healed = heal(loaded, candidate, recipe, listener=tell, references=references)
            seconds = healed.seconds + (sum(gap.seconds for gap in done.gaps) if done else 0.0)
            before = healed.before if done else None
            found.append(Finalist(candidate, place, pruned, before, healed.after, seconds))
    return sorted(found, key=lambda finalist: finalist.healed)


def compensation_of(
    loaded: LoadedModel, candidate: LayerSubset, recipe: HealRecipe, folder: Path | None = None
) -> Compensation:
    """Compensate a candidate, fitted to the text that it will be healed with.

    Args:
        folder: of compensations that were found; None: nothing is kept.

    Raises:
        ModelError: no dropped block has a kept one before it, or the type is not built for it.
        PruneSearchError: see `compensate` and `fit_and_held_out`.
    """
    windows = fit_and_held_out(loaded.tokenizer, recipe.data, FIT_TOKENS, recipe.window, recipe.held_out)
    return compensate(loaded, candidate, *windows, folder=folder)
