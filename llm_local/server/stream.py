"""Sending: server-sent events from ready bytes, and noticing that a client has left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any, Protocol, TypeVar

import orjson
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llm_local.config import Settings
from llm_local.engine.stream import Stream
from llm_local.engine.types import Delta
from llm_local.errors import LLMLocalError
from llm_local.server.answers import Choice, fold
from llm_local.server.errors import internal
from llm_local.server.requestlog import RequestRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING_S = 15
FIRST_DELTA_S = 10.0
"""How long a streaming answer waits for its first delta, so that an error before it still has an HTTP status."""


class ClientLeft(Exception):
    """The connection is gone: there is nobody to answer."""


def json_response(body: Any) -> Response:
    """Return a JSON answer: UTF-8, nothing escaped that need not be."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def event(body: Any) -> bytes:
    """Return a server-sent event as ready bytes."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it when the client goes away first.

    Raises:
        ClientLeft: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        await _cancel(task, gone)


async def first_deltas(request: Request, stream: Stream) -> Awaitable[list[Delta]]:
    """Wait a while for the first deltas; return them as something to await, done or not.

    Raises:
        ClientLeft: the client went away.
        LLMLocalError: the request failed before its first delta.
    """
    first = asyncio.ensure_future(anext(stream, []))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({first, gone}, timeout=FIRST_DELTA_S, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not first.done():
            raise ClientLeft
        if first.done():
            first.result()
    except BaseException:
        await _cancel(first)
        stream.close()
        raise
    finally:
        await _cancel(gone)
    return first


async def all_deltas(
    first: Awaitable[list[Delta]], stream: Stream, record: RequestRecord
) -> AsyncIterator[list[Delta]]:
    """Yield the first deltas, then the others, and note when they came."""
    deltas = await first
    if deltas:
        record.came(deltas)
        yield deltas
    async for deltas in stream:
        record.came(deltas)
        yield deltas


async def whole_answer(request: Request, stream: Stream, n: int) -> list[Choice]:
    """Read the stream of `n` sequences to its end.

    Raises:
        ClientLeft: the client went away.
        LLMLocalError: one of the sequences failed.
    """
    try:
        return await unless_client_leaves(request, fold(stream, n))
    finally:
        stream.close()


class Closable(Protocol):
    """What computes an answer, and can be told that nobody wants it any more."""

    def close(self) -> None:
        """Stop. More than once does no harm."""
        ...


def sse(events: AsyncIterator[bytes], stream: Closable, settings: Settings) -> Response:
    """Return the streaming answer; an error becomes an event without `[DONE]`, and is in the request's record."""
    return _Sse(
        stream,
        events,
        settings.send_timeout,
        sep="\n",
        ping=PING_S,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        headers={"Cache-Control": "no-cache"},
    )


class _Sse(EventSourceResponse):
    """Closes the stream however it ends, also when the client is gone before the first event was asked for.

    An error becomes an event. A reader that takes nothing for `stall_s` is given up. One watch for each response does
    that: a timer around every send (sse-starlette's `send_timeout`) costs a tenth of a chunk.
    """

    def __init__(self, stream: Closable, events: AsyncIterator[bytes], stall_s: float, **options: Any) -> None:
        super().__init__(self._guarded(events), data_sender_callable=self._watch, **options)
        self._stream = stream
        self._stall_s = stall_s
        self._sending_since: float | None = None
        self._error: LLMLocalError | None = None
        self._whole = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: RequestRecord = scope["state"]["record"]

        async def timed_send(message: Message) -> None:
            self._sending_since = self._sending_since or time.monotonic()
            await send(message)
            self._sending_since = None

        try:
            await super().__call__(scope, receive, timed_send)
            if self._error is not None:
                record.failed(self._error)
            elif not self._whole:
                record.given_up = "client_left"
        except SendTimeoutError:
            record.given_up = "stalled_reader"
            log.warning("gave up a client that took nothing for %.0f s", self._stall_s)
        finally:
            self._stream.close()

    async def _guarded(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for data in events:
                yield data
            self._whole = True
        except LLMLocalError as error:
            self._error = error
            yield event(error.envelope())
        except Exception as error:
            self._error = internal(error)
            yield event(self._error.envelope())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._stall_s / 4)
            since = self._sending_since
            if since is not None and time.monotonic() - since >= self._stall_s:
                raise SendTimeoutError


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
