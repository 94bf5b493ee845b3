"""One request at the upstream and its answer. Event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import orjson

from llm_local.errors import DeadlineExceeded, Draining, RequestError, UpstreamFailed
from llm_local.server.upstream_errors import from_answer, from_exception

log = logging.getLogger(__name__)

MAX_ERROR_BYTES = 65536
MAX_EVENT_BYTES = 2**24
MODEL = re.compile(rb'("model"\s*:\s*)"(?:[^"\\]|\\.)*"')
"""The field of an answer. (In a text there is a backslash before each quote, so that no text looks like it.)"""

EVENT_ENDS = (b"\n\n", b"\r\n\r\n")


class Exchange:
    """One request and its answer. `close` ends it at any point, and the upstream notices.

    Args:
        shown: the upstream's address for the log.
        deadline: by `time.monotonic`.
        all_open: it is in there until it is closed.
    """

    def __init__(self, shown: str, deadline: float, all_open: set[Exchange]) -> None:
        self.status = 0
        self.began = time.monotonic()
        self.first_byte_s: float | None = None
        self._shown = shown
        self._deadline = deadline
        self._all_open = all_open
        self._answer: httpx.Response | None = None
        self._closing: asyncio.Task[None] | None = None
        self._timer: asyncio.Timeout | None = None
        self._ended = False
        self._model: bytes | None = None
        all_open.add(self)

    @property
    def streams(self) -> bool:
        """Whether the answer comes as server-sent events."""
        assert self._answer is not None
        return str(self._answer.headers.get("content-type", "")).startswith("text/event-stream")

    def call_model(self, name: str) -> None:
        """Let answers have this id of the model."""
        self._model = orjson.dumps(name)

    def _in_our_names(self, answer: bytes) -> bytes:
        """Return an answer or an event with our id of the model: the first field, as its parts may have others."""
        name = self._model
        return answer if name is None else MODEL.sub(lambda found: found[1] + name, answer, count=1)

    def _events_in_our_names(self, events: bytes) -> bytes:
        return b"\n".join(map(self._in_our_names, events.split(b"\n")))

    async def send(
        self, http: httpx.AsyncClient, url: str, path: str, body: Mapping[str, Any], request_id: str
    ) -> None:
        """Send the request and read the head of the answer; of an error, all of it.

        Raises:
            RequestError: the body is nested too deep.
            DeadlineExceeded, Draining, UpstreamRefused, UpstreamFailed, UpstreamUnavailable: it failed.
        """
        try:
            content = orjson.dumps(body)
        except orjson.JSONEncodeError:  # It reads four times as many levels as it writes.
            raise RequestError("The body is nested too deep.") from None
        request = http.build_request(
            "POST",
            url + path,
            content=content,
            headers={"Content-Type": "application/json", "X-Request-Id": request_id},
        )
        async with self.guard():
            self._answer = answer = await http.send(request, stream=True)
            self.status = answer.status_code
            if not answer.is_success:
                raise from_answer(answer.status_code, answer.headers, await _read_some(answer), path)
            if body.get("stream") is True and not self.streams:
                raise _no_answer(await _read_some(answer), "The upstream answered without the stream it was asked for.")

    async def read(self) -> bytes:
        """Return the whole answer, a JSON object.

        Raises:
            DeadlineExceeded, Draining, UpstreamFailed: it did not come.
        """
        assert self._answer is not None
        async with self.guard():
            data = await self._answer.aread()
        self.first_byte_s = time.monotonic() - self.began
        if not data.lstrip().startswith(b"{"):
            raise _no_answer(data, "The upstream's answer is not a JSON object.")
        return self._in_our_names(data)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield what comes, as soon as it is a whole event, so that a comment never falls into one.

        Raises:
            DeadlineExceeded, Draining, UpstreamFailed: it broke off, whether or not the connection says so.
        """
        assert self._answer is not None
        chunks, events = self._answer.aiter_bytes(), _Events()
        while True:
            async with self.guard():
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            if self.first_byte_s is None:
                self.first_byte_s = time.monotonic() - self.began
            if whole := events.feed(chunk):
                yield self._events_in_our_names(whole)
        if rest := events.rest():
            yield self._events_in_our_names(rest)

    def end(self) -> None:
        """End it with an error, as the server stops."""
        self._ended, self._deadline = True, time.monotonic()
        if self._timer is not None:
            with contextlib.suppress(RuntimeError):  # It goes off just now.
                self._timer.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """End it; nothing happens the second time."""
        if self not in self._all_open:
            return
        self._all_open.discard(self)
        if self._answer is not None:
            self._closing = asyncio.create_task(self._answer.aclose())

    @contextlib.asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Turn time-outs and broken connections into our errors."""
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()) as self._timer:
                yield
        except TimeoutError:
            if self._ended:
                raise Draining("The server is shutting down.", retry_after_s=5) from None
            raise DeadlineExceeded("The request's deadline passed.") from None
        except httpx.HTTPError as error:
            raise from_exception(error, self._shown) from None
        finally:
            self._timer = None


class _Events:
    """A stream of events, cut where events end."""

    def __init__(self) -> None:
        self._unfinished = bytearray()
        self._complete = False

    def feed(self, data: bytes) -> bytes:
        """Return the events that are whole now.

        Raises:
            UpstreamFailed: one has no end.
        """
        new = max(len(self._unfinished) - 3, 0)
        self._unfinished += data
        ends = [self._unfinished.rfind(mark, new) + len(mark) for mark in EVENT_ENDS if mark in self._unfinished[new:]]
        whole = bytes(self._unfinished[: max(ends, default=0)])
        del self._unfinished[: len(whole)]
        if len(self._unfinished) > MAX_EVENT_BYTES:
            raise UpstreamFailed(f"The upstream sent an event of more than {MAX_EVENT_BYTES} bytes.")
        if whole:
            self._complete = _is_last(whole)
        return whole

    def rest(self) -> bytes:
        """Return what is left at the end.

        Raises:
            UpstreamFailed: the last event is neither `[DONE]` nor an error.
        """
        rest = bytes(self._unfinished)
        if not (_is_last(rest) if rest.strip() else self._complete):
            raise UpstreamFailed("The upstream's stream ended before its answer was complete. Try again.")
        return rest


def _is_last(events: bytes) -> bool:
    last = events.rstrip().rpartition(b"\n")[2]
    data = last.removeprefix(b"data:").strip()
    return last.startswith(b"data:") and (data == b"[DONE]" or data.startswith(b'{"error"'))


def _no_answer(data: bytes, why: str) -> UpstreamFailed:
    log.warning("upstream: %s %r", why, data[:500])
    return UpstreamFailed(why)


async def _read_some(answer: httpx.Response) -> bytes:
    data = b""
    async for chunk in answer.aiter_bytes():
        data += chunk
        if len(data) >= MAX_ERROR_BYTES:
            break
    return data
