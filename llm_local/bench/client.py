"""One OpenAI server as a client sees it: requests out, timed answers back. Never raises for what a server does."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from llm_local.bench.http import ClosedEarly, Connection, NotHttp

TEXT = re.compile(rb'"(?:content|reasoning(?:_content)?|text|arguments)":\s*"(?!")')
"""A chunk that carries text; parsing each one as JSON would cost more than the rest of the client."""
USAGE = re.compile(rb'"usage":\s*\{')
"""A chunk that may carry the counts; some servers put them into each chunk, some into a field of their own."""
FINISH = re.compile(rb'"finish_reason":\s*"(\w+)"')
FINGERPRINT = re.compile(rb'"system_fingerprint":\s*"([^"]{1,80})"')
VECTOR = re.compile(rb'"embedding":\s*[\["]')
GET_TIMEOUT_S = 10.0
TOGETHER_S = 0.0005
"""Chunks closer than this came in one packet, as those of forced tokens do: they count as one, without a gap."""
PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d+)')


class _Left(Exception):
    """The client has left in the middle of an answer, as it was to."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: where it goes, what it says, and the row of the table that its answer belongs to."""

    body: dict[str, Any]
    path: str = "/chat/completions"
    group: str = ""
    check: Callable[[str], str | None] | None = None
    """Says what is wrong with the text of a complete answer, or None; called after the round."""


