"""The data that `report --score` measures on: those of the search, and held-out data."""

import filecmp
from dataclasses import dataclass
from pathlib import Path

from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError
from prunesearch.objectives.base import BUILTIN_TEXT, HasItems, Objective
from prunesearch.objectives.calibration_sources.builtin import HELD_OUT
from prunesearch.studies.measurements import Badge
from prunesearch.units import noun_for

HELD_OUT_TOKENS = 4096
"""Tokens of held-out text, if the user does not say how many."""
HELD_OUT_DOCUMENTS = 1000
"""Documents of a task that the search has not read, if the user does not say how many."""
_MOST_COMMON = 0.01  # share of held-out items that may occur in the data of the search too


@dataclass(frozen=True)
class HeldOutOptions:
    """Held-out data that the user names. What is None is chosen by the recipe of a study.

    Attributes:
        text: held-out text, for objectives on calibration text.
        tokens: number of tokens of held-out text.
        documents: file with held-out documents of the task.
        limit: number of held-out documents of each task.
    """

    text: str | None = None
    tokens: int | None = None
    documents: str | None = None
    limit: int | None = None

    def check(self, recipes: tuple[Recipe, ...]) -> None:
        """Refuse what no study reads, and text that a study was searched on.

        Raises:
            InputError: an option has no effect, or names the data of a search.
        """
        calibrated = any(recipe.objective.calibrated for recipe in recipes)
        tasks = any(recipe.objective.tasks for recipe in recipes)
        for name, given, read, others in (
            ("held_out", self.text, calibrated, "a task"),
            ("held_out_tokens", self.tokens, calibrated, "a task"),
            ("held_out_data", self.documents, tasks, "calibration text"),
            ("held_out_limit", self.limit, tasks, "calibration text"),
        ):
            if given is not None and not read:
                raise InputError(
                    f"`{name}` {given} is not read, because the search was made on {others}: "
                    "leave it out"
                )
        for recipe in recipes:
            for name, given, used in (
                ("held_out", self.text, recipe.data.calibration),
                ("held_out_data", self.documents, recipe.data.task_data),
            ):
                if given is not None and used is not None and are_same_data(given, used):
                    raise InputError(f"`{name}` {given!r} is what was searched on: give other data")


def are_same_data(first: str, second: str) -> bool:
    """Return whether two names of data are one name, or are of files with the same content.

    A study keeps another spelling of a path than a user may give. Texts in windows of another
    length have no window in common, so their files are compared.
    """
    if first == second:
        return True
    paths = Path(first), Path(second)
    try:
        return all(path.is_file() for path in paths) and filecmp.cmp(*paths, shallow=False)
    except OSError:
        # A file that cannot be read is refused where it is read.
        return False


@dataclass(frozen=True)
class MeasuredData:
    """Data that candidates are measured on.

    Attributes:
        badge: whether the search has seen them.
        data: section of a recipe that names them.
        first: number of documents of each task that are left out before those that are used.
    """

    badge: Badge
    data: DataSection
    first: int = 0

    def name(self, objective: ObjectiveSection, count: int) -> str:
        """Return a short name of the data.

        Args:
            objective: what is measured on them.
            count: number of documents or sequences; 0 if it is not known.
        """
        words = []
        for task in objective.task_names:
            words.append(self._documents(task, count))
        if objective.calibrated:
            text = Path(self.data.calibration).name
            words.append(f"{text}, {self.data.tokens:,} tokens")
        return "; ".join(words)

    def _documents(self, task: str, count: int) -> str:
        """Return a short name of the documents of a task."""
        if self.data.task_data is not None:
            task = f"{task} ({Path(self.data.task_data).name})"
        if count:
            return f"{task} docs {self.first}-{self.first + count - 1}"
        return f"{task} docs from {self.first} on"


def searched_data(recipe: Recipe) -> MeasuredData:
    """Return the data that a recipe's candidates were compared on."""
    return MeasuredData("searched on", recipe.data)


def seen_data(recipe: Recipe, confirming: int) -> MeasuredData:
    """Return all data that a search has seen.

    Args:
        recipe: recipe of the study.
        confirming: number of documents of each task, after those of the search, that confirmed its
            best trials.
    """
    data = recipe.data
    if confirming and data.limit is not None:
        data = data.model_copy(update={"limit": data.limit + confirming})
    return MeasuredData("searched on", data)


def held_out_data(
    recipe: Recipe, options: HeldOutOptions, confirming: int = 0
) -> MeasuredData | None:
    """Return data that a search did not see.

    For text it is the held-out part of the builtin text, and for a task its documents after those
    of the search and those that confirmed its best trials, unless the user names others.

    Args:
        recipe: recipe of the study.
        options: what the user names.
        confirming: see `seen_data`.

    Returns:
        The data; None if the search has seen all documents of its task and the user names none.
    """
    data, first = recipe.data, 0
    # 1. Text.
    if recipe.objective.calibrated:
        text = options.text or HELD_OUT
        if options.text is None and data.calibration == HELD_OUT:
            text = BUILTIN_TEXT
        tokens = options.tokens or HELD_OUT_TOKENS
        data = data.model_copy(update={"calibration": text, "tokens": tokens})
    # 2. Documents.
    if recipe.objective.tasks:
        if options.documents is not None:
            data = data.model_copy(update={"task_data": options.documents, "limit": options.limit})
        elif data.limit is None:
            return None
        else:
            first = data.limit + confirming
            limit = options.limit or HELD_OUT_DOCUMENTS
            data = data.model_copy(update={"limit": limit})
    return MeasuredData("held out", data, first)


def refuse_overlap(searched: Objective, held_out: Objective, name: str) -> None:
    """Refuse held-out data that have more than a few items in common with the data of the search.

    Args:
        searched: objective on the data of the search.
        held_out: objective on the held-out data.
        name: name of the held-out data, for the message.

    Raises:
        InputError: the search has seen the items.
    """
    common, own = _common_items(searched, held_out)
    if common > _MOST_COMMON * own:
        raise InputError(
            f"{common} of {own} sequences or requests of {name} "
            f"{noun_for(common, 'was', 'were')} searched on: give other held-out data"
        )


def overlaps(searched: Objective, other: Objective) -> bool:
    """Return whether data have more than a few items in common with the data of a search."""
    common, own = _common_items(searched, other)
    return common > _MOST_COMMON * own


def _common_items(searched: Objective, other: Objective) -> tuple[int, int]:
    """Return how many items of some data the search has seen, and how many they are.

    A data set may have a few documents twice.
    """
    if not isinstance(searched, HasItems) or not isinstance(other, HasItems):
        return 0, 0
    own = other.items()
    return len(searched.items() & own), len(own)
