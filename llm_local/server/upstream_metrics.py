"""What forwarded requests cost, for Prometheus; tokens are counted by the upstream's own `/metrics`. Event loop."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class UpstreamMetrics:
    """Counters of one server that forwards."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open = Gauge("llm_local_upstream_open", "Requests that are at the upstream.", registry=registry)
        self._requests = Counter(
            "llm_local_upstream_requests",
            "Requests by route and status; 499 is a client that left.",
            ["route", "status"],
            registry=registry,
        )
        self._first = Histogram(
            "llm_local_upstream_first_byte_seconds", "To the first byte.", buckets=SECONDS, registry=registry
        )
        self._whole = Histogram(
            "llm_local_upstream_seconds", "To the end of the answer.", buckets=SECONDS, registry=registry
        )

    def finished(self, route: str, status: int, first_byte_s: float | None, seconds: float) -> None:
        """Count a request that is over."""
        self._requests.labels(route, str(status)).inc()
        self._whole.observe(seconds)
        if first_byte_s is not None:
            self._first.observe(first_byte_s)
