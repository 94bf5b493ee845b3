"""One function that renders every error, and what turns foreign exceptions into ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_local.errors import EngineError, LLMLocalError, MethodNotAllowed, NotFound, RequestError

log = logging.getLogger(__name__)


def render(error: LLMLocalError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP answer of an error: its status, OpenAI's envelope, and `Retry-After` where it has one."""
    all_headers = dict(headers or {})
    if error.retry_after_s is not None:
        all_headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    return _ErrorAnswer(error, all_headers)


class _ErrorAnswer(Response):
    """Tells the request's record, which `access.py` counts, what it is."""

    def __init__(self, error: LLMLocalError, headers: Mapping[str, str]) -> None:
        super().__init__(orjson.dumps(error.envelope()), error.status, headers, "application/json")
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = scope.get("state", {}).get("record")
        if record is not None:
            record.failed(self._error)
        await super().__call__(scope, receive, send)


def internal(error: BaseException) -> LLMLocalError:
    """Log an exception that nobody expected, and return what a client may know of it."""
    log.error("unexpected error", exc_info=error)
    return EngineError("The server had an internal error. It has been logged.")


def install(app: FastAPI) -> None:
    """Answer our errors and starlette's (404, 405, ...) in OpenAI's envelope."""

    async def on_own(_request: Request, error: Exception) -> Response:
        assert isinstance(error, LLMLocalError)
        return render(error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return render(_from_http(request, error), error.headers)

    app.add_exception_handler(LLMLocalError, on_own)
    app.add_exception_handler(HTTPException, on_http)


def _from_http(request: Request, error: HTTPException) -> LLMLocalError:
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return NotFound(f"There is no route {where}. GET /docs lists all of them.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return MethodNotAllowed(f"{where} is not allowed; use {allowed}.")
    wrong = RequestError(str(error.detail))
    wrong.status = error.status_code
    return wrong
