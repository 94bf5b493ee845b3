"""What is known of a request when it has ended, and its one line in the log. Event loop.

`access.py` makes a `RequestRecord` for each request; the routes write into it what they learn. Never a prompt, an
answer, or a key.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence as SequenceOf
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from llm_local.engine.types import Delta, FinishReason, Usage
from llm_local.errors import DeadlineExceeded, LLMLocalError, UpstreamRefused
from llm_local.server.metrics import Metrics
from llm_local.server.schema import EmbeddingRequest, SamplingFields

log = logging.getLogger("llm_local.requests")

PROBES = ("/health", "/metrics")
"""Paths that machines ask for all the time; they are logged at debug level."""

MAX_PATH = 200
NO_STATUS = 499
"""nginx's name for an answer that nobody was there to take."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered, for whatever is logged meanwhile."""


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are `time.monotonic()` seconds.

    Attributes:
        id: in `x-request-id`.
        route: the path as it is in the documentation; "unknown" when there is none.
        key_name: whose API key it came with.
        user: a hash of the client's `user` or `safety_identifier`.
        submitted_at: when the engine got it.
        first_token_s: from its arrival to the first token.
        usages: what its answers cost so far, by index.
        error: the code of the error that it was answered with.
        given_up: one of `metrics.GIVEN_UP`: why nobody got the whole answer.
    """

    id: str
    metrics: Metrics
    arrived_at: float = field(default_factory=time.monotonic)
    route: str = "unknown"
    status: int = 0
    model: str | None = None
    body: SamplingFields | EmbeddingRequest | None = None
    user: str | None = None
    submitted_at: float | None = None
    first_token_s: float | None = None
    last_piece_at: float = 0.0
    usages: dict[int, Usage] = field(default_factory=dict)
    finishes: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    given_up: str | None = None
    key_name: str | None = None
    trace_id: str | None = None

    def describe(self, body: SamplingFields | EmbeddingRequest, model: str) -> None:
        """Note what is asked for, and of which model."""
        self.body, self.model = body, model
        user = getattr(body, "safety_identifier", None) or body.user
        if user:
            self.user = hashlib.sha256(user.encode()).hexdigest()[:12]

    def submitted(self) -> None:
        """Note that the engine has it."""
        self.submitted_at = time.monotonic()

    def came(self, deltas: SequenceOf[Delta]) -> None:
        """Note a piece of a streamed answer, when it goes out."""
        now = time.monotonic()
        for delta in deltas:
            if delta.usage is not None:
                self.usages[delta.index] = delta.usage
        if self.first_token_s is not None:
            self.metrics.gap.observe(now - self.last_piece_at)
        elif self.usages:
            self._first_token(now - self.arrived_at)
        self.last_piece_at = now

    def finished(
        self, usages: SequenceOf[Usage | None], finishes: SequenceOf[FinishReason | None], n_prompts: int = 1
    ) -> None:
        """Note and count what its answers cost: as many to each of its prompts."""
        known = [usage for usage in usages if usage is not None]
        if not known:
            return
        self.usages = dict(enumerate(known))
        self.finishes = [str(finish) for finish in finishes]
        self.metrics.answers_ended(known, finishes, n_prompts)
        per_prompt = max(len(known) // n_prompts, 1)
        self.tokens = {
            "prompt_tokens": sum(usage.prompt_tokens for usage in known[::per_prompt]),
            "cached_tokens": sum(
                min(usage.cached_tokens for usage in known[first : first + per_prompt])
                for first in range(0, len(known), per_prompt)
            ),
        }
        if self.first_token_s is None and self.submitted_at is not None:
            before = self.submitted_at - self.arrived_at
            self._first_token(before + min(usage.queue_ms + usage.prompt_ms for usage in known) / 1e3)

    def embedded(self, n_inputs: int, n_tokens: int) -> None:
        """Note and count what was embedded."""
        self.tokens = {"inputs": n_inputs, "prompt_tokens": n_tokens}
        self.metrics.embedded(n_inputs, n_tokens)

    def failed(self, error: LLMLocalError) -> None:
        """Note the error that it is answered with."""
        # What an upstream calls its errors could be anything, and each would be a time series.
        passed_on = isinstance(error, UpstreamRefused)
        self.error = f"http_{error.status}" if passed_on else error.code or error.type
        if isinstance(error, DeadlineExceeded):
            self.given_up = "deadline"

    def _first_token(self, seconds: float) -> None:
        self.first_token_s = seconds
        self.metrics.first_token.observe(seconds)

    def costs(self) -> dict[str, Any]:
        """Return tokens and milliseconds of its answers, as far as they are known."""
        if not self.usages:
            return dict(self.tokens)
        usages = list(self.usages.values())
        generated = sum(usage.completion_tokens for usage in usages)
        seconds = max(usage.generation_ms for usage in usages) / 1e3
        tokens = self.tokens or {
            "prompt_tokens": usages[0].prompt_tokens,
            "cached_tokens": usages[0].cached_tokens,
        }
        return {
            **tokens,
            "generated_tokens": generated,
            "queue_ms": round(max(usage.queue_ms for usage in usages), 1),
            "prompt_ms": round(max(usage.prompt_ms for usage in usages), 1),
            "generation_ms": round(seconds * 1e3, 1),
            "first_token_ms": None if self.first_token_s is None else round(self.first_token_s * 1e3, 1),
            "tokens_per_second": round(generated / seconds, 1) if seconds > 0 else None,
        }


def record_of(request: Request) -> RequestRecord:
    """Return the record of a request."""
    record: RequestRecord = request.scope["state"]["record"]
    return record


def log_request(
    record: RequestRecord, method: str, path: str, client: str | None, seconds: float, slow_s: float
) -> None:
    """Write the line of a request that has ended.

    Args:
        seconds: that it took.
        slow_s: from so many on it is a warning; 0 for never.
    """
    slow = 0 < slow_s <= seconds
    # A client can do nothing about these, or does not see them as a status.
    broken = record.status >= 500 or (record.error is not None and record.status < 400)
    level = logging.DEBUG if path.startswith(PROBES) else logging.WARNING if broken or slow else logging.INFO
    if not log.isEnabledFor(level):
        return
    body = record.body
    fields = {
        "duration_ms": round(seconds * 1e3, 1),
        "route": record.route,
        "client": client,
        "model": record.model,
        "stream": body.stream if isinstance(body, SamplingFields) else None,
        **record.costs(),
        "finish_reason": ",".join(record.finishes) or None,
        "error": record.error,
        "given_up": record.given_up,
        "slow": slow or None,
        "key_name": record.key_name,
        "user": record.user,
        "trace_id": record.trace_id,
    }
    head = {"request_id": record.id, "method": method, "path": path[:MAX_PATH], "status": record.status}
    log.log(level, "%s %s %d", method, path[:MAX_PATH], record.status, extra={"head": head, "fields": fields})
