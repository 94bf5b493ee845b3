"""Around every request of every route: it is counted, traced, and has its line in the log. Plain ASGI, event loop."""

from __future__ import annotations

import asyncio
import time

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_local.server.requestlog import NO_STATUS, RequestRecord, log_request, request_id
from llm_local.server.runtime import Runtime

UNKNOWN = "unknown"
"""The route of a path that is none. (A client could otherwise make as many time series as it likes.)"""


class Access:
    """Makes the record of each request, and counts and logs it when it has ended.

    It stands within `RequestIds`, whose id it takes, and around everything that may refuse a request.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        record = RequestRecord(state.get("request_id", "-"), self._runtime.metrics)
        state["record"] = record
        request_id.set(record.id)
        tracing = self._runtime.tracing
        span = tracing.begin(scope, record) if tracing is not None else None

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        record.metrics.in_flight.inc()
        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            record.given_up = record.given_up or "shutdown"
            raise
        except Exception:
            record.status, record.error = record.status or 500, "internal_error"
            raise
        finally:
            self._ended(scope, record)
            if tracing is not None and span is not None:
                tracing.end(span, record)

    def _ended(self, scope: Scope, record: RequestRecord) -> None:
        record.metrics.in_flight.dec()
        record.status = record.status or NO_STATUS
        if record.status == NO_STATUS:
            record.given_up = record.given_up or "client_left"
        elif record.error is None and record.status >= 400 and not scope["path"].startswith("/health"):
            # Passed on from elsewhere. (That a server is not ready yet is the answer to a question, no error.)
            record.error = f"http_{record.status}"
        record.route = _route(scope)
        record.key_name = scope["state"].get("api_key")
        seconds = time.monotonic() - record.arrived_at
        record.metrics.request_ended(record.route, record.status, seconds, error=record.error, given_up=record.given_up)
        client = scope["client"][0] if scope.get("client") else None
        slow_s = self._runtime.settings.slow_request
        log_request(record, scope["method"], scope["path"], client, seconds, slow_s)


def _route(scope: Scope) -> str:
    """Return the path of the route as it was declared, also when the request did not get there (401, 405)."""
    route = scope.get("route")
    if route is None:
        routes = scope["app"].routes if "app" in scope else ()
        route = next((one for one in routes if one.matches(scope)[0] != Match.NONE), None)
    return str(getattr(route, "path", UNKNOWN))
