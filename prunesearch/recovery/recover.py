"""From candidates to a healed checkpoint: finalists, compensation, tuning, healing and export.

Each stage finds its earlier result by content: compensations and the teacher logits in the
cache, healings in their run folders by digest, tuning in its study, and the export by its
manifest. The same call again only does what is left to do.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunesearch import events
from prunesearch.cache.keys import canonical_json
from prunesearch.candidate import LayerSubset
from prunesearch.config.recovery import HealRecipe, Recovery
from prunesearch.errors import ModelError, RunError
from prunesearch.export import MANIFEST, check_destination, export
from prunesearch.export.checkpoint import check_export_format
from prunesearch.export.companions import companions
from prunesearch.models.loading import LoadedModel
from prunesearch.recovery.compensation import Compensation
from prunesearch.recovery.finalists import compensation_of, diverse, rerank_by_healing
from prunesearch.recovery.healing import (
    HealPlan,
    ask_teacher,
    carry_out,
    held_out_loss,
    plan_healing,
)
from prunesearch.recovery.run_folder import RUN_FOLDERS, Healed
from prunesearch.recovery.tuning import largest, tune

_FACT = "recovery"  # name of the report in an export's manifest


@dataclass(frozen=True)
class HealOptions:
    """How the recovery runs. None of these settings changes the result.

    Attributes:
        out: new or empty folder of the checkpoint.
        results: folder of results that are computed once (dense logits, compensations).
        storage: Optuna RDB URL of tuning studies.
        run_folder: folder of the healing's files. Default: a folder in `healing.RUN_FOLDERS`, named
            by digest.
        checkpointing: compute activations again in the backward pass.
        export_format: form of the export, for dropped sublayers.
    """

    out: Path
    results: Path
    storage: str
    run_folder: Path | None = None
    checkpointing: bool = False
    export_format: str = "plain"

    @property
    def references(self) -> Path:
        """Folder of the dense model's logits."""
        return self.results / "references"

    @property
    def compensations(self) -> Path:
        """Folder of stored compensations."""
        return self.results / "compensations"


def check_out(out: Path) -> None:
    """Check a destination before any work is done.

    A folder that holds an earlier recovery is accepted, because it may be the wanted export.

    Raises:
        StorageError: the folder holds something else, or it cannot be written.
    """
    if _report_at(out) is None:
        check_destination(out)


def heal_and_export(
    loaded: LoadedModel,
    ranked: Sequence[LayerSubset],
    recovery: Recovery,
    facts: Mapping[str, Any],
    options: HealOptions,
) -> dict[str, Any]:
    """Choose a candidate, recover it and export it. An export of the same call is left as it is.

    Args:
        loaded: the dense model. Its weights are changed.
        ranked: candidates, best first.
        recovery: settings that determine the result.
        facts: known facts about the first candidate, for the manifest.
        options: settings that do not change the result.

    Returns:
        Report as JSON values. ``export`` is None if the export existed already.

    Raises:
        PruneSearchError: see `errors`. Finished stages are kept, and no partial export stays.
    """
    # Refuse bad input before any work.
    check_out(options.out)
    candidates = diverse(ranked, recovery.finalists)
    for candidate in candidates:
        check_export_format(loaded.model.config, candidate, options.export_format)
    companions(loaded)
    # Return the report of the export that is there, if it comes from the same call.
    digest = _digest(loaded, candidates, recovery)
    document: dict[str, Any] = {"model": loaded.name, "out": str(options.out)}
    there = _report_at(options.out)
    if there is not None and there["digest"] == digest:
        if "healed" in there:
            there["healed"]["cached"] = True
        return {**document, **there, "export": None}
    check_destination(options.out)
    # Choose the candidate.
    job = _Job(loaded, recovery, options)
    job.report["digest"] = digest
    chosen = job.final(candidates) if len(candidates) > 1 else candidates[0]
    job.report["dropped"] = chosen.text
    recipe = job.recipe_for(chosen)
    # Recover it and export it.
    with job.compensated(chosen) as done:
        if done is None and recipe is None:
            raise RunError(
                f"nothing was written: layers {chosen.text} were to be compensated, and that does "
                f"not help"
            )
        healed = None if recipe is None else job.healed(chosen, recipe)
        changed = []
        if done is not None:
            changed.append("compensated")
        if healed is not None:
            changed.append("healed")
        # The search's metrics belong to the first candidate alone.
        known = facts if chosen == ranked[0] else {**facts, "metrics": {}}
        told = _facts(known, done, healed, job.report)
        made = export(
            loaded, chosen, options.out, told, export_format=options.export_format, changed=changed
        )
    return {**document, **job.report, "export": made}


