"""Prefixes that are computed before the first request, and pinned. Event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as SequenceOf

from llm_local.engine.engine import Engine
from llm_local.engine.radix_tree import Tokens
from llm_local.engine.types import Delta, GenerationRequest, SamplingParams, Usage

log = logging.getLogger(__name__)


async def warm(engine: Engine, prefixes: SequenceOf[Tokens]) -> None:
    """Compute prefixes one after the other, or load them from the disk, and pin them.

    They are requests like any other, for no token of an answer; so what they share is computed once. Each has a token
    more than the prefix: the last token of a prompt is always computed, and the KV of a prefix that comes from the disk
    is to be, bit by bit, what it was.

    Raises:
        LLMLocalError: one of them failed.
    """
    engine.pin(list(prefixes))
    for number, prefix in enumerate(prefixes, 1):
        began = time.monotonic()
        request = GenerationRequest((*prefix.tolist(), int(prefix[0])), SamplingParams(temperature=0.0), 0)
        usage = await _usage(engine, request)
        log.info(
            "warm prefix %d of %d: %d tokens, %d of them computed, %.1f s",
            number, len(prefixes), len(prefix), len(prefix) - usage.cached_tokens, time.monotonic() - began,
        )  # fmt: skip


async def _usage(engine: Engine, request: GenerationRequest) -> Usage:
    stream = engine.submit([request])
    last: Delta | None = None
    try:
        async for deltas in stream:
            last = deltas[-1]
    finally:
        stream.close()
    assert last is not None
    assert last.usage is not None
    return last.usage
