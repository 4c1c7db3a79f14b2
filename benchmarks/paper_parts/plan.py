"""What a run will do, and how long it will take, said before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.paper_parts.experiment import Experiment, PaperStudy
from benchmarks.paper_parts.measuring import read
from benchmarks.paper_parts.methods import METHODS
from benchmarks.support.searches import left
from prunesearch.candidate import LayerSubset
from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.objectives.base import Objective
from prunesearch.pipeline.session import Session, objective_for, require

_TRAINING = 4.0
"""Cost of a training step, in forward passes over the same tokens: a pass, and a backward pass of
about twice its cost, on top of products in float32 or bfloat16. It is replaced by measured healings
as soon as there are some.
"""


@dataclass(frozen=True)
class Plan:
    """Predicted times in seconds, on one process.

    Attributes:
        evaluation: scoring of the dense model by the fitness of the first method.
        searching, measuring, healing: all that is left of each part.
        evaluations, measurements, healings: their numbers. Measurements and healings are upper
            limits: several searches may find the same candidate.
        workers: number of processes.
    """

    evaluation: float
    searching: float
    measuring: float
    healing: float
    evaluations: int
    measurements: int
    healings: int
    workers: int

    @property
    def hours(self) -> float:
        """Hours until the end with all processes, if each has a core of its own."""
        return (self.searching + self.measuring + self.healing) / self.workers / 3600

    def text(self) -> str:
        """The plan as lines of text."""
        return "\n".join(
            (
                "Plan (upper limits: candidates that are in the cache cost nothing)",
                f"  one evaluation of the dense model: {self.evaluation:.1f} s",
                f"  searches:     {self.evaluations:6d} evaluations  {self.searching / 3600:6.2f} h",
                f"  measurements: {self.measurements:6d} candidates   {self.measuring / 3600:6.2f} h",
                f"  healings:     {self.healings:6d} candidates   {self.healing / 3600:6.2f} h",
                f"  {self.workers} processes: about {self.hours:.2f} h",
            )
        )


def make_plan(session: Session, experiment: Experiment, documents: tuple[int, int]) -> Plan:
    """Time the dense model, and predict the run.

    Args:
        session: model and documents of the searches.
        experiment: settings.
        documents: number of documents of a search, and of held-out documents.
    """
    dense = LayerSubset.of(session.loaded.n_layers)
    evaluation = require(*session.engine.evaluate_now([dense]))
    seconds = evaluation.seconds or evaluation.saved
    # A token costs about the same whatever the fitness is.
    per_token = seconds / _tokens(session.objective)
    scored = _tokens(_on_documents(session, experiment))
    searches = experiment.studies()
    todo = left(searches)
    searching, evaluations = 0.0, 0
    for study in searches:
        if study in todo:
            evaluations += study.trials
            tokens = experiment.kl_tokens if METHODS[study.method].by_kl else scored
            searching += study.trials * per_token * tokens * _kept(experiment, study.k)
    # Each study has one winner, and the ranking by KL one for each number.
    measurements = len(searches) + len(experiment.ks)
    per_document = per_token * scored / documents[0]
    measuring = 0.0
    for k in [study.k for study in searches] + list(experiment.ks):
        measuring += documents[1] * per_document * _kept(experiment, k)
    healed = [study for study in searches if study.method in experiment.healed]
    if not experiment.heal_steps:
        healed = []
    healing = _healing_seconds(experiment, healed, per_token)
    for study in healed:
        healing += documents[1] * per_document * _kept(experiment, study.k)
    return Plan(
        seconds,
        searching,
        measuring,
        healing,
        evaluations,
        measurements,
        len(healed),
        experiment.workers,
    )


def _kept(experiment: Experiment, k: int) -> float:
    """Share of the blocks that are kept."""
    return 1 - k / experiment.n_layers


def _on_documents(session: Session, experiment: Experiment) -> Objective:
    """Return the accuracy on the documents of the search as an objective."""
    data = DataSection(task_data=str(experiment.search_data))
    section = ObjectiveSection.of({"task": "hellaswag"})
    return objective_for(section, data, session.loaded, experiment.options())


def _tokens(objective: Objective) -> int:
    """Number of tokens of an evaluation."""
    return sum(chunk.tokens for chunk in objective.chunks)


def _healing_seconds(
    experiment: Experiment, healed: Sequence[PaperStudy], per_token: float
) -> float:
    """Predict the time of all trainings."""
    measured = []
    for path in (experiment.folder / "measured").glob("*.json"):
        made = read(path)
        if made.heal_seconds:
            measured.append(made.heal_seconds)
    if measured:
        return len(healed) * sum(measured) / len(measured)
    trained = experiment.heal_steps * experiment.heal_batch * experiment.heal_window
    total = 0.0
    for study in healed:
        total += _TRAINING * trained * per_token * _kept(experiment, study.k)
    return total
