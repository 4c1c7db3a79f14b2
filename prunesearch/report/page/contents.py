"""What a report says besides its figures, as plain values: facts, sentences, tables and recipes."""

from dataclasses import dataclass

from prunesearch.report.figures.figure import Figure, NumberTable
from prunesearch.studies.measurements import Badge


@dataclass(frozen=True)
class Sentence:
    """A sentence of the summary, and whether its numbers were searched on or held out."""

    text: str
    badge: Badge | None = None


@dataclass(frozen=True)
class StudyFacts:
    """All facts about a study as pairs of a name and a value."""

    name: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StudyRecipe:
    """How to repeat a study.

    Attributes:
        name: name of the study.
        text: its recipe in YAML, without the folders of this machine.
        command: command that runs it.
    """

    name: str
    text: str
    command: str


@dataclass(frozen=True)
class ReportContents:
    """A report, before it is rendered.

    Attributes:
        title: title of the page.
        made: time of the report, for people.
        command: command that makes the report again.
        summary: what was found, in sentences.
        notes: what a reader must know first: unfinished studies, missing measurements.
        studies: one row for each study.
        facts: all facts about each study.
        recipes: how to repeat each study.
        figures: the figures, in order.
        absent: pairs of a title and a reason, for figures that have nothing to show.
    """

    title: str
    made: str
    command: str
    summary: tuple[Sentence, ...]
    notes: tuple[str, ...]
    studies: NumberTable
    facts: tuple[StudyFacts, ...]
    recipes: tuple[StudyRecipe, ...]
    figures: tuple[Figure, ...]
    absent: tuple[tuple[str, str], ...]