@dataclass(slots=True, eq=False)
class Answer:
    """What came back. Times are seconds of `time.perf_counter`; counts come from the server's `usage`."""

    group: str = ""
    due_s: float = 0.0
    """When the request should have been sent. Latency counts from here, also when the sending was late."""
    first_s: float | None = None
    end_s: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    """When text came; a chunk may carry several tokens."""
    window: tuple[float, float] | None = None
    """Only gaps that reach into this time count."""
    lines: list[bytes] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    n_inputs: int = 0
    has_usage: bool = False
    finish: str = ""
    fingerprint: str = ""
    error: str = ""
    """Status and code, or what happened to the connection; '' when the answer is complete."""
    invalid: str = ""
    """What the request's check found wrong with a complete answer."""
    leave_after: int | None = None
    """Leave when so many chunks of text have come; `end_s` then stays 0."""

    @property
    def text(self) -> str:
        """The text of the answer (reasoning and calls left out)."""
        return "".join(_content(line) for line in self.lines)

    @property
    def speed(self) -> float | None:
        """Tokens a second after the first chunk, which carries one token or a few; None of one chunk."""
        times = self.chunk_times
        return (self.output_tokens - 1) / (times[-1] - times[0]) if len(times) > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks, of those that reach into the window."""
        pairs = zip(self.chunk_times, self.chunk_times[1:], strict=False)
        if self.window is None:
            return [late - early for early, late in pairs]
        begin, end = self.window
        return [late - early for early, late in pairs if late > begin and early < end]


class Client:
    """Sends requests to one server over connections that are kept open between them."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        self._target = urlsplit(url)
        self._tls = ssl.create_default_context() if self._target.scheme == "https" else None
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"Host: {self._target.netloc}\r\nAccept: */*\r\nUser-Agent: llm-local-bench\r\n{key}"
        self._timeout_s = timeout_s
        self._get_timeout_s = min(timeout_s, GET_TIMEOUT_S)
        self._idle: list[Connection] = []

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def send(self, request: Request, answer: Answer) -> Answer:
        """Send the request and fill in the answer as it comes; what goes wrong is written into `answer.error`."""
        answer.group = answer.group or request.group
        answer.due_s = answer.due_s or time.perf_counter()
        body = json.dumps(request.body, ensure_ascii=False).encode()
        head = f"POST {self._target.path}{request.path} HTTP/1.1\r\nContent-Type: application/json\r\n"
        data = f"{head}{self._headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
        read = self._read_stream if request.body.get("stream") else self._read_vectors
        await self._guarded(data, answer, read, self._timeout_s)
        return answer

    async def get(self, path: str) -> Any:
        """Return the JSON of a GET, or None; for what a server says about itself."""
        found: list[Any] = []

        async def read(connection: Connection, headers: dict[str, str], answer: Answer) -> None:
            found.append(json.loads(b"".join([piece async for piece in connection.body(headers)])))

        data = f"GET {self._target.path}{path} HTTP/1.1\r\n{self._headers}\r\n".encode()
        await self._guarded(data, Answer(), read, self._get_timeout_s)
        return found[0] if found else None

    async def _guarded(self, data: bytes, answer: Answer, read: Callable[..., Any], timeout_s: float) -> None:
        """Run the exchange; turn everything that can happen to a connection into a short word."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._exchange(data, answer, read)
        except _Left:
            return
        except TimeoutError:
            answer.error = "timeout"
        except ConnectionRefusedError:
            answer.error = "refused"
        except ClosedEarly:
            answer.error = "closed early"
        except ssl.SSLError as error:
            answer.error = f"tls {error.reason or 'error'}".lower()
        except (NotHttp, ValueError):
            answer.error = "not understood"
        except OSError as error:
            # Where a name has several addresses, asyncio has one error for all of them, with the codes in its text.
            refused = f"[Errno {errno.ECONNREFUSED}]" in str(error)
            answer.error = "refused" if refused else f"connection {(error.strerror or type(error).__name__).lower()}"
        answer.end_s = time.perf_counter()

    async def _exchange(self, data: bytes, answer: Answer, read: Callable[..., Any]) -> None:
        connection, fresh = await self._connection()
        try:
            try:
                status, headers = await connection.request(data)
            except (ClosedEarly, ConnectionError):
                # The server closed an idle connection just as the request was on its way; a new one is in order.
                if fresh or connection.answered:
                    raise ClosedEarly from None
                connection.close()
                connection = await Connection.open(self._target, self._tls)
                status, headers = await connection.request(data)
            if status == 200:
                await read(connection, headers, answer)
            else:
                content = b"".join([piece async for piece in connection.body(headers)])
                answer.error = f"http {status} {_error_code(content)}".strip()
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()

    async def _connection(self) -> tuple[Connection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection, False
            connection.close()
        return await Connection.open(self._target, self._tls), True

    async def _read_stream(self, connection: Connection, headers: dict[str, str], answer: Answer) -> None:
        if "text/event-stream" not in headers.get("content-type", ""):
            raise NotHttp
        rest, done, usage = b"", False, list[bytes]()
        async for piece in connection.body(headers):
            now = time.perf_counter()
            if answer.leave_after is not None and len(answer.chunk_times) >= answer.leave_after:
                raise _Left
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                if TEXT.search(line):
                    answer.lines.append(line)
                    _note_text(answer, now)
                elif line[5:].strip() == b"[DONE]":
                    done = True
                elif line[5:].lstrip().startswith(b'{"error"'):
                    answer.error = f"stream {_error_code(line[5:])}".strip()
                if USAGE.search(line):
                    usage.append(line)
                if finish := FINISH.search(line):
                    answer.finish = finish[1].decode()
        if not (done or answer.error):
            raise ClosedEarly
        _note_usage(answer, usage)

    async def _read_vectors(self, connection: Connection, headers: dict[str, str], answer: Answer) -> None:
        content = b"".join([piece async for piece in connection.body(headers)])
        answer.n_inputs = len(VECTOR.findall(content))
        if not answer.n_inputs:
            raise NotHttp
        # The usage stands at one of the ends; the vectors between are not parsed.
        found = PROMPT_TOKENS.search(content[-500:]) or PROMPT_TOKENS.search(content[:500])
        answer.prompt_tokens, answer.has_usage = (int(found[1]), True) if found else (0, False)


def _note_text(answer: Answer, now: float) -> None:
    if answer.first_s is None:
        answer.first_s = now
    if not answer.chunk_times or now - answer.chunk_times[-1] >= TOGETHER_S:
        answer.chunk_times.append(now)


def _note_usage(answer: Answer, lines: list[bytes]) -> None:
    """Take the counts of the last line that has them; `lines` may have some."""
    for last in [*lines[-1:], *answer.lines[-1:]]:
        if found := FINGERPRINT.search(last):
            answer.fingerprint = found[1].decode("utf-8", "replace")
            break
    chunks = (json.loads(line[5:]) for line in reversed(lines))
    usage = next((chunk["usage"] for chunk in chunks if isinstance(_at(chunk, "usage"), dict)), None)
    if usage is None:
        # A server without usage: one token a chunk is the best guess, and the table says so.
        answer.output_tokens = len(answer.lines)
        return
    answer.has_usage = True
    answer.prompt_tokens = _count(usage, "prompt_tokens")
    answer.output_tokens = _count(usage, "completion_tokens")
    answer.cached_tokens = _count(usage, "prompt_tokens_details", "cached_tokens")
    answer.accepted_tokens = _count(usage, "completion_tokens_details", "accepted_prediction_tokens")
    answer.rejected_tokens = _count(usage, "completion_tokens_details", "rejected_prediction_tokens")


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _count(usage: Any, *path: str) -> int:
    """Return a count, 0 where the server has none."""
    found = _at(usage, *path)
    return found if isinstance(found, int) else 0


def _content(line: bytes) -> str:
    try:
        choice = json.loads(line[5:])["choices"][0]
        return (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""
    except (ValueError, LookupError, AttributeError):
        return ""


def _error_code(content: bytes) -> str:
    """Return the code of OpenAI's error object, its type where it has none, '' where it is no such object."""
    try:
        error = json.loads(content)["error"]
        # llama.cpp's server puts the status into `code`; its `type` says more.
        named = [error[name] for name in ("code", "type") if isinstance(error.get(name), str)]
        return next(filter(None, named), "")[:60]
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
