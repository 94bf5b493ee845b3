"""`GET /metrics`: what requests and answers cost, for Prometheus. Event loop.

What the engine knows is read when somebody asks: `engine_metrics.py`. docs/metrics.md has all of them.

prometheus_client keeps the counters: it is the reference implementation of the format, and kept by its makers.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import prometheus_client
from fastapi import Request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import Response

from llm_local.engine.types import FinishReason, Usage
from llm_local.errors import LLMLocalError

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
"""Bounds for what takes as long as a request."""

TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
"""Bounds for what takes as long as a token."""

GIVEN_UP = ("client_left", "stalled_reader", "deadline", "shutdown")
"""Why nobody got the whole answer."""

# Beside each counter the library would write when it was created, which doubles the text; it can only be said for all.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.in_flight = Gauge(
            "llm_local_requests_in_flight", "HTTP requests that are being answered.", registry=self.registry
        )
        self._requests = self._counter("requests", "HTTP requests that were answered.", "route", "status")
        self._request = self._seconds("request", "From a request's arrival to the end of its answer.", "route")
        self._errors = self._counter("errors", "Errors that were answered, before or within a stream.", "code")
        self._cancelled = self._counter("cancelled_requests", "Requests that were given up.", "reason")
        self._answers = self._counter("answers", "Answers that ended.", "reason")
        # What can happen is there from the start, so that its first time is an increase.
        for reason in GIVEN_UP:
            self._cancelled.labels(reason)
        for finish in FinishReason:
            self._answers.labels(str(finish))
        self._prefixes = self._counter(
            "prefix_lookups", "Prompts of which something was cached (hit), or nothing (miss).", "result"
        )
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._cached = self._counter("cached_prompt_tokens", "Tokens of prompts that were not computed.")
        self._generated = self._counter("generated_tokens", "Tokens of answers.")
        self._forced = self._counter("forced_tokens", "Tokens of answers that a grammar left no choice about.")
        self._drafted = self._counter("drafted_tokens", "Tokens that were guessed and computed ahead.")
        self._accepted = self._counter("accepted_draft_tokens", "Guessed tokens that held.")
        self.first_token = self._seconds("time_to_first_token", "From a request's arrival to its first token.")
        self.gap = self._seconds("stream_gap", "Between two pieces of a streamed answer.", bounds=TOKEN_SECONDS)
        self._per_token = self._seconds(
            "time_per_output_token", "Mean time between the tokens of an answer.", bounds=TOKEN_SECONDS
        )
        self._queue = self._seconds("queue", "From the end of preparing a request to a slot.")
        self._reading = self._seconds("prompt", "From a slot to the first token.")
        self._writing = self._seconds("generation", "From the first token to the last.")
        self._grammar = self._seconds("grammar", "Spent on the grammar of an answer that has one.")
        self.grammar_build = self._seconds("grammar_build", "From a schema or grammar to what can be enforced.")
        self._embedding_inputs = self._counter("embedding_inputs", "Inputs that were embedded.")
        self._embedding_tokens = self._counter("embedding_tokens", "Tokens that were embedded.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"llm_local_{name}", text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"llm_local_{name}_seconds", text, labels, buckets=bounds, registry=self.registry)

    def request_ended(
        self, route: str, status: int, seconds: float, *, error: str | None = None, given_up: str | None = None
    ) -> None:
        """Count a request of any route.

        Args:
            error: the code of the error that it was answered with.
            given_up: why nobody got the whole answer.
        """
        self._requests.labels(route, str(status)).inc()
        self._request.labels(route).observe(seconds)
        if error is not None:
            self._errors.labels(error).inc()
        if given_up is not None:
            self._cancelled.labels(given_up).inc()

    def refused(self, error: LLMLocalError) -> None:
        """Count what a connection was refused with, before there was a request to count."""
        self._errors.labels(error.code or error.type).inc()

    def answers_ended(
        self, usages: SequenceOf[Usage], finishes: SequenceOf[FinishReason | None], n_prompts: int = 1
    ) -> None:
        """Count the answers of one request: as many to each of its prompts, which count once each."""
        for finish in finishes:
            self._answers.labels(str(finish)).inc()
        per_prompt = max(len(usages) // n_prompts, 1)
        for first in range(0, len(usages), per_prompt):
            cached = min(usage.cached_tokens for usage in usages[first : first + per_prompt])
            self._prompt.inc(usages[first].prompt_tokens)
            self._cached.inc(cached)
            self._prefixes.labels("hit" if cached else "miss").inc()
        for usage in usages:
            self._answer_ended(usage)

    def _answer_ended(self, usage: Usage) -> None:
        self._generated.inc(usage.completion_tokens)
        self._forced.inc(usage.forced_tokens)
        self._drafted.inc(usage.drafted_tokens)
        self._accepted.inc(usage.accepted_tokens)
        self._queue.observe(usage.queue_ms / 1e3)
        self._reading.observe(usage.prompt_ms / 1e3)
        self._writing.observe(usage.generation_ms / 1e3)
        if usage.completion_tokens > 1:
            self._per_token.observe(usage.generation_ms / 1e3 / (usage.completion_tokens - 1))
        if usage.constraint_ms > 0:
            self._grammar.observe(usage.constraint_ms / 1e3)

    def embedded(self, n_inputs: int, n_tokens: int) -> None:
        """Count the inputs of one request for embeddings."""
        self._embedding_inputs.inc(n_inputs)
        self._embedding_tokens.inc(n_tokens)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)


async def metrics(request: Request) -> Response:
    """Return counters, gauges and histograms for Prometheus."""
    return Response(request.app.state.runtime.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})
