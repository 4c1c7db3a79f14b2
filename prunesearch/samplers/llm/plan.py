"""Plans candidates with a language model: asks, reads, repairs, and leaves out what is known.

If the model fails, or gives nothing new several times in a row, an evolutionary operator plans the
rest. This is said once, and counted.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunesearch import events
from prunesearch.algorithms.history import View
from prunesearch.algorithms.operators import Mask
from prunesearch.llm.chat import ChatReply, ChatRequest, LanguageModelError
from prunesearch.llm.limits import Spent
from prunesearch.samplers.llm.described_search import DescribedSearch
from prunesearch.samplers.llm.parsing import candidates_in
from prunesearch.samplers.llm.prompts import RequestWriter, Situation, lessons_in
from prunesearch.samplers.llm.scored import (
    chosen,
    generations_without_progress,
    with_shuffled_scores,
)
from prunesearch.samplers.llm.settings import LanguageModel
from prunesearch.studies.sources import Replies, Source
from prunesearch.units import noun_for

_HOTTER, _HOTTEST = 0.1, 0.5  # rise of the temperature for a generation without progress, and most
_MOST_PROPOSED = 12  # candidates without a score that a request shows
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Planned:
    """A planned candidate.

    Attributes:
        X_D: the candidate as a mask.
        source: source of the candidate.
        repair: share of it that was changed.
    """

    X_D: Mask
    source: Source
    repair: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Candidates that were planned together.

    Attributes:
        candidates: one for each slot.
        replies: counts of the replies that they came from.
        lessons: text that the model wrote about the history; empty if it was not asked to.
    """

    candidates: list[Planned]
    replies: Replies = field(default_factory=Replies)
    lessons: str = ""


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is derived from.

    Attributes:
        generation: number of the generation, counted from 0.
        slots: slots to plan for.
        population: trials per generation.
        seed: seed of the study.
        view: finished trials of earlier generations.
        pending: candidates that are proposed and not scored.
        seen: all candidates of the study. The planned ones are added.
        notes: remarks on replies of the last generation.
        lessons: lessons that were written last.
        reflects: whether the model shall write new lessons first.
        spent: what the study has spent so far.
    """

    generation: int
    slots: range
    population: int
    seed: int
    view: View
    pending: Sequence[Mask]
    seen: set[bytes]
    notes: Sequence[str] = ()
    lessons: str = ""
    reflects: bool = False
    spent: Spent = field(default_factory=Spent)


Operator = Callable[[PlanInputs, int], Mask]
"""Evolutionary operator: returns a new candidate for a slot and adds it to `PlanInputs.seen`."""


class ModelPlanner:
    """Plans candidates with a language model.

    Args:
        model: the language model and its settings.
        described: the search as requests describe it.
        operator: evolutionary operator that takes over.
        study: name of the study, for messages.

    Attributes:
        failures: number of requests without a reply.
    """

    def __init__(
        self, model: LanguageModel, described: DescribedSearch, operator: Operator, study: str
    ) -> None:
        self.failures = 0
        self._model, self._described, self._operator = model, described, operator
        self._study = study
        self._writer = RequestWriter(model.chat.model, described, model.proposals)
        self._warned = self._told = False

    def first(self, inputs: PlanInputs) -> Plan:
        """Plan first candidates, which all samplers start from."""
        planned = [Planned(self._operator(inputs, slot), "first") for slot in inputs.slots]
        return Plan(planned)

    def plan(self, inputs: PlanInputs) -> Plan:
        """Plan candidates with the model, and the rest with the evolutionary operator.

        Raises:
            LanguageModelError: the model failed, and is required.
        """
        if not self._told:
            self._told = True
            name = self._model.chat.model
            events.tell(events.StageProgress(f"asking the language model {name} for candidates"))
        asking = _Asking(self._model, inputs)
        lessons = ""
        # The model plans as many as it can.
        try:
            if inputs.reflects:
                lessons = self._reflect(asking)
            planned = self._propose(asking, lessons or inputs.lessons)
            if not planned:
                self._warn(unusable(asking.replies))
        except LanguageModelError as error:
            if self._model.required:
                raise
            self.failures += 1
            self._warn(str(error))
            planned = asking.planned
        # The operator plans what is missing.
        for slot in inputs.slots[len(planned) :]:
            planned.append(Planned(self._operator(inputs, slot), "fallback"))
        return Plan(planned, asking.replies, lessons)

    def _reflect(self, asking: "_Asking") -> str:
        """Let the model write lessons about the history."""
        situation = self._situation(asking, "")
        request = self._writer.reflect(situation, asking.seed("lessons", 0))
        return lessons_in(asking.ask(request).text)

    def _propose(self, asking: "_Asking", lessons: str) -> list[Planned]:
        """Ask until there are enough candidates, or several replies in a row have no new one."""
        wanted = len(asking.inputs.slots)
        in_vain = attempt = 0
        while len(asking.planned) < wanted and in_vain < self._model.proposals.attempts:
            missing = wanted - len(asking.planned)
            situation = self._situation(asking, lessons)
            request = self._writer.propose(
                situation, missing, asking.seed("candidates", attempt), attempt
            )
            new = self._use(asking, asking.ask(request), missing)
            in_vain = 0 if new else in_vain + 1
            attempt += 1
        return asking.planned

    def _situation(self, asking: "_Asking", lessons: str) -> Situation:
        """Return what the next request shows."""
        inputs, settings = asking.inputs, self._model.proposals
        # The temperature rises while nothing improves, as in LMEA.
        stuck = generations_without_progress(inputs.view, inputs.population, inputs.generation)
        rise = min(_HOTTEST, _HOTTER * stuck)
        proposed = [*inputs.pending, *(each.X_D for each in asking.planned)]
        notes = [*inputs.notes, *asking.notes]
        temperature = round(settings.temperature + rise, 2)
        return Situation(asking.scored, proposed[-_MOST_PROPOSED:], notes, lessons, temperature)

    def _use(self, asking: "_Asking", reply: ChatReply, most: int) -> int:
        """Take the new candidates of a reply. Return how many there are."""
        # More than was asked for is read, because some of it may be known already.
        found, invalid = candidates_in(reply.text, self._described.names, 4 * most)
        duplicates = rejected = new = 0
        # Repair each, then leave out what is known, before anything is scored.
        for numbers in found:
            if new == most:
                break
            repaired = self._described.read(numbers)
            if repaired is None:
                invalid += 1
            elif repaired.share > self._model.proposals.max_repair:
                rejected += 1
            elif repaired.X_D.tobytes() in asking.inputs.seen:
                duplicates += 1
            else:
                source: Source = "repaired" if repaired.share else "model"
                asking.take(Planned(repaired.X_D, source, repaired.share))
                new += 1
        asking.count(Replies(invalid=invalid, rejected=rejected, duplicates=duplicates))
        return new

    def _warn(self, reason: str) -> None:
        """Say once that the evolutionary operator takes over."""
        if not self._warned:
            self._warned = True
            events.tell_or_log(
                f"study {self._study!r}: {reason}; an evolutionary operator proposes instead, and "
                f"such trials are counted as fall-back"
            )


class _Asking:
    """The requests of one plan, what they gave, and what they cost."""

    def __init__(self, model: LanguageModel, inputs: PlanInputs) -> None:
        self.inputs = inputs
        self.planned: list[Planned] = []
        self.replies = Replies()
        self.notes: list[str] = []
        self._model = model
        self._spent = inputs.spent
        self._digest = _digest_of(inputs)
        self.scored = chosen(inputs.view, model.proposals.history)
        if model.proposals.shuffle_scores:
            self.scored = with_shuffled_scores(self.scored, inputs.seed, inputs.generation)

    def seed(self, purpose: str, attempt: int) -> int:
        """Return the seed of a request. It depends on the history, and not on a trial's number."""
        text = f"{self.inputs.seed} {self._digest} {purpose} {attempt}"
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:8], "big") % _LARGEST_SEED

    def ask(self, request: ChatRequest) -> ChatReply:
        """Ask the model, and count the reply."""
        chat = self._model.chat
        try:
            answer = chat.ask(request, self._spent)
        except LanguageModelError:
            self.count(Replies(failed=1))
            raise
        # Count what the reply took, and what was paid for it now.
        reply = answer.reply
        counted = Replies(
            calls=1,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cached_tokens=reply.cached_tokens,
            seconds=reply.seconds,
        )
        if answer.replayed:
            counted = replace(counted, replayed=1)
        else:
            self._spent = self._spent.plus(reply, chat.price)
            cost = None if chat.price is None else chat.price.of(reply)
            counted = replace(
                counted,
                cost=cost,
                paid_tokens=reply.prompt_tokens + reply.completion_tokens,
                paid_seconds=reply.seconds,
            )
        self.count(counted)
        return reply

    def take(self, planned: Planned) -> None:
        """Add a candidate."""
        self.planned.append(planned)
        self.inputs.seen.add(planned.X_D.tobytes())

    def count(self, replies: Replies) -> None:
        """Add counts, and note what was wrong for the next request."""
        self.replies = self.replies.plus(replies)
        self.notes = notes_on(replies, "your last reply")


