"""What forwarded requests cost beside what `access.py` counts of every request, for Prometheus. Event loop.

Tokens are counted by the upstream's own `/metrics`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class UpstreamMetrics:
    """Counters of one server that forwards."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open = Gauge("llm_local_upstream_open", "Requests that are at the upstream.", registry=registry)
        self._first = Histogram(
            "llm_local_upstream_first_byte_seconds", "To the first byte.", buckets=SECONDS, registry=registry
        )

    def finished(self, first_byte_s: float | None) -> None:
        """Count a request that is over."""
        self.open.dec()
        if first_byte_s is not None:
            self._first.observe(first_byte_s)
