"""Output of `prunesearch work`: what a process has done for somebody's study."""

from dataclasses import dataclass

from prunesearch.events import WorkProgress
from prunesearch.report.tables import Parts, duration


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
        done = (
            f"scored {report.results} results of {report.candidates} candidates here "
            f"in {duration(round(report.seconds))}"
        )
    why = f"study {report.study} has its {report.trials} trials"
    if report.ended == "idle":
        why = (
            f"nobody has searched study {report.study} for {report.idle_exit:g} s; "
            f"it has {report.trials} trials"
        )
    return [f"{done}; {why}"]


def work_done(progress: WorkProgress) -> str:
    """Describe what a helper has done so far, and what the study does."""
    text = f"scored {progress.results} results of {progress.candidates} candidates here"
    if progress.running:
        noun = "trial is" if progress.running == 1 else "trials are"
        return f"{text}, {progress.running} {noun} running"
    if progress.writer is None:
        return f"{text}, nobody is searching it now"
    return f"{text}, waiting for its next trials"
