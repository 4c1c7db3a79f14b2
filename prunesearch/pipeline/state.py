"""What a command asks of the stages (`Request`), and what they have found so far (`State`)."""

import gc
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch

from prunesearch.cache.location import CacheLocation
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.data import DataSection
from prunesearch.config.identity import study_name
from prunesearch.config.model import ModelSection
from prunesearch.config.names import slug
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.recovery import HealRecipe, Recovery
from prunesearch.config.run_options import RunOptions
from prunesearch.export.checkpoint import UnpublishedCheckpoint
from prunesearch.export.results import Exported, ExportedGguf, PrintedRecipe
from prunesearch.models.loading import LoadedModel
from prunesearch.pipeline.export_request import ExportRequest
from prunesearch.pipeline.named_candidates import NamedOrder
from prunesearch.pipeline.outcome import SearchOutcome
from prunesearch.recovery.compensation import Compensation, CompensationSettings
from prunesearch.recovery.healing import HealPlan, plan_healing
from prunesearch.recovery.tuning import Tuned
from prunesearch.report.results import CompensationReport, EvaluationReport, RecoveryReport, Report
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies.selection import SelectionCriteria

Delivered: TypeAlias = Exported | ExportedGguf | PrintedRecipe
"""Result of an export."""


@dataclass(frozen=True)
class StudySource:
    """The candidates of an earlier search.

    Attributes:
        name: name of the study.
        criteria: criteria of the selection. The default selects the best candidate.
        trust_remote_code: run the code of the checkpoint. The setting in the study is ignored.
        model: path of the model, if it is not where the study says. Its content must be the one
            that was searched.
    """

    name: str
    criteria: SelectionCriteria
    trust_remote_code: bool = False
    model: str | None = None


@dataclass(frozen=True)
class LayersSource:
    """A model, and the layers to drop from it, such as ``3,7a,12``, or widths of its layers.

    Attributes:
        model: the model.
        layers: what is removed.
        order: what orders the channels of widths. None: layers are dropped.
    """

    model: ModelSection
    layers: str
    order: NamedOrder | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """How a healing runs. None of these settings changes the result.

    Attributes:
        run_folder: folder of the healing's files. Default: a folder in
            `run_folder.RUN_FOLDERS`, named by digest.
        checkpointing: compute activations again in the backward pass.
    """

    run_folder: Path | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class ProtocolRequest:
    """Request for a published protocol of perplexity.

    Attributes:
        name: name of the protocol (see `objectives.protocols`).
        data: file with its text; None: the hub's.
    """

    name: str
    data: str | None = None


@dataclass(frozen=True)
class EvaluationRequest:
    """Request for the evaluation of a model without some layers.

    Attributes:
        model: the model.
        objective: what is measured.
        data: data of the objective.
        layers: layers to leave out, as ``3,7,12``, or ``none``.
        protocol: what is measured instead of the objective; None: the objective.
    """

    model: ModelSection
    objective: ObjectiveSection
    data: DataSection
    layers: str = "none"
    protocol: ProtocolRequest | None = None


@dataclass(frozen=True)
class Request:
    """What a command asks for. A part that is None is not asked for.

    Attributes:
        options: how everything is run.
        recipes: recipes to search. They have the model and the objective in common.
        source: where the candidate comes from if nothing is searched.
        export: what is written, and where.
        recovery: how the candidate is recovered.
        compensation: settings of a compensation without healing.
        training: how a healing runs.
        evaluation: the evaluation of a model at the end.
        in_sequence: search one recipe after the other instead of all at once.
        held_out: evaluate the dense and the exported model on held-out text.
    """

    options: RunOptions
    recipes: tuple[Recipe, ...] = ()
    source: StudySource | LayersSource | None = None
    export: ExportRequest | None = None
    recovery: Recovery | None = None
    compensation: CompensationSettings | None = None
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationRequest | None = None
    in_sequence: bool = False
    held_out: bool = False

    @property
    def cache_folder(self) -> Path:
        """Local folder of the cache."""
        return CacheLocation.parse(self.options.cache).folder

    def folder_of(self, recipe: Recipe) -> Path:
        """Return the folder that the checkpoint of a recipe's search is written to.

        With several numbers of dropped layers, each gets a folder of its own.
        """
        assert self.export is not None
        out = self.export.out
        if out is None:
            name = self.options.study or study_name(recipe)
            return self.export.root / (name if self.recovery is None else f"{name}-recovered")
        numbers = {other.search.amount for other in self.recipes}
        return out / f"drop{slug(recipe.search.amount)}" if len(numbers) > 1 else out

    @property
    def references(self) -> Path:
        """Folder of the teacher logits."""
        return self.cache_folder / "references"

    @property
    def compensations(self) -> Path:
        """Folder of stored compensations."""
        return self.cache_folder / "compensations"


