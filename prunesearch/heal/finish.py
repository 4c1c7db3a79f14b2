"""From a candidate to a healed checkpoint: tune where that is asked for, heal, export, verify."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunesearch.candidate import LayerSubset
from prunesearch.export import MANIFEST, check_destination, export
from prunesearch.export.checkpoint import check_form
from prunesearch.heal.healing import WORK, Healed, carry_out, plan
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.training import HealProgress
from prunesearch.heal.tuning import Tuning, tune
from prunesearch.model.loading import LoadedModel

_FACT = "healing"  # name of the report in an export's manifest


@dataclass(frozen=True)
class HealOptions:
    """How a recipe is carried out; none of it changes the result.

    Attributes:
        out: new or empty folder of the checkpoint.
        work: of this run alone; default: `healing.WORK`, by digest.
        references: folder of the dense model's answers.
        storage: Optuna RDB URL of tuning studies.
        checkpointing: compute activations again in the backward pass.
        form: of the export, for dropped sublayers.
    """

    out: Path
    references: Path
    storage: str
    work: Path | None = None
    checkpointing: bool = False
    form: str = "plain"


class View(Protocol):
    """Shows where healing is."""

    def progress(self, name: str, progress: HealProgress) -> None:
        """Show where something named stands."""


def check_out(out: Path) -> None:
    """Refuse a destination before any work; an export of an earlier healing may be the very one that is wanted.

    Raises:
        StorageError: something else lies there, or it cannot be written.
    """
    if _report_at(out) is None:
        check_destination(out)


def heal_and_export(
    loaded: LoadedModel,
    candidate: LayerSubset,
    facts: Mapping[str, Any],
    recipe: HealRecipe,
    options: HealOptions,
    tuning: Tuning | None,
    view: View,
) -> dict[str, Any]:
    """Heal a candidate and write it; the same again trains nothing, and leaves the same export as it is.

    Args:
        facts: what is known of the candidate, for the manifest.
        tuning: search for the recipe's hyper-parameters first.

    Returns:
        What was done, as JSON values.

    Raises:
        PruneSearchError: see `errors`; checkpoints stay, and no half export does.
    """
    check_out(options.out)
    check_form(loaded.model.config, candidate, options.form)
    document: dict[str, Any] = {"model": loaded.name, "dropped": candidate.text}
    if tuning is not None:
        tuned = tune(
            loaded,
            candidate,
            recipe,
            tuning,
            options.storage,
            references=options.references,
            listener=lambda number, progress: view.progress(f"trial {number}", progress),
        )
        recipe = tuned.recipe
        document["tuning"] = tuned.document()
    planned = plan(loaded, candidate, recipe)
    work = options.work or WORK / planned.digest[:16]
    document |= {"recipe": recipe.portable(), "work": str(work), "out": str(options.out)}
    there = _report_at(options.out)
    if there is not None and there["digest"] == planned.digest:
        return {**document, "healed": {**there, "cached": True}, "export": None}
    check_destination(options.out)
    healed = carry_out(
        planned,
        work,
        lambda progress: view.progress("heal", progress),
        options.references,
        options.checkpointing,
    )
    told = _facts(facts, healed, recipe)
    made = export(loaded, candidate, options.out, told, form=options.form, changed=("healed",))
    return {**document, "healed": healed.document(), "export": made.document()}


def _facts(known: Mapping[str, Any], healed: Healed, recipe: HealRecipe) -> dict[str, Any]:
    """What the export's manifest and card say; what the search measured was measured before healing."""
    report = {name: value for name, value in healed.document().items() if not isinstance(value, list | tuple)}
    return {
        **{name: value for name, value in known.items() if name not in ("metrics", "stderr", "dense_metrics")},
        "metrics_before_healing": known.get("metrics", {}),
        "metrics": {"held-out cross-entropy": healed.after},
        "dense_metrics": {"held-out cross-entropy": healed.dense_loss},
        _FACT: {**report, "recipe": recipe.portable()},
    }


def _report_at(out: Path) -> dict[str, Any] | None:
    """The report of the healing whose export lies there, without its curves."""
    try:
        report = json.loads((out / MANIFEST).read_text(encoding="utf-8"))[_FACT]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if isinstance(report, dict) and "digest" in report else None
