"""Every error of the product. Each carries what an HTTP answer needs, so one function can render them all.

LLMLocalError                     status type                    code
├─ StartupError  (CLI only)       -      exit 2                  bad config, no such file, cannot load, port taken
├─ RequestError                   400    invalid_request_error   param = dotted field
│  ├─ ContextLengthExceeded       400    invalid_request_error   context_length_exceeded
│  ├─ UnsupportedParameter        400    invalid_request_error   unsupported_parameter
│  ├─ UnknownParameter            400    invalid_request_error   unknown_parameter
│  ├─ InvalidSchema               400    invalid_request_error   invalid_json_schema
│  ├─ InvalidGrammar              400    invalid_request_error   invalid_grammar
│  ├─ AuthenticationFailed        401    invalid_request_error   invalid_api_key
│  ├─ NotFound                    404    invalid_request_error   not_found
│  │  └─ ModelNotFound            404    invalid_request_error   model_not_found
│  ├─ MethodNotAllowed            405    invalid_request_error   method_not_allowed
│  ├─ ReceiveTimeout              408    invalid_request_error   receive_timeout
│  ├─ BodyTooLarge                413    invalid_request_error   request_too_large
│  ├─ UnsupportedMediaType        415    invalid_request_error   unsupported_media_type
│  └─ HeadersTooLarge             431    invalid_request_error   headers_too_large
├─ QueueFull                      429    rate_limit_error        queue_full              + Retry-After
├─ KeyBusy                        429    rate_limit_error        key_concurrency         + Retry-After
├─ DeadlineExceeded               504    timeout_error           deadline_exceeded
├─ UpstreamRefused                as the upstream had them
└─ EngineError                    500    server_error            internal_error
   ├─ UpstreamFailed              502    server_error            upstream_failed
   ├─ DecodeFailed                500    server_error            decode_failed           this batch only
   └─ Unavailable                 503    server_error            unavailable             + Retry-After
      ├─ EngineDead               503    server_error            engine_dead
      ├─ Draining                 503    server_error            draining
      ├─ TooManyConnections       503    server_error            too_many_connections
      ├─ Loading                  503    server_error            loading
      └─ UpstreamUnavailable      503    server_error            upstream_unavailable
"""

from __future__ import annotations

from typing import Any


class LLMLocalError(Exception):
    """Base of all errors that this package raises on purpose; `str(error)` is fit for a client to read."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def envelope(self) -> dict[str, Any]:
        """Return the body of OpenAI's error answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class StartupError(LLMLocalError):
    """The server cannot start as it was asked to; the command line prints one line and exits with 2."""


class RequestError(LLMLocalError):
    """The request is wrong; `param` names the field."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None


class ContextLengthExceeded(RequestError):
    """The prompt does not fit the window of one sequence."""

    code = "context_length_exceeded"

    def __init__(
        self, n_prompt: int, window: int, *, param: str = "messages", at_least: bool = False, embeds: bool = False
    ) -> None:
        count = f"at least {n_prompt}" if at_least else str(n_prompt)
        what = "input" if embeds else "prompt"
        advice = (
            f"Shorten the input to at most {window} tokens, or raise LLM_EMBEDDING_CTX as far as the model reads."
            if embeds
            else f"Shorten the prompt to at most {window - 1} tokens, or raise LLM_CTX and LLM_SEQ_MAX."
        )
        super().__init__(
            f"This model's maximum context length is {window} tokens, but the {what} has {count} tokens. {advice}",
            param=param,
        )


class UnsupportedParameter(RequestError):
    """A field of the API that this server does not serve."""

    code = "unsupported_parameter"


class UnknownParameter(RequestError):
    """A field that is not part of the API."""

    code = "unknown_parameter"


class InvalidSchema(RequestError):
    """A JSON schema that is none, that nothing satisfies, or that cannot be enforced; the text says where and why."""

    code = "invalid_json_schema"


class InvalidGrammar(RequestError):
    """A GBNF grammar, a regular expression or a list of choices that cannot be compiled."""

    code = "invalid_grammar"


class AuthenticationFailed(RequestError):
    """No API key, or a wrong one."""

    status = 401
    code = "invalid_api_key"


class NotFound(RequestError):
    """No such route."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """The request names a model that is not served."""

    code = "model_not_found"


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class ReceiveTimeout(RequestError):
    """The client did not send the whole request in time."""

    status = 408
    code = "receive_timeout"


class BodyTooLarge(RequestError):
    """The request body is over the limit."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(RequestError):
    """The request body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(RequestError):
    """The head of the request (its line and headers) is over the limit."""

    status = 431
    code = "headers_too_large"


class QueueFull(LLMLocalError):
    """Too many requests wait already."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class KeyBusy(LLMLocalError):
    """The API key has as many requests at work as one key may."""

    status = 429
    type = "rate_limit_error"
    code = "key_concurrency"


class DeadlineExceeded(LLMLocalError):
    """The request's own deadline passed before its answer was complete."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class UpstreamRefused(LLMLocalError):
    """The upstream's own error, for the client to read."""

    def __init__(
        self, message: str, *, status: int, type: str, code: str | None, param: str | None, retry_after_s: int | None
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.status, self.type, self.code = status, type, code


class EngineError(LLMLocalError):
    """Something broke on the inside; the text says nothing of it."""


class DecodeFailed(EngineError):
    """One batch could not be computed; the sequences in it are lost, the others go on."""

    code = "decode_failed"


class UpstreamFailed(EngineError):
    """The upstream broke off, or answered what is no answer."""

    status = 502
    code = "upstream_failed"


class Unavailable(EngineError):
    """The server cannot take requests at the moment."""

    status = 503
    code = "unavailable"


class EngineDead(Unavailable):
    """The engine thread ended with an error; the process is about to exit."""

    code = "engine_dead"


class Draining(Unavailable):
    """The server is shutting down."""

    code = "draining"


class TooManyConnections(Unavailable):
    """As many connections are open as the server takes."""

    code = "too_many_connections"


class Loading(Unavailable):
    """The model is not loaded yet."""

    code = "loading"


class UpstreamUnavailable(Unavailable):
    """The upstream cannot be reached, or does not serve what is forwarded to it."""

    code = "upstream_unavailable"
