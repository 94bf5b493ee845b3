"""One line in the log for each finished request, and its share of the metrics."""

from __future__ import annotations

import logging
from collections.abc import Sequence as SequenceOf

from fastapi import Request

from llm_local.engine.types import FinishReason, Usage

log = logging.getLogger("llm_local.requests")


def log_finished(request: Request, usages: SequenceOf[Usage | None], finishes: SequenceOf[FinishReason | None]) -> None:
    """Count and log what a request cost: tokens, cached ones, time in the queue, speed, how it ended."""
    known = [usage for usage in usages if usage is not None]
    if not known:
        return
    request.app.state.runtime.metrics.finished(known, finishes)
    generated = sum(usage.completion_tokens for usage in known)
    seconds = max(usage.generation_ms for usage in known) / 1e3
    log.info(
        "%s %s prompt=%d cached=%d generated=%d queue_ms=%.0f prompt_ms=%.0f tok_s=%.1f finish=%s",
        request.scope.get("state", {}).get("request_id", "-"),
        request.url.path,
        known[0].prompt_tokens,
        known[0].cached_tokens,
        generated,
        known[0].queue_ms,
        known[0].prompt_ms,
        generated / seconds if seconds > 0 else 0.0,
        ",".join(str(finish) for finish in finishes),
    )
