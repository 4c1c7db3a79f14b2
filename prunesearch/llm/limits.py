"""What a study may spend on a language model, and when the model is left alone for a while."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from prunesearch.llm.chat import ChatReply
from prunesearch.units import noun_for


@dataclass(frozen=True)
class Price:
    """Price of a model in any currency, for a million tokens.

    Attributes:
        prompt: price of the tokens that are read.
        completion: price of the tokens that are written.
    """

    prompt: float
    completion: float

    def of(self, reply: ChatReply) -> float:
        """Return what a reply costs."""
        total = reply.prompt_tokens * self.prompt + reply.completion_tokens * self.completion
        return total / 1e6


@dataclass(frozen=True)
class Spent:
    """What was spent on replies.

    Attributes:
        calls: number of replies that were paid.
        tokens: tokens that were read and written.
        cost: their price; None if it is not known.
        seconds: time that the model took.
    """

    calls: int = 0
    tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0

    def plus(self, reply: ChatReply, price: Price | None) -> "Spent":
        """Return what is spent with one more reply."""
        # Without a price the cost stays unknown.
        cost = self.cost
        if price is not None:
            cost = (cost or 0.0) + price.of(reply)
        return Spent(
            self.calls + 1,
            self.tokens + reply.prompt_tokens + reply.completion_tokens,
            cost,
            self.seconds + reply.seconds,
        )


@dataclass(frozen=True)
class Limits:
    """The most that a study may spend; None for no limit.

    Attributes:
        calls, tokens, cost, seconds: limits of `Spent`. A cost is known only with a `Price`.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def reached(self, spent: Spent) -> str | None:
        """Return which limit is reached, in words; None if there is none."""
        # The first limit that is reached is named.
        found: list[str] = []
        if self.calls is not None and spent.calls >= self.calls:
            found.append(f"{spent.calls} of {self.calls} {noun_for(self.calls, 'call')}")
        if self.tokens is not None and spent.tokens >= self.tokens:
            found.append(f"{spent.tokens} of {self.tokens} {noun_for(self.tokens, 'token')}")
        if self.cost is not None and (spent.cost or 0.0) >= self.cost:
            found.append(f"a cost of {spent.cost or 0.0:.4g} of {self.cost:g}")
        if self.seconds is not None and spent.seconds >= self.seconds:
            found.append(f"{spent.seconds:.0f} of {self.seconds:g} s")
        if not found:
            return None
        return f"the budget is spent: {found[0]}"


class CircuitBreaker:
    """Keeps calls from an endpoint that has failed several times in a row.

    Once it is open, no call is made for some time. Then one call is tried. If that fails too, the
    breaker stays open for twice as long, up to a limit.

    Args:
        failures: number of failures in a row that open it.
        seconds: time for which it is open at first.
        clock: function that returns the time in seconds.
    """

    LONGEST = 16
    """Longest time for which it is open, in multiples of the first."""

    def __init__(
        self,
        failures: int = 3,
        seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._first, self._clock = failures, seconds, clock
        self._failures = 0
        self._open_until = 0.0
        self._seconds = seconds

    def seconds_left(self) -> float:
        """Return for how long the breaker stays open; 0 if a call may be made."""
        return max(0.0, self._open_until - self._clock())

    def succeeded(self) -> None:
        """Note a call that succeeded."""
        self._failures, self._seconds, self._open_until = 0, self._first, 0.0

    def failed(self, *, final: bool = False) -> None:
        """Note a call that failed.

        Args:
            final: whether the next call would fail for the same reason. The breaker opens at once.
        """
        # A few failures in a row are tolerated.
        self._failures += 1
        if self._failures < self._most and not final:
            return
        # Each time it opens, it stays open for twice as long.
        self._open_until = self._clock() + self._seconds
        self._seconds = min(2.0 * self._seconds, self.LONGEST * self._first)
