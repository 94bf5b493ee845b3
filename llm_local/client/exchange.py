"""One request and its answer without any I/O, so that the two clients differ only in how they wait."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from llm_local.address import shown
from llm_local.client.errors import (
    LLMClientError,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    TimedOut,
)
from llm_local.client.target import Target

FIRST_BACK_OFF_S = 0.5


@dataclass(slots=True)
class Exchange:
    """A request, how often it may be sent, and until when.

    Attributes:
        deadline: by `time.monotonic`.
        n_retries: how often a busy or absent server is asked again.
    """

    target: Target
    body: Mapping[str, Any]
    timeout_s: float
    n_retries: int
    deadline: float = field(init=False)
    _tried: int = 0

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout_s

    def again(self, **fields: Any) -> Exchange:
        """Return the same request with other fields, for what is left of the time and of the retries."""
        other = Exchange(self.target, {**self.body, **fields}, self.timeout_s, self.n_retries)
        other.deadline, other._tried = self.deadline, self._tried
        return other

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return what to send now."""
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if self.target.api_key:
            headers["Authorization"] = f"Bearer {self.target.api_key}"
        return http.build_request(
            "POST",
            f"{self.target.base_url}/chat/completions",
            content=json.dumps(self.body, ensure_ascii=False).encode(),
            headers=headers,
            timeout=self.left_s,
        )

    @property
    def left_s(self) -> float:
        """Seconds to the deadline."""
        return max(self.deadline - time.monotonic(), 0.001)

    def pause_after(self, error: LLMClientError) -> float:
        """Return how long to wait before the next try.

        Raises:
            LLMClientError: `error`, when there is none: it would not help, or not in time.
        """
        if not isinstance(error, (ServerBusy, ServerUnreachable)) or self._tried >= self.n_retries:
            raise error
        pause = error.retry_after_s if error.retry_after_s is not None else FIRST_BACK_OFF_S * 2**self._tried
        if pause >= self.left_s:
            raise error
        self._tried += 1
        return pause


def from_answer(status: int, headers: Mapping[str, str], data: bytes) -> LLMClientError:
    """Return the error of an answer that is not a success."""
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    envelope = body.get("error", body) if isinstance(body, dict) else None
    error = _from_object(status, envelope if isinstance(envelope, dict) else {})
    with contextlib.suppress(KeyError, ValueError):
        seconds = float(headers["retry-after"])
        error.retry_after_s = seconds if seconds >= 0 else None
    return error


def from_exception(error: Exception, url: str, timeout_s: float) -> LLMClientError:
    """Return the error of a call that had no answer."""
    url = shown(url)
    if isinstance(error, httpx.ConnectError):
        return ServerUnreachable(f"no server answers at {url}: {error}")
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return TimedOut(f"{url} did not answer within {timeout_s:g} s")
    return ServerFailed(f"{url} broke off: {error or type(error).__name__}")


def whole(data: bytes) -> dict[str, Any]:
    """Return the object of a whole answer.

    Raises:
        ServerFailed: it is none.
    """
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ServerFailed("the server's answer is not a JSON object")
    return body


class Pieces:
    """Texts of a stream, and whether it came to its end.

    A line ends at its line feed alone: httpx's lines also end at U+2028 and the like, which JSON has as they are.
    """

    def __init__(self) -> None:
        self.done = False
        self._unfinished = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the texts of the lines that `data` completes.

        Raises:
            LLMClientError: the server ended the stream with an error.
        """
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            if text := self._of_line(line):
                yield text

    def check_done(self) -> None:
        """Raise ServerFailed unless the stream came to its end, or what it ended with."""
        for _ in self.feed(b"\n"):
            pass
        if not self.done:
            raise ServerFailed("the stream broke off")

    def _of_line(self, line: bytes) -> str:
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            self.done = True
        if not data or data == b"[DONE]":
            return ""
        chunk = whole(data)
        if isinstance(chunk.get("error"), dict):
            raise _from_object(500, chunk["error"])
        choices = chunk.get("choices") or [{}]
        return str((choices[0].get("delta") or {}).get("content") or "")


def text_of(answer: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the text of an answer's first choice, and whether `max_tokens` cut it.

    Raises:
        ServerFailed: there is none.
    """
    try:
        choice = answer["choices"][0]
        return str(choice["message"]["content"] or ""), choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ServerFailed("the server's answer has no message") from None


def _from_object(status: int, error: Mapping[str, Any]) -> LLMClientError:
    code = error.get("code")
    kind: type[LLMClientError]
    if status in (429, 503):
        kind = ServerBusy
    elif status in (408, 504) or code == "deadline_exceeded":
        kind = TimedOut
    else:
        kind = RequestRefused if 400 <= status < 500 else ServerFailed
    return kind(
        str(error.get("message") or f"the server answered {status}"),
        status=status,
        type=error.get("type"),
        code=code,
        param=error.get("param"),
    )
