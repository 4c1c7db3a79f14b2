"""Requests to the language model: the task, the scored candidates, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.algorithms.operators import Mask
from prunesearch.llm.chat import ChatRequest
from prunesearch.samplers.llm.described_search import DescribedSearch
from prunesearch.samplers.llm.scored import Scored
from prunesearch.samplers.llm.settings import ProposalSettings

CHARACTERS_PER_TOKEN = 1.6
"""Fewest characters of a token that are expected in a request. Much of it is short numbers."""
_SYSTEM = (
    "You are the search operator of an evolutionary algorithm that makes a language model smaller. "
    "You propose candidates. You reply with one line of JSON and nothing else."
)
_CRITIC = (
    "You analyse the history of an evolutionary search that makes a language model smaller. You "
    "reply with a few short sentences and nothing else."
)
_FEWEST = 2  # scored candidates that are shown in any case
_LESSON_WORDS = 60
_LESSON_TOKENS = 160
_LESSON_CHARACTERS = 600


@dataclass(frozen=True)
class Situation:
    """What a request is made of.

    Attributes:
        scored: scored candidates, the worst first.
        proposed: candidates that are not scored yet. Without a score, all first candidates are
            among them.
        notes: remarks on earlier replies.
        lessons: text that the model has written about the history; empty if there is none.
        temperature: temperature of the model.
    """

    scored: Sequence[Scored]
    proposed: Sequence[Mask]
    notes: Sequence[str]
    lessons: str
    temperature: float


@dataclass(frozen=True)
class RequestWriter:
    """Writes requests.

    Attributes:
        model: name of the model.
        described: the search.
        settings: settings of the proposals.
    """

    model: str
    described: DescribedSearch
    settings: ProposalSettings

    def propose(self, situation: Situation, count: int, seed: int, attempt: int) -> ChatRequest:
        """Return the request for `count` candidates."""
        # In a list of short numbers, each character may be a token.
        reply = (self.described.reply_characters() + 40) * count + 60
        tail = self._order(situation, count)
        return ChatRequest(
            self.model,
            _SYSTEM,
            self._bounded(situation, tail, reply),
            situation.temperature,
            seed,
            reply,
            self.described.schema(count),
            attempt,
        )

    def reflect(self, situation: Situation, seed: int) -> ChatRequest:
        """Return the request for lessons from the history."""
        tail = (
            "DO\nSay which layers seem to matter, which do not, and which combinations worked. "
            f"Write at most {_LESSON_WORDS} words. They are shown when the next candidates are "
            "proposed."
        )
        text = self._bounded(situation, tail, _LESSON_TOKENS)
        return ChatRequest(self.model, _CRITIC, text, situation.temperature, seed, _LESSON_TOKENS)

    def _bounded(self, situation: Situation, tail: str, reply: int) -> str:
        """Return the text of a request that fits the context.

        If it does not fit, the worst candidates are left out.
        """
        most = (self.settings.context - reply) * CHARACTERS_PER_TOKEN
        head = self.described.describe()
        scored = list(situation.scored)
        while True:
            text = "\n\n".join(
                part for part in (head, *self._body(situation, scored), tail) if part
            )
            if len(text) + len(_SYSTEM) <= most or len(scored) <= _FEWEST:
                return text
            scored = scored[1:]

    def _body(self, situation: Situation, scored: Sequence[Scored]) -> list[str]:
        """Return the parts of a request that change from one to the next."""
        parts = []
        if scored:
            lines = ["SCORED CANDIDATES, the worst first", "id loss candidate"]
            for each in scored:
                lines.append(f"{each.number} {each.loss:.4g} {self.described.shown(each.X_D)}")
            parts.append("\n".join(lines))
        if situation.proposed:
            lines = ["CANDIDATES WITHOUT A SCORE YET, do not repeat them"]
            lines += [self.described.shown(X_D) for X_D in situation.proposed]
            parts.append("\n".join(lines))
        if situation.lessons:
            parts.append(f"LESSONS\n{situation.lessons}")
        if situation.notes:
            parts.append("\n".join(["NOTES", *situation.notes]))
        return parts

    def _order(self, situation: Situation, count: int) -> str:
        """Return what the model shall do, and the form of its reply."""
        if situation.scored:
            steps = [
                "1. Select: choose two good parents among the scored candidates, by their ids.",
                "2. Cross: combine what both have in common with parts of each.",
                "3. Mutate: change it a little, guided by the table and the losses.",
            ]
        else:
            steps = [
                "Propose candidates to begin with, guided by the table. They shall differ from "
                "each other and from those above. Leave parents empty."
            ]
        form = f'{{"candidates":[{{"parents":[2 ids],{self.described.example()}}}, ...]}}'
        return "\n".join(
            [
                f"DO this {count} times" if situation.scored else "DO",
                *steps,
                f"Give {count} different candidates. None may be equal to one above.",
                f"Reply with one line, without blanks: {form}",
            ]
        )


def lessons_in(text: str) -> str:
    """Return lessons as later requests show them: one paragraph of limited length."""
    letters = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(letters.split()[: 2 * _LESSON_WORDS])[:_LESSON_CHARACTERS]
