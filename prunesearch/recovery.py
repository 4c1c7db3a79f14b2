"""What follows a search: finalists, compensation, healing, export, evaluation; from one recipe.

Every stage is found again by its content: the study by its recipe, healings by their digests, the export by its
manifest, the evaluation in the store. The same command again does what is left to do.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunesearch.bench import load_for, open_bench, space_of
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export import MANIFEST, check_destination, export
from prunesearch.heal import HealRecipe, heal
from prunesearch.heal.finalists import CandidateListener, Finalist, compensation_of, diverse, run_off
from prunesearch.heal.healing import ask_teacher, plan
from prunesearch.model.loading import LoadedModel
from prunesearch.pipeline import Outcome, evaluate_model, facts_of, run_search
from prunesearch.recipe import Recipe, RunOptions, study_name, validated
from prunesearch.search import Listener
from prunesearch.store import selection, studies
from prunesearch.store.keys import canonical_json
from prunesearch.store.places import Places

_FACT = "recovery"


class Evaluated(BaseModel):
    """What the finished model is evaluated on, as `prunesearch evaluate` does it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str | None = None
    task_data: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    calibration: str | None = None
    """Text for perplexity, where no task is given."""
    tokens: Annotated[int, Field(ge=16)] = 4096


class Recovery(BaseModel):
    """The section ``recover`` of a recipe file: what is done with the search's best candidates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finalists: Annotated[int, Field(ge=1, le=64)] = 1
    """How many diverse candidates are healed shortly before one is chosen; 1: the search's best is taken."""
    finalist_steps: Annotated[int, Field(ge=1)] = 50
    """Steps of that short healing."""
    compensate: bool = True
    heal: HealRecipe | None = HealRecipe(loss="distill")
    """The healing of the chosen one; null for none."""
    evaluate: Evaluated | None = None

    @model_validator(mode="after")
    def _finalists_are_healed(self) -> "Recovery":
        if self.heal is None and self.finalists > 1:
            raise ValueError("finalists are told apart by healing: leave heal in, or finalists out")
        if self.heal is None and not self.compensate:
            raise ValueError("with neither compensate nor heal nothing is recovered: leave the section out")
        return self

    @property
    def short(self) -> HealRecipe:
        """The finalists' healing: the same, for fewer steps."""
        assert self.heal is not None
        steps = min(self.finalist_steps, self.heal.steps)
        return self.heal.model_copy(update={"steps": steps, "eval_every": max(1, steps // 2)})


def search_and_recover(
    recipe: Recipe,
    recovery: Recovery,
    options: RunOptions,
    out: Path | None = None,
    listener: Listener | None = None,
    healing: CandidateListener = lambda candidate, progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Search, choose among finalists, compensate, heal, export, verify, evaluate.

    Args:
        out: folder for the checkpoint; default: ``storage/exports/`` and the study's name.
        listener: hears the search's progress.
        healing: hears the healings'.
        say: told what is done, a line at a time.

    Returns:
        What was done, as JSON values.

    Raises:
        PruneSearchError: see `errors`; what was finished is kept.
    """
    if recipe.units != "blocks" or recipe.drop.startswith("pareto"):
        raise InputError("recover: goes with whole blocks and one best candidate: leave out units and pareto")
    name = options.study or study_name(recipe)
    out = out or Path("storage/exports") / f"{name}-recovered"
    if _manifest(out) is None:
        check_destination(out)
    with open_bench(recipe, options) as bench:
        outcome = run_search(bench, recipe, options, listener)
        study = studies.load(studies.open_storage(options.storage, create=False), name)
        space = space_of(recipe, bench.loaded)
        ranked = [space.from_params(trial.params) for trial in selection.best_trials(study, None)]
    loaded = load_for(recipe, options)
    document = recover(loaded, ranked, recovery, out, _facts(recipe, outcome), options, healing, say)
    document = {**outcome.document(options), **document}
    if recovery.evaluate is not None:
        say(f"evaluating {out}")
        document["evaluation"] = evaluate_model(_evaluation(recovery.evaluate, out), options, "none")
    return document


def _facts(recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """What is known of the search; its metrics are not the recovered model's."""
    return {name: value for name, value in facts_of(recipe, outcome).items() if name in ("study", "recipe")}


def _evaluation(wanted: Evaluated, out: Path) -> Recipe:
    values = wanted.model_dump(exclude_none=True)
    objective = "task" if wanted.task else "perplexity"
    return validated(Recipe, {**values, "model": str(out), "drop": "1", "objective": objective})


def recover(
    loaded: LoadedModel,
    ranked: list[LayerSubset],
    recovery: Recovery,
    out: Path,
    facts: Mapping[str, Any],
    options: RunOptions,
    healing: CandidateListener = lambda candidate, progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """From a search's candidates to a checkpoint.

    Args:
        loaded: the dense model; its weights are changed.
        ranked: candidates, best first.
        facts: what is known, for the manifest.

    Returns:
        What was done, as JSON values; ``export`` is None where `out` held it already.
    """
    references = Places.parse(options.cache).folder / "references"
    chosen = diverse(ranked, recovery.finalists)
    digest = _digest(loaded, chosen, recovery)
    if (there := _manifest(out)) is not None:
        if there.get(_FACT, {}).get("digest") != digest:
            raise InputError(f"{str(out)!r} holds another export: choose a new folder, or delete it first")
        return {"dropped": there["dropped"], "out": str(out), "export": None, **there[_FACT]}
    document: dict[str, Any] = {"digest": digest, "finalists": []}
    best = chosen[0]
    if len(chosen) > 1:
        say(f"the final: {len(chosen)} candidates, {recovery.short.steps} steps each")
        final: list[Finalist] = run_off(
            loaded, chosen, recovery.short, compensated=recovery.compensate, references=references, listener=healing
        )
        document["finalists"] = [finalist.document() for finalist in final]
        best = final[0].candidate
    changed = []
    with ExitStack() as stack:
        if recovery.heal is not None:
            ask_teacher(plan(loaded, best, recovery.heal), references, lambda progress: healing(best, progress))
        if recovery.compensate:
            say(f"compensating layers {best.text}")
            done = compensation_of(loaded, best, recovery.heal or HealRecipe())
            if done is not None and done.helped:
                stack.enter_context(done)
                changed.append("compensated")
                document["compensation"] = done.document()
        if recovery.heal is not None:
            say(f"healing without layers {best.text}: {recovery.heal.steps} steps at most")
            healed = heal(
                loaded, best, recovery.heal, listener=lambda progress: healing(best, progress), references=references
            )
            changed.append("healed")
            curves = ("training_loss", "watched_loss", "held_out_loss")
            document["healing"] = {
                "recipe": recovery.heal.portable(),
                **{name: value for name, value in healed.document().items() if name not in curves},
            }
        made = export(loaded, best, out, {**facts, _FACT: document}, changed=changed)
    return {"dropped": best.text, "out": str(out), **document, "export": made.document()}


def _digest(loaded: LoadedModel, chosen: list[LayerSubset], recovery: Recovery) -> str:
    """Of everything that determines the checkpoint: model, candidates, recipe, and the content of the text."""
    identity: dict[str, Any] = {
        "model": loaded.fingerprint,
        "candidates": [candidate.canonical for candidate in chosen],
        "recovery": recovery.model_dump(mode="json", exclude={"evaluate", "heal"}),
    }
    identity["heal"] = plan(loaded, chosen[0], recovery.heal).identity if recovery.heal is not None else None
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of an export that lies there."""
    try:
        found: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
