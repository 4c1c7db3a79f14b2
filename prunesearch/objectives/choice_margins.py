"""By how much a candidate's answers to multiple-choice questions are right or wrong.

An accuracy is 1 or 0 for a document, which tells little. The margin tells more: the (normalised)
log-likelihood of the right choice minus that of the best wrong one. It is above 0 where the answer
is right. Races compare margins, see `objectives.race`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.task import ConfigurableTask, Task

_NORMALISED = {"acc": False, "acc_norm": True}  # metrics with a margin, and whether by length


@dataclass(frozen=True)
class ChoiceDocument:
    """A document with choices.

    Attributes:
        right: index of the right choice.
        lengths: what the log-likelihood of each choice is divided by.
    """

    right: int
    lengths: tuple[float, ...]

    def margin(self, values: Sequence[float]) -> float:
        """Return the margin of an answer.

        Args:
            values: log-likelihood of each choice.
        """
        scores = [value / length for value, length in zip(values, self.lengths, strict=True)]
        right = scores.pop(self.right)
        return right - max(scores)


def choice_documents(
    tasks: Iterable[tuple[Task, Iterable[Any]]], metric: str
) -> list[ChoiceDocument] | None:
    """Return the documents of tasks in the order of their requests.

    Args:
        tasks: tasks and their documents.
        metric: metric that is searched.

    Returns:
        The documents. None if the metric has no margin, or a document's requests are not its
        choices with one right one among them.
    """
    if metric not in _NORMALISED:
        return None
    found = []
    for task, documents in tasks:
        if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "multiple_choice":
            return None
        metrics = [entry.get("metric") for entry in task.config.metric_list or []]
        if task.multiple_input or task.multiple_target or "acc_mutual_info" in metrics:
            return None
        for document in documents:
            choices = task.doc_to_choice(document)
            right = task.doc_to_target(document)
            if isinstance(right, str) and right in choices:
                right = choices.index(right)
            if not isinstance(right, int) or not 0 <= right < len(choices) or len(choices) < 2:
                return None
            lengths = [1.0] * len(choices)
            if _NORMALISED[metric]:
                # lm-eval divides by the number of characters.
                lengths = [float(len(choice)) for choice in choices]
            if not all(lengths):
                return None
            found.append(ChoiceDocument(right, tuple(lengths)))
    return found
