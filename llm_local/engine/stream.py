"""The event loop's end of a request: what the engine thread delivers, as an async iterator. Event loop only."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from llm_local.engine.types import Delta
from llm_local.errors import LLMLocalError

if TYPE_CHECKING:
    from llm_local.engine.engine import Engine


class Receiver(Protocol):
    """Something on the event loop that takes what the engine thread made."""

    def deliver(self, value: object) -> None:
        """Take one value. Event loop only."""
        ...


class Stream:
    """Async iterator over the deltas of one request's sequences: each item is a list of what came since the last.

    A reader that falls behind gets fewer, larger deltas: at most one per sequence waits. Event loop only.
    """

    def __init__(self, engine: Engine, n_sequences: int, priority: int = 0) -> None:
        self.priority = priority
        self._engine = engine
        self._waiting: dict[int, Delta] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._open = set(range(n_sequences))
        self._error: LLMLocalError | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Delta]:
        """Return the next deltas.

        Raises:
            LLMLocalError: one of the sequences failed; the others are cancelled.
            StopAsyncIteration: all sequences are done.
        """
        while not self._waiting:
            if self._error is not None:
                self.close()
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        deltas, self._waiting = list(self._waiting.values()), {}
        return deltas

    def close(self) -> None:
        """Let go of the stream: the engine frees what still runs at its next step. Every reader calls it at the end."""
        self._engine.forget(self, cancel=bool(self._open))
        self._open = set()

    def deliver(self, value: object) -> None:
        """Take a delta from the engine."""
        assert isinstance(value, Delta)
        if value.last:
            self._engine.sequence_ended(self.priority, value.usage)
        if value.index not in self._open:
            return
        if value.last:
            self._open.discard(value.index)
        if value.error is not None:
            self._error = value.error
        else:
            earlier = self._waiting.pop(value.index, None)
            self._waiting[value.index] = value if earlier is None else _merge(earlier, value)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: LLMLocalError) -> None:
        """End all open sequences with an error (the engine is gone, so that nothing else will)."""
        for index in sorted(self._open):
            self.deliver(Delta(index, error=error))


def _merge(a: Delta, b: Delta) -> Delta:
    return replace(
        b,
        text=a.text + b.text,
        logprobs=a.logprobs + b.logprobs,
        prompt_logprobs=a.prompt_logprobs + b.prompt_logprobs,
        progress=b.progress or a.progress,
        usage=b.usage or a.usage,
    )
