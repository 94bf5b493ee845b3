"""Around every request: its id, the key check, the last net for exceptions. Plain ASGI: streams pass untouched."""

from __future__ import annotations

import re
import secrets
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_local.errors import AuthenticationFailed, KeyBusy
from llm_local.server.errors import internal, render
from llm_local.server.keys import Keys

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
EXPOSED_HEADERS = ("x-request-id", "retry-after")
"""What a script of another origin may read of an answer."""
KEY_BUSY_RETRY_S = 1
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"req_{secrets.token_hex(12)}"


class RequestIds:
    """Gives every answer an `x-request-id`: the client's own, if it sent a sane one, else a new one.

    The id is in `scope["state"]["request_id"]` for the log. No answer is to be taken for another type than it says.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _SAFE_ID.fullmatch(sent) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, send_with_id)


class LastNet:
    """Answers exceptions that nobody expected. It is inside of CORS, so that a browser may read that answer too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        started = False

        async def noticing_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noticing_send)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await render(internal(error))(scope, receive, noticing_send)


class ApiKeys:
    """Asks for a key on everything but `/health*`, as `Authorization: Bearer` or `X-Api-Key`.

    Whose key it is stands in `scope["state"]["api_key"]` for the log. With `most_at_work`, a key has at most so many
    POST requests at work, streams to their end; looking at metrics and models is not counted.
    """

    def __init__(self, app: ASGIApp, keys: Keys, most_at_work: int | None = None) -> None:
        self._app = app
        self._keys = keys
        self._most = most_at_work
        self._at_work: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        owner = self._keys.owner(_sent(Headers(scope=scope)))
        if owner is None:
            error = AuthenticationFailed(
                "Incorrect or missing API key. Send one as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
            )
            await render(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["api_key"] = owner
        if self._most is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
        else:
            await self._work(owner, self._most, scope, receive, send)

    async def _work(self, owner: str, most: int, scope: Scope, receive: Receive, send: Send) -> None:
        if self._at_work[owner] >= most:
            busy = KeyBusy(
                f"This API key has {most} requests at work, as many as one key may; wait until one of them ends.",
                retry_after_s=KEY_BUSY_RETRY_S,
            )
            await render(busy)(scope, receive, send)
            return
        self._at_work[owner] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._at_work[owner] -= 1


def _sent(headers: Headers) -> bytes:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    # Headers are bytes, which starlette shows as Latin-1.
    return (token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode("latin-1")
