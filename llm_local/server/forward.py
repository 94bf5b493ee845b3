"""The routes where an upstream answers: the same names, the same errors, and what comes is sent on as it comes."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.responses import Response

from llm_local.errors import LLMLocalError, ModelNotFound
from llm_local.server.body import read_object
from llm_local.server.info import not_ready
from llm_local.server.stream import json_response, sse, unless_client_leaves
from llm_local.server.upstream import Exchange, Upstream
from llm_local.server.upstream_metrics import UpstreamMetrics

log = logging.getLogger("llm_local.requests")


async def forward(request: Request) -> Response:
    """Send the request on to the upstream, and its answer back."""
    runtime = request.app.state.runtime
    upstream: Upstream = runtime.upstream
    body = await read_object(request, runtime.settings.max_body_bytes)
    path = request.url.path.removeprefix("/v1")
    watched = _Watched(request, upstream, path)
    try:
        exchange = await unless_client_leaves(request, upstream.open(path, body, watched.request_id))
        watched.exchange = exchange
        if exchange.streams:
            return sse(watched.events(), watched, runtime.settings)
        data = await unless_client_leaves(request, exchange.read())
    except LLMLocalError as error:
        watched.close(error.status)
        raise
    except BaseException:
        watched.close()
        raise
    watched.close(exchange.status)
    return Response(data, exchange.status, media_type="application/json")


async def list_models(request: Request) -> Response:
    """Return the models that the upstream serves."""
    upstream: Upstream = request.app.state.runtime.upstream
    return json_response({"object": "list", "data": await upstream.models()})


async def get_model(request: Request) -> Response:
    """Return one model, by its id or an alias."""
    upstream: Upstream = request.app.state.runtime.upstream
    name, models = request.path_params["id"], await upstream.models()
    for model in models:
        if name in (model["id"], *model.get("aliases", ())):
            return json_response(model)
    served = ", ".join(f"'{model['id']}'" for model in models)
    raise ModelNotFound(f"The model '{name}' does not exist here. Served: {served}.", param="model")


async def health(request: Request) -> Response:
    """Tell whether the upstream answers: 200, or 503 with the reason."""
    upstream: Upstream = request.app.state.runtime.upstream
    try:
        await upstream.check()
    except LLMLocalError as error:
        return not_ready(error)
    return json_response({"status": "ok"})


LEFT = 499
"""nginx's name for a client that closed the connection."""


class _Watched:
    """One request's line in the log and its share of the metrics, however it ends."""

    def __init__(self, request: Request, upstream: Upstream, path: str) -> None:
        self.request_id: str = request.scope.get("state", {}).get("request_id", "-")
        self.exchange: Exchange | None = None
        self._path = path
        self._began = time.monotonic()
        self._metrics: UpstreamMetrics = request.app.state.upstream_metrics
        self._open = True
        self._metrics.open.inc()

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of a streamed answer."""
        assert self.exchange is not None
        try:
            async for data in self.exchange.events():
                yield data
        except LLMLocalError as error:
            self.close(error.status)
            raise
        self.close(self.exchange.status)

    def close(self, status: int = LEFT) -> None:
        """Note the end; without a status the client left first."""
        if not self._open:
            return
        self._open = False
        seconds, first = time.monotonic() - self._began, None
        if self.exchange is not None:
            first = self.exchange.first_byte_s
            self.exchange.close()
        self._metrics.open.dec()
        self._metrics.finished(self._path, status, first, seconds)
        shown = f"{first * 1e3:.0f}" if first is not None else "-"
        log.info("%s %s status=%d first_ms=%s ms=%.0f", self.request_id, self._path, status, shown, seconds * 1e3)
