"""Markdown notes of a study and of its best trial, which optuna-dashboard shows (see
`studies.notes`).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.cache.location import shown
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.report.dashboard import DashboardFigures
from prunesearch.report.removals import Removal
from prunesearch.report.sources import source_lines
from prunesearch.report.tables import example_loss, gib, label, number
from prunesearch.runtime.masking import STORAGE_VARIABLE, pasted
from prunesearch.studies import notes, persistence, selection
from prunesearch.studies.sources import SourceShares, source_shares
from prunesearch.studies.warm_start_source import WarmStartSource, source_in, warm_start_line
from prunesearch.units import noun_for

_SECONDS = 5.0  # shortest time between two updates of a study's notes
_MOST = 2000  # most characters of a note; a longer one takes several attributes of the database


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a study beside the dense model.

    Attributes:
        number: number of the trial.
        dropped: dropped layers, as ``3,7a,12m``.
        dense, pruned: figures of the dense model and of the trial, by name.
    """

    number: int
    dropped: str
    dense: Mapping[str, float]
    pruned: Mapping[str, float]


@dataclass(frozen=True)
class StudyState:
    """What a note says about a study.

    Attributes:
        study: name of the study.
        storage: URL of the database, without passwords.
        recipe: recipe of the study.
        done, total: number of finished trials, and of all trials.
        front: number of trials on the front; 0 for one objective.
        best: the best trial. None without one.
        loss: a loss for the example of a command; see `tables.example_loss`.
        sources: sources of the candidates; None if no language model was asked.
        warm_start: where prior knowledge comes from, or None.
    """

    study: str
    storage: str
    recipe: Recipe
    done: int
    total: int
    front: int
    best: BestTrial | None
    loss: str = "10%"
    sources: SourceShares | None = None
    warm_start: WarmStartSource | None = None


def study_note(state: StudyState) -> str:
    """Return the note of a study: its best candidate, compared with the dense model, and the next
    commands.
    """
    recipe, best = state.recipe, state.best
    search, model = recipe.search, Path(recipe.model.path).name
    amount = f"drop `{search.drop}`"
    if search.narrows:
        amount = f"{search.space} `{search.target}` by `{search.criterion}`"
    what = f"`{model}`, {amount}, `{search.sampler}`, {_objective(recipe)}"
    be = "is" if 1 in (state.done, state.total) else "are"
    lines = [what, f"{state.done} of {state.total} {noun_for(state.total, 'trial')} {be} finished."]
    lines += [*warm_start_line(state.warm_start), *source_lines(state.sources)]
    if state.front:
        lines.append(
            f"{state.front} {noun_for(state.front, 'trial is', 'trials are')} on the front of "
            f"quality and size: see the Pareto plot."
        )
        lines.append(
            _commands(
                state,
                "study show {study}",
                f"export {{study}} --max-loss {state.loss} --out {{study}}",
            )
        )
    elif best is not None:
        lines.append(f"**Best: trial {best.number} {Removal.of(best.dropped).sentence}**")
        lines.append(_figures(best))
        lines.append(_commands(state, "study layers {study}", "export {study} --out {study}"))
        lines.append(
            "*Hyperparameter importance* tells the best trials from good ones. `study layers` says "
            "what matters."
        )
    return "\n\n".join(lines)[:_MOST]


def trial_note(state: StudyState, best: BestTrial) -> str:
    """Return the note of the best trial: the layers that it drops, and the command that exports
    it.
    """
    lines = [f"**The best so far. It {Removal.of(best.dropped).sentence}.**", _figures(best)]
    return "\n\n".join([*lines, _commands(state, "export {study} --out {study}")])[:_MOST]


def _objective(recipe: Recipe) -> str:
    """Describe a recipe's objective and its data."""
    objective, data = recipe.objective, recipe.data
    if objective.task:
        return f"task `{objective.task}`"
    name = Path(data.calibration).name
    return f"`{objective.name}` on {data.tokens} tokens of `{name}`"


def _figures(best: BestTrial) -> str:
    """Return a table of the dense model's figures beside the best trial's."""
    rows = ["| | dense | pruned |", "|---|---|---|"]
    for name, after in best.pruned.items():
        before = best.dense.get(name)
        previous = "-" if before is None else _shown(name, before)
        title = label("predicted_ms" if name == "latency_ms" else name)
        rows.append(f"| {title} | {previous} | {_shown(name, after)} |")
    return "\n".join(rows)


def _shown(name: str, value: float) -> str:
    """Format a figure of a note."""
    if name == "bytes":
        return gib(value)
    return number(name, value)


def _commands(state: StudyState, *commands: str) -> str:
    """Format commands as a block of code.

    A URL with a password is replaced by its environment variable.
    """
    storage = state.storage
    flag = ""
    if storage != "sqlite:///storage/study.db":
        flag = f" --storage {pasted(storage, STORAGE_VARIABLE)}"
    study = quote(state.study)
    lines = ["```"]
    for command in commands:
        lines.append(f"prunesearch {command.format(study=study)}{flag}")
    return "\n".join([*lines, "```"])


class Noter:
    """Updates the notes of a study, which optuna-dashboard shows.

    Args:
        study: study whose notes are written.
        recipe: recipe of the study.
        options: how the recipe is run.
        dense: figures of the dense model, by the names of the trials' user attributes.
    """

    def __init__(
        self, study: Study, recipe: Recipe, options: RunOptions, dense: Mapping[str, float]
    ) -> None:
        self._study, self._recipe, self._options, self._dense = study, recipe, options, dense
        self._written = time.monotonic()
        self._figures = DashboardFigures(study)

    def now_and_then(self) -> None:
        """Write the notes if the last update is some seconds ago, and begin to draw the figures if
        that was long ago.
        """
        if time.monotonic() - self._written >= _SECONDS:
            self.write()
        self._figures.now_and_then()

    def finish(self) -> None:
        """Write the notes and draw the figures of a search that has ended."""
        self.write()
        self._figures.finish()

    def write(self) -> None:
        """Write the notes."""
        ranked = selection.recommended_trials(self._study)
        pareto = len(self._study.directions) > 1
        best = ranked[0] if ranked and not pareto else None
        trials = self._study.get_trials(deepcopy=False)
        requested = self._study.user_attrs.get(persistence.TRIALS_ATTR, self._options.trials)
        described = None if best is None else self._best(best)
        state = StudyState(
            study=self._study.study_name,
            storage=shown(self._options.storage),
            recipe=self._recipe,
            done=sum(trial.state.is_finished() for trial in trials),
            total=max(len(trials), requested),
            front=len(ranked) if pareto else 0,
            best=described,
            loss=example_loss(self._dense),
            sources=source_shares(trials),
            warm_start=source_in(self._study),
        )
        note = "" if described is None else trial_note(state, described)
        notes.write(self._study, notes.Notes(study_note(state), best, note))
        self._written = time.monotonic()

    def _best(self, trial: FrozenTrial) -> BestTrial:
        """Return the figures of the best trial beside the dense model's."""
        pruned = {name: trial.user_attrs[name] for name in self._dense if name in trial.user_attrs}
        dropped = trial.user_attrs.get("dropped", "")
        return BestTrial(trial.number, dropped, self._dense, pruned)
