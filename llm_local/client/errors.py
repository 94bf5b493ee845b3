"""What can go wrong with a call. `str(error)` has the server's own message.

LLMClientError
├─ ServerUnreachable   nobody answers at the address
├─ TimedOut            no whole answer in time, ours (the client's limit) or the server's (408, 504)
├─ ServerBusy          429, 503: also after the retries; `retry_after_s` says when to come back
├─ RequestRefused      other 4xx: the request is wrong; `param` names the field
├─ ServerFailed        other 5xx, or a stream that ends with an error or breaks off
└─ UnusableReply       an answer came, but it is not what was asked for; `text` has it
"""

from __future__ import annotations


class LLMClientError(Exception):
    """Base of all errors of the client.

    Attributes:
        status: of the HTTP answer, None without one.
        type, code, param: as in OpenAI's error object.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class ServerUnreachable(LLMClientError):
    """Nobody answers at the address, or the connection broke."""


class TimedOut(LLMClientError):
    """The answer was not complete in time."""


class ServerBusy(LLMClientError):
    """The server takes no requests now: its queue is full, or it is loading or shutting down."""


class RequestRefused(LLMClientError):
    """The server will not do what was asked."""


class ServerFailed(LLMClientError):
    """Something broke in the server."""


class UnusableReply(LLMClientError):
    """The model's text is not what was asked for."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text
