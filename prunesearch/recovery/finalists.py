"""Choice of the candidate that heals best among a search's best candidates.

Training after pruning can change the ranking (Tang et al. 2025, "DarwinLM", arXiv 2502.07780).
Several candidates that differ enough are therefore compensated and get the same short healing. The
loss on held-out text decides.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.config.recovery import HealRecipe
from prunesearch.errors import ModelError
from prunesearch.models.loading import LoadedModel
from prunesearch.recovery.compensation import Compensation, compensate, fit_and_held_out
from prunesearch.recovery.healing import (
    ask_teacher,
    heal,
    held_out_loss,
    plan_healing,
)
from prunesearch.recovery.lora import weights_restored
from prunesearch.runtime import stopping
from prunesearch.widths.layer_widths import LayerWidths, described

FIT_TOKENS = 8192
"""Number of tokens that a compensation is fitted to."""
LEAST_DISTANCE = 2
"""Least number of blocks by which two finalists differ."""
LEAST_MOVED = 0.05
"""Least share of the removed weights by which two finalists differ that narrow layers."""


@dataclass(frozen=True)
class Finalist:
    """A finalist. Losses are cross-entropies of the held-out text in nats per token.

    Attributes:
        candidate: the candidate.
        place: its place in the search, from 1.
        pruned: loss of the pruned model.
        compensated: loss after compensation. None if no compensation was made.
        healed: loss after the short healing.
        seconds: time of compensation and healing.
    """

    candidate: LayerSubset
    place: int
    pruned: float
    compensated: float | None
    healed: float
    seconds: float


def diverse(
    ranked: Sequence[LayerSubset], count: int, distance: int = LEAST_DISTANCE
) -> list[LayerSubset]:
    """Choose the best candidates that differ enough from each other.

    Args:
        ranked: candidates, best first.
        count: largest number of candidates.
        distance: least number of blocks that one of two candidates drops and the other keeps. Two
            candidates that narrow layers differ enough as well if `LEAST_MOVED` of what one removes
            is kept by the other.
    """
    chosen: list[LayerSubset] = []
    for candidate in ranked:
        if len(chosen) == count:
            break
        apart = True
        for other in chosen:
            moved = _moved(candidate, other) >= LEAST_MOVED
            apart = apart and (moved or _distance(candidate, other) >= distance)
        if apart:
            chosen.append(candidate)
    return chosen


def _moved(a: LayerSubset, b: LayerSubset) -> float:
    """Return the share of the weights removed by one candidate that the other keeps.

    It is 0 unless both narrow layers. The larger of the two directions is returned.
    """
    if not isinstance(a, LayerWidths) or not isinstance(b, LayerWidths):
        return 0.0
    shape = a.shape
    removed, moved = [0, 0], [0, 0]
    for index in range(a.n_layers):
        for of_a, of_b, full, weights in (
            (a.channels, b.channels, shape.channels, shape.channel_weights),
            (a.groups, b.groups, shape.groups, shape.group_weights),
        ):
            lost = full[index] - of_a[index], full[index] - of_b[index]
            for place in (0, 1):
                removed[place] += lost[place] * weights[index]
                moved[place] += max(0, lost[place] - lost[1 - place]) * weights[index]
    return max(moved) / max(1, *removed)


def _distance(a: LayerSubset, b: LayerSubset) -> int:
    """Return how many blocks one candidate drops and the other keeps.

    The counts of the two directions may differ. The larger one is returned.
    """
    dropped_a, dropped_b = set(a.dropped), set(b.dropped)
    return max(len(dropped_a - dropped_b), len(dropped_b - dropped_a))


def rerank_by_healing(
    loaded: LoadedModel,
    candidates: Sequence[LayerSubset],
    recipe: HealRecipe,
    *,
    compensated: bool = True,
    references: Path | None = None,
    compensations: Path | None = None,
) -> list[Finalist]:
    """Run a short healing for each candidate, each from the same dense weights.

    The dense weights are restored on return. A finished healing of this or another process is not
    repeated.

    Args:
        loaded: the dense model.
        candidates: candidates in the order of the search.
        recipe: recipe of the short healing.
        compensated: compensate each candidate first.
        references: folder of the dense model's logits.
        compensations: folder of stored compensations.

    Returns:
        The finalists. The first one healed best.

    Raises:
        PruneSearchError: see `compensate` and `heal`.
    """
    found = []
    for place, candidate in enumerate(candidates, 1):
        stopping.check()
        # Measure the pruned model and compute the teacher logits before any weight is changed.
        name = described(candidate.text).replace("layers ", "").replace("layer ", "")
        planned = plan_healing(loaded, candidate, recipe, name)
        ask_teacher(planned, references)
        pruned = held_out_loss(planned, candidate)
        with (
            weights_restored(loaded, [candidate], recipe.target_modules),
            ExitStack() as stack,
        ):
            # Compensate.
            done = None
            if compensated:
                events.tell(events.Message(f"{name}: compensating"))
                try:
                    done = stack.enter_context(
                        compensation_of(loaded, candidate, recipe, compensations)
                    )
                # The candidate has no gap, or its type cannot be compensated. It can still be
                # healed.
                except ModelError:
                    done = None
            # Heal, and count the time of both.
            healed = heal(loaded, candidate, recipe, references=references, name=name)
            seconds = healed.seconds
            before: float | None = None
            if done is not None:
                seconds += sum(gap.seconds for gap in done.gaps)
                before = healed.before
            found.append(
                Finalist(candidate, place, pruned, before, healed.after, round(seconds, 2))
            )
    return sorted(found, key=lambda finalist: finalist.healed)


def compensation_of(
    loaded: LoadedModel, candidate: LayerSubset, recipe: HealRecipe, folder: Path | None = None
) -> Compensation:
    """Compensate a candidate, with a fit to the text of its healing.

    Args:
        loaded: the dense model.
        candidate: the candidate.
        recipe: recipe of the healing, which names the text.
        folder: folder of stored compensations. None stores nothing.

    Raises:
        ModelError: no dropped block has a kept block before it, or the type of the model cannot be
            compensated.
        PruneSearchError: see `compensate` and `fit_and_held_out`.
    """
    return compensate(loaded, candidate, *compensation_text(loaded, recipe), folder=folder)


def compensation_text(loaded: LoadedModel, recipe: HealRecipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids that a compensation is fitted to, and those that it is measured on.

    Args:
        loaded: the dense model.
        recipe: recipe of a healing, which names the text.
    """
    return fit_and_held_out(
        loaded.tokenizer, recipe.data, FIT_TOKENS, recipe.window, recipe.held_out
    )
