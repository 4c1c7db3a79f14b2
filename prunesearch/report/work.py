"""Output of `prunesearch work`: what a process has done for somebody's study."""

from dataclasses import dataclass

from prunesearch.events import WorkProgress
from prunesearch.report.tables import Parts, duration
from prunesearch.units import noun_for


@dataclass(frozen=True)
class WorkReport:
    """Result of helping with a study.

    Attributes:
        study: name of the study.
        model: location of the model that was scored with.
        ended: ``complete`` if the study has its number of trials; ``idle`` if nobody was searching
            it any more.
        trials: number of finished trials of the study.
        results: number of results that were scored here: one for each candidate and chunk.
        candidates: number of candidates that these results belong to.
        tokens: number of tokens that candidates were scored on here.
        seconds: seconds of scoring.
        idle_exit: seconds without a search after which an idle helper ends.
    """

    study: str
    model: str
    ended: str
    trials: int
    results: int = 0
    candidates: int = 0
    tokens: int = 0
    seconds: float = 0.0
    idle_exit: float = 0.0


def worked(report: WorkReport) -> Parts:
    """Show what was done, and why it ended."""
    done = "nothing was left to score here"
    if report.results:
        scored = _scored(report.results, report.candidates)
        done = f"{scored} here in {duration(round(report.seconds))}"
    trials = f"{report.trials} {noun_for(report.trials, 'trial')}"
    why = f"study {report.study} has its {trials}"
    if report.ended == "idle":
        why = (
            f"nobody has searched study {report.study} for {report.idle_exit:g} s; it has {trials}"
        )
    return [f"{done}; {why}"]


def work_done(progress: WorkProgress) -> str:
    """Describe what a helper has done so far, and what the study does."""
    text = f"{_scored(progress.results, progress.candidates)} here"
    if progress.running:
        noun = noun_for(progress.running, "trial is", "trials are")
        return f"{text}, {progress.running} {noun} running"
    if progress.writer is None:
        return f"{text}, nobody is searching it now"
    return f"{text}, waiting for its next trials"


def _scored(results: int, candidates: int) -> str:
    """Say what a helper has scored."""
    return (
        f"scored {results} {noun_for(results, 'result')} of {candidates} "
        f"{noun_for(candidates, 'candidate')}"
    )
