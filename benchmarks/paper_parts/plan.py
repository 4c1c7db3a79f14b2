"""What a run will do, and how long it will take, said before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.paper_parts.experiment import Experiment, PaperStudy
from benchmarks.paper_parts.measuring import read
from benchmarks.support.searches import left
from prunesearch.candidate import LayerSubset
from prunesearch.pipeline.session import Session, require

_TRAINING = 4.0
"""Cost of a training step, in forward passes over the same tokens: a pass, and a backward pass of
about twice its cost, on top of products in float32 or bfloat16. It is replaced by measured healings
as soon as there are some.
"""


@dataclass(frozen=True)
class Plan:
    """Predicted times in seconds, on one process.

    Attributes:
        evaluation: scoring of the dense model on the documents of the search.
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
    searches = experiment.studies()
    todo = left(searches)
    searching, evaluations = 0.0, 0
    for study in searches:
        if study in todo:
            evaluations += study.trials
            searching += study.trials * seconds * _kept(experiment, study.k)
    # Each study has one winner, and the ranking by KL one for each number.
    measurements = len(searches) + len(experiment.ks)
    per_document = seconds / documents[0]
    measuring = 0.0
    for k in [study.k for study in searches] + list(experiment.ks):
        measuring += documents[1] * per_document * _kept(experiment, k)
    healed = [study for study in searches if study.method in experiment.healed]
    if not experiment.heal_steps:
        healed = []
    healing = _healing_seconds(experiment, healed, seconds, session)
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


def _healing_seconds(
    experiment: Experiment, healed: Sequence[PaperStudy], seconds: float, session: Session
) -> float:
    """Predict the time of all trainings."""
    measured = []
    for path in (experiment.folder / "measured").glob("*.json"):
        made = read(path)
        if made.heal_seconds:
            measured.append(made.heal_seconds)
    if measured:
        return len(healed) * sum(measured) / len(measured)
    tokens = sum(chunk.tokens for chunk in session.objective.chunks)
    trained = experiment.heal_steps * experiment.heal_batch * experiment.heal_window
    total = 0.0
    for study in healed:
        total += _TRAINING * trained * seconds / tokens * _kept(experiment, study.k)
    return total
