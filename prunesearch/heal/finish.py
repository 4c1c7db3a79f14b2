"""From candidates to a healed checkpoint: the final, compensation, hyper-parameters, healing, export, verification.

Every stage is found again by its content: compensations and the dense model's answers in the store, healings by their
digests in their work folders, tuning in its study, the export by its manifest. The same again does what is left to do.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, RunError
from prunesearch.export import MANIFEST, check_destination, export
from prunesearch.export.checkpoint import check_form
from prunesearch.export.companions import companions
from prunesearch.heal.compensation import Compensation
from prunesearch.heal.finalists import compensation_of, diverse, run_off
from prunesearch.heal.healing import Plan, ask_teacher, carry_out, held_out_loss, plan
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.training import HealProgress
from prunesearch.heal.tuning import Tuning, largest, tune
from prunesearch.heal.work import WORK, Healed
from prunesearch.model.loading import LoadedModel
from prunesearch.store.keys import canonical_json

_FACT = "recovery"  # name of the report in an export's manifest


class Recovery(BaseModel):
    """What is done with a search's best candidates. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finalists: Annotated[int, Field(ge=1, le=64)] = 1
    """How many diverse candidates are healed shortly before one is chosen; 1: the best is taken."""
    finalist_steps: Annotated[int, Field(ge=1)] = 50
    """Steps of that short healing."""
    compensate: bool = True
    tune: Tuning | None = None
    """Search for the healing's hyper-parameters first."""
    heal: HealRecipe | None = HealRecipe(loss="distill")
    """The healing of the chosen one; null for none."""

    @model_validator(mode="after")
    def _something_is_done(self) -> "Recovery":
        if self.heal is None and self.finalists > 1:
            raise ValueError("finalists are told apart by healing: leave heal in, or finalists out")
        if self.heal is None and self.tune is not None:
            raise ValueError("what is tuned is healing: leave heal in, or tune out")
        if self.heal is None and not self.compensate:
            raise ValueError("with neither compensate nor heal nothing is recovered: leave the section out")
        return self

    @property
    def short(self) -> HealRecipe:
        """The finalists' healing: the same, for fewer steps."""
        assert self.heal is not None
        steps = min(self.finalist_steps, self.heal.steps)
        return self.heal.model_copy(update={"steps": steps, "eval_every": max(1, steps // 2)})


@dataclass(frozen=True)
class HealOptions:
    """How it is carried out; none of it changes the result.

    Attributes:
        out: new or empty folder of the checkpoint.
        store: folder of what is computed once: the dense model's answers, compensations.
        storage: Optuna RDB URL of tuning studies.
        work: of the healing alone; default: `healing.WORK`, by digest.
        checkpointing: compute activations again in the backward pass.
        form: of the export, for dropped sublayers.
    """

    out: Path
    store: Path
    storage: str
    work: Path | None = None
    checkpointing: bool = False
    form: str = "plain"

    @property
    def references(self) -> Path:
        """Folder of the dense model's answers."""
        return self.store / "references"

    @property
    def compensations(self) -> Path:
        """Folder of compensations that were found."""
        return self.store / "compensations"


class View(Protocol):
    """Shows where it is."""

    def progress(self, name: str, progress: HealProgress) -> None:
        """Show where something named stands."""

    def say(self, line: str) -> None:
        """Show a line."""


def check_out(out: Path) -> None:
    """Refuse a destination before any work; the export that lies there may be the very one that is wanted.

    Raises:
        StorageError: something else lies there, or it cannot be written.
    """
    if _report_at(out) is None:
        check_destination(out)


def heal_and_export(
    loaded: LoadedModel,
    ranked: Sequence[LayerSubset],
    recovery: Recovery,
    facts: Mapping[str, Any],
    options: HealOptions,
    view: View,
) -> dict[str, Any]:
    """Choose among candidates, recover the chosen one and write it; the same again leaves the same export as it is.

    Args:
        loaded: the dense model; its weights are changed.
        ranked: candidates, best first.
        facts: what is known of the first, for the manifest.

    Returns:
        What was done, as JSON values; ``export`` is None where it lies there already.

    Raises:
        PruneSearchError: see `errors`; what was finished is kept, and no half export stays.
    """
    check_out(options.out)
    candidates = diverse(ranked, recovery.finalists)
    for candidate in candidates:
        check_form(loaded.model.config, candidate, options.form)
    companions(loaded)  # refused before any work, too
    digest = _digest(loaded, candidates, recovery)
    document: dict[str, Any] = {"model": loaded.name, "out": str(options.out)}
    there = _report_at(options.out)
    if there is not None and there["digest"] == digest:
        if "healed" in there:
            there["healed"]["cached"] = True
        return {**document, **there, "export": None}
    check_destination(options.out)
    job = _Job(loaded, recovery, options, view)
    job.report["digest"] = digest
    chosen = job.final(candidates) if len(candidates) > 1 else candidates[0]
    job.report["dropped"] = chosen.text
    recipe = job.recipe_for(chosen)
    with job.compensated(chosen) as done:
        if done is None and recipe is None:
            raise RunError(f"nothing was written: layers {chosen.text} were to be compensated, and that does not help")
        healed = None if recipe is None else job.healed(chosen, recipe)
        changed = [name for name, was in (("compensated", done), ("healed", healed)) if was is not None]
        told = _facts(facts if chosen == ranked[0] else {**facts, "metrics": {}}, done, healed, job.report)
        made = export(loaded, chosen, options.out, told, form=options.form, changed=changed)
    return {**document, **job.report, "export": made.document()}


class _Job:
    """The stages, and what is told of them.

    Attributes:
        report: as JSON values.
    """

    def __init__(self, loaded: LoadedModel, recovery: Recovery, options: HealOptions, view: View) -> None:
        self._loaded, self._recovery, self._options, self._view = loaded, recovery, options, view
        self.report: dict[str, Any] = {}

    def final(self, candidates: Sequence[LayerSubset]) -> LayerSubset:
        """The candidate that heals best."""
        self._view.say(f"the final: {len(candidates)} candidates, {self._recovery.short.steps} steps each")
        final = run_off(
            self._loaded,
            candidates,
            self._recovery.short,
            compensated=self._recovery.compensate,
            references=self._options.references,
            compensations=self._options.compensations,
            listener=lambda candidate, progress: self._view.progress(f"without {candidate.text}", progress),
        )
        self.report["finalists"] = [finalist.document() for finalist in final]
        return final[0].candidate

    def recipe_for(self, candidate: LayerSubset) -> HealRecipe | None:
        """The healing's recipe, with the hyper-parameters that a study found, and the teacher asked all it will be.

        The dense model can be asked only as long as no weight is changed.
        """
        recipe, tuning = self._recovery.heal, self._recovery.tune
        if recipe is None:
            return None
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
                    listener=lambda number, progress: self._view.progress(f"trial {number}", progress),
                )
            self.report["tuning"] = tuned.document()
            recipe = tuned.recipe
        planned = self._ask(candidate, recipe)
        dense, pruned = (held_out_loss(planned, each) for each in (LayerSubset.of(candidate.n_layers), candidate))
        self.report |= {"recipe": recipe.portable(), "losses": {"dense": dense, "pruned": pruned}}
        return recipe

    def _ask(self, candidate: LayerSubset, recipe: HealRecipe) -> Plan:
        planned = plan(self._loaded, candidate, recipe)
        ask_teacher(planned, self._options.references, lambda progress: self._view.progress("heal", progress))
        return planned

    @contextmanager
    def compensated(self, candidate: LayerSubset) -> Iterator[Compensation | None]:
        """The candidate compensated inside the ``with`` block, where that is wanted and helps."""
        with ExitStack() as stack:
            done = None
            if self._recovery.compensate:
                self._view.say(f"compensating layers {candidate.text}")
                recipe = self._recovery.heal or HealRecipe()
                try:
                    done = compensation_of(self._loaded, candidate, recipe, self._options.compensations)
                    stack.enter_context(done)
                except ModelError as error:  # it can still be healed
                    self._view.say(f"not compensated: {error}")
            if done is not None and done.helped:
                self.report["compensation"] = done.document()
            elif done is not None:
                self._view.say("compensation does not help on the held-out tokens")
            yield done if done is not None and done.helped else None

    def healed(self, candidate: LayerSubset, recipe: HealRecipe) -> Healed:
        """The healing in full."""
        planned = plan(self._loaded, candidate, recipe)
        work = self._options.work or WORK / planned.digest[:16]
        self._view.say(f"healing without layers {candidate.text}: {recipe.steps} steps at most")
        healed = carry_out(
            planned,
            work,
            lambda progress: self._view.progress("heal", progress),
            self._options.references,
            self._options.checkpointing,
        )
        self.report |= {"work": str(work), "healed": healed.document()}
        return healed


def _digest(loaded: LoadedModel, candidates: Sequence[LayerSubset], recovery: Recovery) -> str:
    """Of everything that determines the checkpoint: model, candidates, recipes, and the content of the text."""
    identity: dict[str, Any] = {
        "model": loaded.fingerprint,
        "candidates": [candidate.canonical for candidate in candidates],
        "recovery": recovery.model_dump(mode="json", include=set(Recovery.model_fields) - {"heal"}),
        "heal": None if recovery.heal is None else plan(loaded, candidates[0], recovery.heal).identity,
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _facts(
    known: Mapping[str, Any], done: Compensation | None, healed: Healed | None, report: Mapping[str, Any]
) -> dict[str, Any]:
    """What the export's manifest and card say; what the search measured was measured before."""
    kept = {name: value for name, value in report.items() if name != "work"}  # a folder of this machine
    metrics: Mapping[str, Any] = {} if done is None else done.compensated
    dense: Mapping[str, Any] = {} if done is None else done.dense
    if healed is not None:
        shown = {name: value for name, value in report["healed"].items() if not isinstance(value, list | tuple)}
        kept["healed"] = shown
        metrics = {"held-out cross-entropy": healed.after}
        dense = {"held-out cross-entropy": report["losses"]["dense"]}
    return {
        **{name: value for name, value in known.items() if name not in ("metrics", "stderr", "dense_metrics")},
        "metrics_before_healing": known.get("metrics", {}),
        "metrics": metrics,
        "dense_metrics": dense,
        _FACT: kept,
    }


def _report_at(out: Path) -> dict[str, Any] | None:
    """The report of the recovery whose export lies there, without its curves."""
    try:
        report = json.loads((out / MANIFEST).read_text(encoding="utf-8"))[_FACT]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if isinstance(report, dict) and "digest" in report else None