class _Job:
    """Runs the stages of a recovery and collects their reports.

    Attributes:
        report: report of the finished stages, as JSON values.
    """

    def __init__(self, loaded: LoadedModel, recovery: Recovery, options: HealOptions) -> None:
        self._loaded, self._recovery, self._options = loaded, recovery, options
        self.report: dict[str, Any] = {}

    def final(self, candidates: Sequence[LayerSubset]) -> LayerSubset:
        """Run the finalists' short healing, and return the candidate that heals best."""
        _say(f"the final: {len(candidates)} candidates, {self._recovery.short.steps} steps each")
        final = rerank_by_healing(
            self._loaded,
            candidates,
            self._recovery.short,
            compensated=self._recovery.compensate,
            references=self._options.references,
            compensations=self._options.compensations,
        )
        self.report["finalists"] = [finalist.document() for finalist in final]
        return final[0].candidate

    def recipe_for(self, candidate: LayerSubset) -> HealRecipe | None:
        """Return the recipe of the healing, with tuned hyper-parameters if tuning is wanted.

        All teacher logits are computed here, because the dense model is available only until the
        first weight is changed.
        """
        recipe, tuning = self._recovery.heal, self._recovery.tune
        if recipe is None:
            return None
        # Tune: the teacher logits of the largest trial contain those of all other trials.
        if tuning is not None:
            self._ask(candidate, largest(recipe, tuning))
            with self.compensated(candidate):
                tuned = tune(
                    self._loaded,
                    candidate,
                    recipe,
                    tuning,
                    self._options.storage,
                    references=self._options.references,
                )
            self.report["tuning"] = tuned.document()
            recipe = tuned.recipe
        # Measure the dense and the pruned model before any weight is changed.
        planned = self._ask(candidate, recipe)
        dense = held_out_loss(planned, LayerSubset.of(candidate.n_layers))
        pruned = held_out_loss(planned, candidate)
        self.report |= {"recipe": recipe.portable(), "losses": {"dense": dense, "pruned": pruned}}
        return recipe

    def _ask(self, candidate: LayerSubset, recipe: HealRecipe) -> HealPlan:
        """Compute the teacher logits that a healing needs, and return its plan."""
        planned = plan_healing(self._loaded, candidate, recipe)
        ask_teacher(planned, self._options.references)
        return planned

    @contextmanager
    def compensated(self, candidate: LayerSubset) -> Iterator[Compensation | None]:
        """Compensate the candidate inside the ``with`` block, if this is wanted and helps.

        Yields:
            The compensation, or None if no weight was changed.
        """
        with ExitStack() as stack:
            done = None
            if self._recovery.compensate:
                _say(f"compensating layers {candidate.text}")
                recipe = self._recovery.heal or HealRecipe()
                try:
                    done = compensation_of(
                        self._loaded, candidate, recipe, self._options.compensations
                    )
                    stack.enter_context(done)
                except ModelError as error:
                    # The candidate can still be healed.
                    _say(f"not compensated: {error}")
            if done is not None and not done.helped:
                _say("compensation does not help on the held-out tokens")
                done = None
            if done is not None:
                self.report["compensation"] = done.document()
            yield done

    def healed(self, candidate: LayerSubset, recipe: HealRecipe) -> Healed:
        """Run the full healing, or find its earlier result."""
        planned = plan_healing(self._loaded, candidate, recipe)
        run_folder = self._options.run_folder or RUN_FOLDERS / planned.digest[:16]
        _say(f"healing without layers {candidate.text}: {recipe.steps} steps at most")
        healed = carry_out(
            planned,
            run_folder,
            self._options.references,
            self._options.checkpointing,
        )
        self.report |= {"work": str(run_folder), "healed": healed.document()}
        return healed


def _say(line: str) -> None:
    """Publish a line of text."""
    events.tell(events.Message(line))


def _digest(loaded: LoadedModel, candidates: Sequence[LayerSubset], recovery: Recovery) -> str:
    """Digest of everything that determines the checkpoint.

    These are the model, the candidates, the recipes and the content of the text.
    """
    heal = None
    if recovery.heal is not None:
        heal = plan_healing(loaded, candidates[0], recovery.heal).identity
    identity: dict[str, Any] = {
        "model": loaded.fingerprint,
        "candidates": [candidate.canonical for candidate in candidates],
        "recovery": recovery.model_dump(mode="json", exclude={"heal", "evaluate"}),
        "heal": heal,
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _facts(
    known: Mapping[str, Any],
    done: Compensation | None,
    healed: Healed | None,
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """Facts for the manifest and the card of the export.

    The metrics of the search were measured before the recovery, so they get another name.
    """
    # The run folder is a path of this machine.
    kept = {name: value for name, value in report.items() if name != "work"}
    # The metrics of the last stage that changed weights describe the export.
    metrics: Mapping[str, Any] = {}
    dense: Mapping[str, Any] = {}
    if done is not None:
        metrics, dense = done.compensated, done.dense
    if healed is not None:
        # Leave out the loss curves.
        kept["healed"] = {}
        for name, value in report["healed"].items():
            if not isinstance(value, list | tuple):
                kept["healed"][name] = value
        metrics = {"held-out cross-entropy": healed.after}
        dense = {"held-out cross-entropy": report["losses"]["dense"]}
    measured = ("metrics", "stderr", "dense_metrics")
    others = {name: value for name, value in known.items() if name not in measured}
    return {
        **others,
        "metrics_before_healing": known.get("metrics", {}),
        "metrics": metrics,
        "dense_metrics": dense,
        _FACT: kept,
    }


def _report_at(out: Path) -> dict[str, Any] | None:
    """Read the report of a recovery from its export. None if the folder holds no such export."""
    try:
        report = json.loads((out / MANIFEST).read_text(encoding="utf-8"))[_FACT]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(report, dict) or "digest" not in report:
        return None
    return report
