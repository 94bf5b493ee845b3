"""Around every request: its id, the key check, the last net for exceptions. Plain ASGI: streams pass untouched."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_local.errors import AuthenticationFailed
from llm_local.server.errors import internal, render

OPEN_PATHS = ("/health",)
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestIds:
    """Gives every answer an `x-request-id`: the client's own, if it sent a sane one, else a new one.

    The id is in `scope["state"]["request_id"]` for the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _SAFE_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise
            await render(internal(error))(scope, receive, send_with_id)


class ApiKeys:
    """Asks for a key on everything but `/health*`, as `Authorization: Bearer` or `X-Api-Key`."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if (
            scope["type"] == "http"
            and not scope["path"].startswith(OPEN_PATHS)
            and not self._allowed(Headers(scope=scope))
        ):
            error = AuthenticationFailed(
                "Incorrect or missing API key. Send one as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
            )
            await render(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, so that the time tells nothing.
        return sum(hmac.compare_digest(sent.encode(), key) for key in self._keys) > 0