@dataclass(frozen=True)
class Selected:
    """A candidate that the later stages work on.

    Attributes:
        candidate: the candidate.
        ranked: candidates of its study, best first, if it is simply the best one. Else only the
            candidate.
        facts: facts about the candidate, for the manifest of the export.
        out: destination of the export. None if nothing is written.
    """

    candidate: LayerSubset
    ranked: tuple[LayerSubset, ...]
    facts: JsonObject
    out: Path | None


class Resources:
    """What the stages of a command hold in common: the model in memory, and what is open.

    Attributes:
        compensation: compensation whose weights are in the model, or None.
        unpublished: checkpoints in scratch folders that are not verified yet.
        opened: contexts that are closed at the end of the command.
        model_name: name of the model that was loaded last.
        held_out_BL: held-out token ids that a compensation was measured on, or None.
    """

    def __init__(self) -> None:
        self.compensation: Compensation | None = None
        self.unpublished: list[UnpublishedCheckpoint] = []
        self.opened = ExitStack()
        self.model_name = ""
        self.held_out_BL: torch.Tensor | None = None
        self._loaded: LoadedModel | None = None
        self._plan: HealPlan | None = None

    @property
    def loaded(self) -> LoadedModel:
        """The dense model, or the model after compensation and healing."""
        assert self._loaded is not None, "no stage has loaded a model"
        return self._loaded

    def keep(self, loaded: LoadedModel) -> LoadedModel:
        """Keep a loaded model for the stages that follow, so that none loads it again."""
        self._loaded, self.model_name = loaded, loaded.name
        return loaded

    def plan(self, candidate: LayerSubset, recipe: HealRecipe) -> HealPlan:
        """Return the plan of a healing. The same plan is made once."""
        last, content = self._plan, self.loaded.content
        if last is not None and (last.candidate, last.recipe, last.content) == (
            candidate,
            recipe,
            content,
        ):
            return last
        self._plan = plan_healing(self.loaded, candidate, recipe)
        return self._plan

    def release(self) -> None:
        """Close everything and free the model, because two models may not fit into memory."""
        self.unpublished = []
        if self.compensation is not None:
            self.compensation.undo()
        self.opened.close()
        self._loaded = self._plan = self.compensation = None
        # The parts of a model refer to each other, so only the garbage collector frees it.
        gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(frozen=True)
class State:
    """What the stages of a command have found so far.

    Attributes:
        request: what the command asks for.
        resources: the model in memory and open files, which the stages share.
        outcomes: outcomes of the searches, in the order of the recipes.
        selected: candidates that the later stages work on. There are several only after several
            searches.
        compensation: result of the compensation; None if no weight was changed.
        recovery: results of the stages that recover the candidate.
        tuned: result of the search for hyper-parameters.
        changed: changes of the weights, such as ``compensated``.
        earlier: report of an equal export that exists already. The stages up to the export are
            then skipped.
        exported: the exports, verified and published.
        held_out: evaluations of the dense and the exported model on held-out text.
        evaluation: evaluation of a model at the end.
        report: result of the command.
    """

    request: Request
    resources: Resources
    outcomes: tuple[SearchOutcome, ...] = ()
    selected: tuple[Selected, ...] = ()
    compensation: CompensationReport | None = None
    recovery: RecoveryReport | None = None
    tuned: Tuned | None = None
    changed: tuple[str, ...] = ()
    earlier: RecoveryReport | None = None
    exported: tuple[Delivered, ...] = ()
    held_out: tuple[Evaluation, ...] = field(default=(), repr=False)
    evaluation: EvaluationReport | None = None
    report: Report | None = None

    @property
    def model_name(self) -> str:
        """Name of the dense model, as the user gave it or as its study has it."""
        return self.resources.model_name

    @property
    def choice(self) -> Selected:
        """The only selected candidate."""
        (choice,) = self.selected
        return choice

    @property
    def heal_recipe(self) -> HealRecipe | None:
        """Recipe of the healing, with tuned hyper-parameters; None for no healing."""
        if self.tuned is not None:
            return self.tuned.recipe
        return None if self.request.recovery is None else self.request.recovery.heal

    def with_recovery(self, **results: Any) -> Self:  # noqa: ANN401 (fields of `RecoveryReport`)
        """Return the state with more results of the recovery."""
        assert self.recovery is not None
        return replace(self, recovery=replace(self.recovery, **results))
