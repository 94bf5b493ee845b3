"""`GET /metrics`: what finished answers cost, for Prometheus. Event loop.

prometheus_client keeps the counters: it is the reference implementation of the format, and kept by its makers.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from llm_local.engine.prefix_cache import TierBytes
from llm_local.engine.types import FinishReason, Usage

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter("llm_local_answers", "Answers that ended.", ["reason"], registry=self.registry)
        self._prompt = self._tokens("prompt", "Tokens of prompts.")
        self._cached = self._tokens("cached_prompt", "Tokens of prompts that were not computed.")
        self._generated = self._tokens("generated", "Tokens of answers.")
        self._forced = self._tokens("forced", "Tokens of answers that a grammar left no choice about.")
        self._drafted = self._tokens("drafted", "Tokens that were guessed and computed ahead.")
        self._accepted = self._tokens("accepted_draft", "Guessed tokens that held.")
        self._queue = self._seconds("queue", "From arrival to a slot.")
        self._reading = self._seconds("prompt", "From a slot to the first token.")
        self._writing = self._seconds("generation", "From the first token to the last.")
        self._grammar = self._seconds("grammar", "Spent on the grammar of an answer that has one.")
        self._kv = Gauge("llm_local_kv_bytes", "KV of sequences by where it is.", ["tier"], registry=self.registry)
        self._open = Gauge("llm_local_sequences", "Answers that run or wait.", registry=self.registry)

    def _tokens(self, name: str, text: str) -> Counter:
        return Counter(f"llm_local_{name}_tokens", text, registry=self.registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(f"llm_local_{name}_seconds", text, buckets=SECONDS, registry=self.registry)

    def finished(self, usages: SequenceOf[Usage], finishes: SequenceOf[FinishReason | None]) -> None:
        """Count the answers of one request; their common prompt counts once."""
        for finish in finishes:
            self._answers.labels(str(finish)).inc()
        self._prompt.inc(usages[0].prompt_tokens)
        self._cached.inc(usages[0].cached_tokens)
        for usage in usages:
            self._generated.inc(usage.completion_tokens)
            self._forced.inc(usage.forced_tokens)
            self._drafted.inc(usage.drafted_tokens)
            self._accepted.inc(usage.accepted_tokens)
            self._queue.observe(usage.queue_ms / 1e3)
            self._reading.observe(usage.prompt_ms / 1e3)
            self._writing.observe(usage.generation_ms / 1e3)
            if usage.constraint_ms > 0:
                self._grammar.observe(usage.constraint_ms / 1e3)

    def text(self, n_open: int, kv: TierBytes | None = None) -> bytes:
        """Return all of them in Prometheus' text format."""
        self._open.set(n_open)
        for tier in ("resident", "host", "disk"):
            self._kv.labels(tier).set(getattr(kv, tier, 0))
        return generate_latest(self.registry)


async def metrics(request: Request) -> Response:
    """Return counters and histograms for Prometheus."""
    runtime = request.app.state.runtime
    engine = runtime.loaded.engine if runtime.loaded is not None else None
    text = runtime.metrics.text(engine.n_open, engine.kv_bytes()) if engine is not None else runtime.metrics.text(0)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
