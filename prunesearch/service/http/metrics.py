"""What /metrics shows, in the format of Prometheus."""

from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


_EVERY_SECONDS = 30.0
"""Time between two looks at figures that take longer to read."""


class HttpMetrics:
    """Counters and gauges of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._read = -_EVERY_SECONDS
        self.requests = Counter(
            "prunesearch_http_requests_total",
            "HTTP requests by method, template of the route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "prunesearch_http_request_seconds",
            "Time to the first byte of the response, by template of the route.",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.jobs = self._gauge("jobs", "Jobs by state.", "state")
        self.evaluations = self._gauge(
            "evaluations_total", "Finished trials of all studies, by result.", "result"
        )
        self.cache_entries = self._gauge("cache_entries", "Entries of the evaluation cache.")
        self.cache_bytes = self._gauge("cache_bytes", "Size of the evaluation cache in bytes.")
        self.streams = self._gauge("event_streams", "Open event streams.")
        self.lag = self._gauge(
            "event_lag_seconds", "Time from the last event to the moment when it was read."
        )
        self.runner_age = self._gauge(
            "runner_seen_seconds", "Time since a runner was seen.", "runner"
        )
        self.database_up = self._gauge("database_up", "1 if the database answers.")
        self.refused = Counter(
            "prunesearch_database_failures_total",
            "Requests that failed because the database is away.",
            registry=self.registry,
        )
        self.event_failures = self._gauge(
            "event_reads_failed", "Looks for new events that failed and were repeated."
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"prunesearch_{name}", text, labels, registry=self.registry)

    def is_due(self) -> bool:
        """Return whether figures that take longer to read are old, and note that they are read."""
        if monotonic() - self._read < _EVERY_SECONDS:
            return False
        self._read = monotonic()
        return True

    def text(self) -> bytes:
        """Return all values in the text format."""
        return generate_latest(self.registry)
