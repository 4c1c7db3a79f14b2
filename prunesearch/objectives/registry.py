"""The registry of objectives.

A file in the folder ``objectives/metrics`` that calls `register` adds an objective to the command
line, the recipes, the mixes, the workers and the benchmarks. The entry states all facts that other
files need, so that no other file tests for a name. How to add an objective: see
``prunesearch/README.md``.

The command line reads this registry to check a recipe, and must start without torch, which takes
seconds to import. So this module, `objectives.base` and the files of ``objectives/metrics`` import
torch inside the functions that compute, and under TYPE_CHECKING for annotations.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from prunesearch.errors import UnknownNameError
from prunesearch.objectives.base import Objective
from prunesearch.runtime.registry import Registry

if TYPE_CHECKING:
    import torch

    from prunesearch.models.loading import LoadedModel
    from prunesearch.objectives.calibration import DenseOutputs, Measure
    from prunesearch.objectives.reference_cache import ReferenceCache


@dataclass(frozen=True)
class TaskInputs:
    """An lm-eval task and its data. See `objectives.task.TaskObjective` for the attributes."""

    task: str
    metric: str | None = None
    data: str | None = None
    include_path: str | None = None
    limit: int | None = None
    first: int = 0
    num_fewshot: int | None = None
    batch_tokens: int | None = None
    generate: bool = False


@dataclass(frozen=True)
class ObjectiveInputs:
    """What an objective is built from.

    Attributes:
        loaded: the dense model.
        read_windows: function that reads the calibration text, as token ids of shape (B, L).
        references: cache of the dense model's outputs.
        kl_top: see `objectives.logit_sums.LogitSums`.
        task: the task; None if the recipe names none.
        compared_with: outputs of another dense model, see
            `objectives.calibration.CalibrationObjective`.
    """

    loaded: "LoadedModel"
    read_windows: "Callable[[], torch.Tensor]"
    references: "ReferenceCache"
    kl_top: int | None = None
    task: TaskInputs | None = None
    compared_with: "DenseOutputs | None" = None


class StoredMeasure(Protocol):
    """Reads the numbers of a chunk that the cache holds, without a model."""

    kind: str
    """Name of the numbers, as in the cache's keys."""
    loss_metric: str
    """Metric that is the mean of the losses of all sequences."""

    def losses(self, per_sequence: Sequence[Sequence[float]]) -> list[float]:
        """Return the loss of each sequence. A smaller loss is better."""
        ...


def no_check(task: str, data: str | None, include_path: str | None) -> None:
    """Do nothing: an objective on text has no task."""


@dataclass(frozen=True)
class ObjectiveEntry:
    """Facts about one objective.

    Attributes:
        name: name on the command line and in recipes.
        label: one line for help texts and tables.
        build: function that builds the objective.
        metric: name of the metric that the search improves. None: the task decides.
        metric_labels: displayed names of the objective's metrics.
        order: position in lists.
        needs_calibration: whether it reads calibration text.
        needs_task: whether it reads the documents of a task.
        part: objectives with the same part are computed together and share their cache entries.
            Default: the name.
        in_mixes: whether a weighted sum can contain it by its name.
        races: whether its metric has a value for each item, which races compare.
        relative_metric: metric whose share of the dense model's value tells how much quality is
            lost. None: the metric that is searched.
        zero_if_dense: whether the metric of the dense model is 0, because it compares a candidate
            with the dense model.
        options: settings of the recipe that only objectives with this fact read.
        check_task: function that checks a task, the file with its data and the folder with task
            files, without a model.
        stored: function that makes what reads the stored numbers of a sequence; its argument is the
            setting `kl_top`. None: the numbers mean nothing without the data.
    """

    name: str
    label: str
    build: Callable[[ObjectiveInputs], Objective]
    metric: str | None = None
    metric_labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    order: int = 50
    needs_calibration: bool = True
    needs_task: bool = False
    part: str = ""
    in_mixes: bool = True
    races: bool = True
    relative_metric: str | None = None
    zero_if_dense: bool = False
    options: tuple[str, ...] = ()
    check_task: Callable[[str, str | None, str | None], None] = no_check
    stored: Callable[[int | None], StoredMeasure] | None = None


REGISTRY: Registry[ObjectiveEntry] = Registry(
    "prunesearch.objectives.metrics", lambda name, known: UnknownNameError("objective", name, known)
)
register = REGISTRY.register


def on_calibration_text(
    measure: "Callable[[ObjectiveInputs], Measure]",
) -> Callable[[ObjectiveInputs], Objective]:
    """Return a function that builds an objective on calibration text.

    Args:
        measure: function that makes what is measured.
    """

    def build(inputs: ObjectiveInputs) -> Objective:
        from prunesearch.objectives.calibration import CalibrationObjective

        return CalibrationObjective(
            inputs.loaded,
            inputs.read_windows(),
            measure(inputs),
            inputs.references,
            compared_with=inputs.compared_with,
        )

    return build


def names_with(fact: str) -> list[str]:
    """Return the names of the objectives whose entry has a fact.

    Args:
        fact: attribute of `ObjectiveEntry` that must be true or present, such as
            ``needs_calibration``.
    """
    return [entry.name for entry in REGISTRY.entries() if getattr(entry, fact)]


def task_entry() -> ObjectiveEntry:
    """Return the entry of the tasks of lm-eval."""
    (name,) = names_with("needs_task")
    return REGISTRY.get(name)


def names_in_mixes(terms: Iterable[str]) -> list[str]:
    """Return the terms of an objective that are registered. The others are tasks of lm-eval."""
    known = names_with("in_mixes")
    return [term for term in terms if term in known]


def metric_labels() -> dict[str, str]:
    """Return the displayed names of the metrics of all objectives."""
    labels: dict[str, str] = {}
    for entry in REGISTRY.entries():
        labels |= entry.metric_labels
    return labels


def relative_metrics() -> list[str]:
    """Return the metrics whose share of the dense model's value tells how much quality is lost."""
    found = [entry.relative_metric for entry in REGISTRY.entries() if entry.relative_metric]
    return list(dict.fromkeys(found))


def zero_metrics() -> list[str]:
    """Return the metrics that compare a candidate with the dense model, whose own value is 0."""
    return [entry.metric for entry in REGISTRY.entries() if entry.zero_if_dense and entry.metric]
