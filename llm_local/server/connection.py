"""One client's connection, with the limits that uvicorn's own has not: connections, size of a head, time to send.

A client that connects and says nothing, sends a byte a second, or reads nothing of its answer would otherwise stay for
ever, and a head could have any size (llhttp, which parses it, has no limit of its own). Event loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from llm_local.config import Settings
from llm_local.errors import HeadersTooLarge, LLMLocalError, ReceiveTimeout, RequestError, TooManyConnections
from llm_local.server.metrics import Metrics
from llm_local.server.middleware import new_request_id

log = logging.getLogger(__name__)

CONNECTIONS_RETRY_S = 5
HEADER_OVERHEAD = 4
"""Bytes of a header beside name and value: the colon, a space, the end of the line."""
_UPGRADE = re.compile(rb"(?i)(?<=\r\n)upgrade(?=[ \t]*:)")


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol with limits. An error before the application has the request is OpenAI's envelope too."""

    def __init__(self, settings: Settings, metrics: Metrics, **options: Any) -> None:
        super().__init__(**options)
        self._metrics = metrics
        self._max_connections = settings.max_connections
        self._max_head = settings.max_header_bytes
        self._receive_s = settings.receive_timeout
        self._send_s = settings.send_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._in_message = False
        self._in_head = False
        self._at_work: RequestResponseCycle | None = None
        """Of pipelined requests the one that is being answered; `cycle` is the one that came last."""
        self._head_bytes = 0
        self._unfinished_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            log.warning("refused a connection: %d are open (LLM_MAX_CONNECTIONS)", self._max_connections)
            self._refuse(
                TooManyConnections(
                    f"{self._max_connections} connections are open, as many as this server takes.",
                    retry_after_s=CONNECTIONS_RETRY_S,
                )
            )
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; what is being answered learns that its client has left."""
        self._stop_timer()
        self._stop_reader_timer()
        if self._at_work is not None and not self._at_work.response_complete:
            self._at_work.disconnected = True
            self._at_work.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slower than the answer is written: see whether it reads at all."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """The client has read."""
        self._stop_reader_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head that is too large ends the connection."""
        if self.transport.is_closing():
            return
        if b"pgrade" in data and (self._in_head or not self._in_message):
            data = _without_upgrade(data)
        super().data_received(data)
        if self._in_head:
            # An unfinished header is not counted by `on_header`, and the parser keeps it.
            self._unfinished_bytes += len(data)
            self._head_bytes = max(self._head_bytes, self._unfinished_bytes)
            if self._head_bytes > self._max_head and not self.transport.is_closing():
                self.send_400_response("The head is too large.")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, or one whose head is too large."""
        if self._head_bytes > self._max_head:
            self._refuse(HeadersTooLarge(f"The request's line and headers are larger than {self._max_head} bytes."))
        else:
            self._refuse(RequestError(msg))

    def on_message_begin(self) -> None:
        """A request begins: its head is counted, its time runs."""
        self._in_message = True
        self._in_head, self._head_bytes, self._unfinished_bytes = True, 0, 0
        if self._timer is None:
            self._expect_request()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value) + HEADER_OVERHEAD)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        super().on_headers_complete()
        if len(self.pipeline) == 1:
            # Uvicorn stops reading while a request waits for its turn, and would not see that the client has left.
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_message = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request, if one has begun, has its whole time from here."""
        if self._timer is not None:
            self._stop_timer()
            self._expect_request()
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._at_work = cycle
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        log.debug("a client asked for another protocol and was not heard")

    def _count(self, n_bytes: int) -> None:
        self._head_bytes += n_bytes
        if self._head_bytes > self._max_head:
            raise ValueError("the head is too large")  # The parser gives up, and `send_400_response` is called.

    def _expect_request(self) -> None:
        self._timer = self.loop.call_later(self._receive_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self._send_s, self._look_at_reader, unread)

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _look_at_reader(self, before: int) -> None:
        """End a connection that is written, and of which nothing was read since the last look.

        (Closing waits for what is unread. While an answer is made, its stream looks after its reader.)
        """
        written = self.transport.is_closing() or self.cycle is None or self.cycle.response_complete
        if written and self.transport.get_write_buffer_size() >= before:
            log.warning("ended the connection of a client that took nothing for %.0f s", self._send_s)
            self.transport.abort()
        else:
            self._watch_reader()

    def _too_slow(self) -> None:
        self._timer = None
        if self.pipeline or (self._in_head and self.cycle is not None and not self.cycle.response_complete):
            self._expect_request()  # It waits for the answer to an earlier request: that is not the client's doing.
        elif not self.transport.is_closing():
            self._refuse(ReceiveTimeout(f"The request did not arrive within {self._receive_s:.0f} s."))

    def _refuse(self, error: LLMLocalError) -> None:
        """Close the connection, with an answer where none has begun."""
        self._stop_timer()
        answered = self._at_work
        if answered is None or answered.response_complete or not answered.response_started:
            self._metrics.refused(error)
            self.transport.write(_raw(error))
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Rename the header of clients that ask for HTTP/2 with every request (Java's do), as a server may ignore it.

    The parser would take the body for the other protocol.
    """
    end = data.find(b"\r\n\r\n")
    head, body = (data, b"") if end < 0 else (data[:end], data[end:])
    return _UPGRADE.sub(b"ignored", head) + body


def _raw(error: LLMLocalError) -> bytes:
    body = orjson.dumps(error.envelope())
    more = b"x-request-id: %s\r\nx-content-type-options: nosniff\r\n" % new_request_id().encode()
    retry = b"" if error.retry_after_s is None else b"retry-after: %d\r\n" % error.retry_after_s
    head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
    return STATUS_LINE[error.status] + head + more + retry + b"\r\n" + body
