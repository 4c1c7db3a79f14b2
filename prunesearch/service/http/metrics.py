"""What /metrics shows, in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HttpMetrics:
    """Counters and gauges of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.database_failures = Counter(
            "prunesearch_database_failures_total",
            "Requests and looks at the database that failed because it is away.",
            registry=self.registry,
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"prunesearch_{name}", text, labels, registry=self.registry)

    def text(self) -> bytes:
        """Return all values in the text format."""
        return generate_latest(self.registry)
