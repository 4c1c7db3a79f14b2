"""The events of a healing that trains: what it starts from, and what it found."""

from pathlib import Path

from prunesearch.candidate import LayerSubset
from prunesearch.config.recovery import HealRecipe
from prunesearch.events import HealFinished, HealOpened, Scalar
from prunesearch.recovery.run_folder import Healed
from prunesearch.tracking.parameters import flat, versions


def heal_opened(
    name: str, digest: str, folder: Path, model: str, candidate: LayerSubset, recipe: HealRecipe
) -> HealOpened:
    """Return the event of a healing that is about to train.

    Args:
        name: name of the healing in events.
        digest: digest of everything that determines the result.
        folder: its run folder.
        model: name of the model.
        candidate: candidate that is healed.
        recipe: recipe of the healing.
    """
    parameters: dict[str, Scalar] = {
        "model": model,
        "candidate": candidate.text,
        "digest": digest,
        **flat(recipe.portable(), "heal."),
        **versions(),
    }
    return HealOpened(name, digest, folder, parameters)


def heal_finished(name: str, healed: Healed) -> HealFinished:
    """Return the event of a healing that has trained."""
    figures: dict[str, Scalar] = {
        "steps": healed.steps,
        "best_step": healed.best_step,
        "before": healed.before,
        "after": healed.after,
        "tokens": healed.tokens,
        "train_seconds": round(healed.seconds, 3),
        "peak_memory": healed.peak_memory,
        "stopped_early": healed.stopped_early,
        "diverged": healed.diverged,
    }
    return HealFinished(name, figures)
