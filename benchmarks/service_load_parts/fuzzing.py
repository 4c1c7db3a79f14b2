"""Requests that schemathesis makes of our own OpenAPI document, valid ones and such as break it. Does
the service fail, and does a request that it refused change a row?
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import hypothesis.strategies as st
import requests
import schemathesis
from schemathesis.generation import GenerationMode

from benchmarks.service_load_parts.attack_tools import Target
from benchmarks.support.record import Record
from benchmarks.support.running_service import RunningService
from prunesearch.cache.location import sqlite_file
from prunesearch.studies import persistence

_PROBE = "/readyz"  # it says 503 without a runner
_ROUNDS = 5
_SECONDS = 10.0  # until a stream that goes on is left


def measure(record: Record, scratch: Path) -> None:
    """Add the number of requests, of failures, and of rows changed by refused requests."""
    count = record.by_size(1000, 400, 40)
    with RunningService(scratch, None, "--no-runner") as service:
        target = Target(service)
        # A stream of a job that has ended ends too.
        target.post(f"/v1/jobs/{target.job}/cancel").raise_for_status()
        # The database of studies does not exist before the first search.
        persistence.open_storage(service.settings.storage, create=True)
        outcome = Outcome(target)
        document = httpx2.get(f"{service.url}/openapi.json", trust_env=False).json()
        _send_all(document, count, outcome)
        target.close()
    record.add("fuzzing_requests", outcome.sent)
    record.add("fuzzing_operations", len(outcome.operations))
    record.add("fuzzing_refused", sum(outcome.statuses[status] for status in range(400, 500)))
    record.add("fuzzing_server_errors", len(outcome.failures), "== 0")
    record.add("fuzzing_rows_changed_by_refused", len(outcome.changes), "== 0")
    record.add("fuzzing_errors_without_problem", len(outcome.bare), "== 0")
    record.notes["fuzzing_statuses"] = {str(key): n for key, n in sorted(outcome.statuses.items())}
    record.notes["fuzzing_found"] = [*outcome.failures, *outcome.changes, *outcome.bare][:40]


class Outcome:
    """What the answers were.

    Args:
        target: the service.

    Attributes:
        sent: number of requests.
        statuses: number of answers by their status.
        operations: operations that were asked.
        failures: requests that the service failed to answer.
        changes: requests that were refused, and after which a row was another one.
        bare: errors without a problem document.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.sent = 0
        self.statuses: Counter[int] = Counter()
        self.operations: set[str] = set()
        self.failures: list[str] = []
        self.changes: list[str] = []
        self.bare: list[str] = []
        self._versions = [
            sqlite3.connect(str(sqlite_file(url)), isolation_level=None)
            for url in (target.service.settings.storage, target.service.settings.database)
        ]
        self._known = self._version()
        self._rows = target.rows()

    def send(self, case: Any, token: str) -> None:  # noqa: ANN401 (of schemathesis)
        """Send a request, and note its outcome."""
        self.sent += 1
        self.operations.add(case.operation.label)
        settings = case.as_transport_kwargs(base_url=self._target.service.url)
        settings["headers"] = {**dict(settings["headers"]), "Authorization": f"Bearer {token}"}
        shown = f"{settings['method']} {settings['url'][:200]}"
        try:
            with _answer(settings) as answer:
                status, kind = answer.status_code, answer.headers.get("content-type", "")
        except requests.exceptions.InvalidHeader:
            return
        self.statuses[status] += 1
        if status >= 500 and case.path != _PROBE:
            self.failures.append(f"{shown}: {status}")
        if status >= 400 and "problem+json" not in kind and case.path != _PROBE:
            self.bare.append(f"{shown}: {status} {kind}")
        self._check_rows(status >= 400, shown)

    def _check_rows(self, refused: bool, shown: str) -> None:
        """Compare the rows with those before, if anything was written at all."""
        version = self._version()
        if version == self._known:
            return
        self._known = version
        changed = self._target.changed(self._rows)
        if refused and changed:
            self.changes.append(f"{shown}: {changed} tables")
        self._rows = self._target.rows()

    def _version(self) -> list[int]:
        """Return numbers that change whenever another process writes to a database."""
        found = []
        for connection in self._versions:
            found.append(connection.execute("PRAGMA data_version").fetchone()[0])
        return found


@contextmanager
def _answer(settings: dict[str, Any]) -> Iterator[requests.Response]:
    """Send a request. Of the answer only the head is read, because a stream may go on."""
    with requests.Session() as session:
        session.trust_env = False
        with session.request(
            **settings, stream=True, timeout=_SECONDS, allow_redirects=False
        ) as answer:
            yield answer


def _send_all(document: dict[str, Any], count: int, outcome: Outcome) -> None:
    """Send requests of every operation, half of them with a token that may change nothing."""
    target = outcome._target
    schema = schemathesis.openapi.from_dict(document)
    operations: list[Any] = []
    for result in schema.get_all_operations():
        operations.append(result.ok())  # type: ignore[union-attr]  # our document has no errors
    tokens = (target.admin, target.viewer)
    # An operation without parameters has few requests, so there are several rounds.
    for number, operation in enumerate(operations * _ROUNDS):
        share = count // len(operations) + 1
        if outcome.sent >= count:
            return
        cases = st.one_of(
            operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
            operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
        )

        @hypothesis.seed(number)
        @hypothesis.settings(
            max_examples=share,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(cases, st.sampled_from(tokens), st.booleans())
        def one(case: Any, token: str, existing: bool) -> None:  # noqa: ANN401 (of schemathesis)
            if existing and "job_id" in (case.path_parameters or {}):
                case.path_parameters["job_id"] = target.job
            outcome.send(case, token)

        one()
