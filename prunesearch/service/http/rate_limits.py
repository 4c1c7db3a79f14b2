"""Limits of the rate of requests, for each token and for each address."""

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from prunesearch.service.http.problems import ProblemError

_ADDRESS_FACTOR = 4  # a network's users may share one address


class RateLimits:
    """Counts requests, and refuses those beyond a limit.

    Args:
        requests: largest number of requests of a token in a minute.
        sign_ins: largest number of attempts to sign in from one address in a minute.
    """

    def __init__(self, requests: int, sign_ins: int) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._token = RateLimitItemPerMinute(requests)
        self._address = RateLimitItemPerMinute(requests * _ADDRESS_FACTOR)
        self._sign_in = RateLimitItemPerMinute(sign_ins)

    def count_address(self, address: str) -> None:
        """Count a request from an address.

        Raises:
            ProblemError: there were too many in the last minute. So it is for the other methods.
        """
        self._count(self._address, "address", address, "requests from this address")

    def count_token(self, name: str) -> None:
        """Count a request of a token."""
        self._count(self._token, "token", name, "requests with this token")

    def count_sign_in(self, address: str) -> None:
        """Count an attempt to sign in."""
        self._count(self._sign_in, "sign-in", address, "attempts to sign in")

    def _count(self, limit: RateLimitItem, kind: str, name: str, what: str) -> None:
        if self._limiter.hit(limit, kind, name):
            return
        raise ProblemError(
            429,
            f"too many {what}: at most {limit.amount:,} a minute",
            {"Retry-After": "10"},
        )
