"""What the searches found: the trace of each study, and the candidates that are measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.paper_parts.experiment import Experiment, PaperStudy
from benchmarks.paper_parts.methods import KL_RANKING, METHODS
from prunesearch.candidate import LayerSubset
from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.pipeline.session import Session, objective_for, require
from prunesearch.studies.study_data import StudyData, TrialData, read_study


@dataclass(frozen=True)
class Trace:
    """A finished study.

    Attributes:
        study: the study.
        data: its trials.
        evaluations: finished trials with exactly k dropped blocks, and those with fewer that came
            before.
        best: the best trial.
        seconds: time of scoring. Scores from the cache count with the time that they took when they
            were computed.
    """

    study: PaperStudy
    data: StudyData
    evaluations: tuple[TrialData, ...]
    best: TrialData
    seconds: float

    @property
    def candidate(self) -> LayerSubset:
        """The best candidate."""
        return LayerSubset.parse(self.best.dropped, self.data.n_layers)

    def best_so_far(self) -> list[float]:
        """Best fitness after each evaluation: the highest accuracy, or the least KL.

        It is NaN before the first candidate with k dropped blocks.
        """
        better = np.fmin if METHODS[self.study.method].by_kl else np.fmax
        values = []
        for trial in self.evaluations:
            complete = trial.state == "complete" and trial.values
            values.append(trial.values[0] if complete else math.nan)
        return [float(value) for value in better.accumulate(values)]


def read_trace(study: PaperStudy) -> Trace:
    """Read a finished study.

    Raises:
        StudyError: it does not exist.
        SystemExit: it has more evaluations than are asked for.
    """
    data = read_study(study.options.storage, study.name)
    done = tuple(trial for trial in data.trials if trial.state in ("complete", "pruned"))
    best = data.best()
    assert best is not None, f"study {study.name} has no result"
    # A longer search must not stand beside shorter ones.
    if len(done) > study.trials:
        raise SystemExit(
            f"study {study.name} has {len(done)} evaluations, and {study.trials} are asked for: "
            "take as many --trials, or another --folder"
        )
    return Trace(study, data, done, best, sum(map(seconds_of, done)))


def seconds_of(trial: TrialData) -> float:
    """Return the time of a trial's scoring, also if the score came from the cache."""
    return (trial.figure("saved_seconds") or 0.0) + (trial.figure("seconds") or 0.0)


def kl_ranking(session: Session, experiment: Experiment) -> list[int]:
    """Return the blocks in the order of the KL of the model without each of them, least first."""
    section = ObjectiveSection(name="kl")
    data = DataSection.model_validate(experiment.kl_data)
    objective = objective_for(section, data, session.loaded, experiment.options())
    engine = LocalEngine(session.loaded, objective, session.cache)
    n_layers = session.loaded.n_layers
    singles = [LayerSubset.parse(str(block), n_layers) for block in range(n_layers)]
    losses = [require(each).metrics["kl"] for each in engine.evaluate_now(singles)]
    return sorted(range(n_layers), key=losses.__getitem__)


def fixed_candidate(order: Sequence[int], k: int, n_layers: int) -> LayerSubset:
    """Return the candidate that drops the first k blocks of an order."""
    return LayerSubset.parse(",".join(map(str, sorted(order[:k]))), n_layers)


@dataclass(frozen=True)
class Winner:
    """A candidate that a method chose.

    Attributes:
        method: name of the method, or `KL_RANKING`.
        k: number of dropped blocks.
        seed: seed of the search.
        candidate: the candidate.
        searched_on: its fitness on the data of the search; None for a fixed candidate.
    """

    method: str
    k: int
    seed: int
    candidate: LayerSubset
    searched_on: float | None = None


def winners_of(
    traces: Sequence[Trace], order: Sequence[int], experiment: Experiment
) -> list[Winner]:
    """Return the winner of each study, and the candidate of the ranking by KL for each k."""
    found = []
    for trace in traces:
        study = trace.study
        found.append(
            Winner(study.method, study.k, study.seed, trace.candidate, trace.best.values[0])
        )
    for k in experiment.ks:
        candidate = fixed_candidate(order, k, experiment.n_layers)
        found.append(Winner(KL_RANKING, k, 0, candidate))
    return found