def unusable(replies: Replies) -> str:
    """Return why no candidate of any reply could be used."""
    return (
        f"no candidate of {replies.calls} {noun_for(replies.calls, 'reply', 'replies')} of the "
        f"language model could be used "
        f"({replies.invalid} unreadable, {replies.rejected} far from the budget, "
        f"{replies.duplicates} known already)"
    )


def notes_on(replies: Replies, where: str) -> list[str]:
    """Return remarks on replies that the model can learn from."""
    notes = []
    if replies.duplicates:
        words = _candidates(replies.duplicates, where)
        notes.append(f"{words} known already: change more.")
    if replies.rejected:
        notes.append(f"{_candidates(replies.rejected, where)} far from the budget.")
    if replies.invalid:
        candidates = noun_for(replies.invalid, "candidate")
        notes.append(
            f"{replies.invalid} {candidates} of {where} could not be read: follow the form."
        )
    return notes


def _candidates(count: int, where: str) -> str:
    """Return the beginning of a remark: ``1 candidate of your last reply was``."""
    be = noun_for(count, "was", "were")
    return f"{count} {noun_for(count, 'candidate')} of {where} {be}"


def notes_on_repairs(repairs: Sequence[float]) -> list[str]:
    """Return a remark on candidates that were changed, if there are any.

    Args:
        repairs: share of each of them that was changed.
    """
    if not repairs:
        return []
    mean = sum(repairs) / len(repairs)
    candidates = _candidates(len(repairs), "the last round broke a rule and")
    return [f"{candidates} changed, by {mean:.0%} in the mean."]


def _digest_of(inputs: PlanInputs) -> str:
    """Return a digest of the scored candidates, and of those that are not scored yet."""
    digest = hashlib.sha256()
    for number in inputs.view.complete.tolist():
        digest.update(np.packbits(inputs.view.X_ND[number]).tobytes())
        digest.update(repr(float(inputs.view.loss_NO[number, 0])).encode())
    for X_D in inputs.pending:
        digest.update(np.packbits(X_D).tobytes())
    return digest.hexdigest()
