"""What a tuning study sends to its workers of Ray."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunesearch.candidate import LayerSubset
from prunesearch.config.model import ModelSection
from prunesearch.config.recovery import HealRecipe, Tuning
from prunesearch.config.run_options import RunOptions
from prunesearch.evaluation import ray_cluster
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.loading import LoadedModel
from prunesearch.models.reordering import order_of, reorder
from prunesearch.models.structure import input_device
from prunesearch.pipeline.ray_workers import options_of_worker
from prunesearch.pipeline.session import load_for
from prunesearch.pipeline.state import State
from prunesearch.recovery.finalists import compensation_of
from prunesearch.recovery.healing import ask_teacher, plan_healing
from prunesearch.recovery.ray_trial_worker import TrialModel
from prunesearch.recovery.ray_tuning import RayRunner
from prunesearch.recovery.run_folder import RUN_FOLDERS
from prunesearch.recovery.tuning import largest


@dataclass(frozen=True)
class TrialsPlan:
    """What the workers of a tuning study are given. Each loads the model from its own disk.

    Attributes:
        model: the dense model.
        options: run options of a worker.
        candidate: the candidate that is healed.
        recipe: recipe whose hyper-parameters are searched, with absolute paths.
        tuning: settings of the search.
        order: order of the model's channels; None if they are in their own.
        compensated: True if the candidate is compensated before it is healed.
        references, compensations, run_folders: folders of the process that owns the study. A worker
            uses those that are there, and a temporary folder in the place of others.
    """

    model: ModelSection
    options: RunOptions
    candidate: LayerSubset
    recipe: HealRecipe
    tuning: Tuning
    order: ChannelOrder | None
    compensated: bool
    references: Path
    compensations: Path
    run_folders: Path

    def build(self) -> TrialModel:
        """Load the model, ask the teacher, and compensate. It is called in a worker."""
        loaded = load_for(self.model, self.options)
        if self.order is not None:
            reorder(loaded.model, self.order)
        references = _here(self.references)
        # The teacher is the dense model, so it is asked before the weights change.
        ask_teacher(
            plan_healing(loaded, self.candidate, largest(self.recipe, self.tuning)), references
        )
        if self.compensated:
            compensation_of(loaded, self.candidate, self.recipe, _here(self.compensations))
        return TrialModel(loaded, references, _here(self.run_folders))


def _here(folder: Path) -> Path:
    """Return a folder, if this machine has it; otherwise a temporary one."""
    if folder.is_dir():
        return folder
    return Path(tempfile.mkdtemp(prefix="prunesearch-"))


@contextmanager
def ray_runner(state: State) -> Iterator[RayRunner]:
    """Connect to Ray, and start the workers of a tuning study."""
    request, loaded = state.request, state.resources.loaded
    recovery = request.recovery
    assert recovery is not None
    assert recovery.heal is not None
    assert recovery.tune is not None
    options, resources = options_of_worker(request.options, input_device(loaded.model).type)
    # Make the folders here, so that a worker on this machine finds and uses them.
    folders = [request.references, request.compensations, RUN_FOLDERS]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    plan = TrialsPlan(
        _section_of(loaded),
        options,
        state.choice.candidate,
        _with_absolute_data(recovery.heal),
        recovery.tune,
        order_of(loaded.model),
        state.resources.compensation is not None,
        *[folder.absolute() for folder in folders],
    )
    workers = request.options.workers
    with (
        ray_cluster.connected(request.options.ray_address, resources.cpus * workers),
        RayRunner(plan.build, workers, resources) as runner,
    ):
        if request.options.ray_address is None:
            ray_cluster.check_fits(workers, resources.cpus, resources.gpus)
        yield runner


def _section_of(loaded: LoadedModel) -> ModelSection:
    """Return the section that names a loaded model on every node."""
    # A local folder is named by its path, and a hub id by its commit.
    source = loaded.source
    path = source.gguf or (None if source.from_hub else source.folder)
    return ModelSection.of(
        {
            "path": source.name if path is None else str(path.absolute()),
            "revision": source.commit if source.from_hub else None,
            "trust_remote_code": loaded.trusted,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
        }
    )


def _with_absolute_data(recipe: HealRecipe) -> HealRecipe:
    """Return a recipe with absolute paths of its texts."""
    found = {}
    for name in ("data", "held_out"):
        value = getattr(recipe, name)
        if value is not None and Path(value).exists():
            found[name] = str(Path(value).absolute())
    return recipe.model_copy(update=found)
