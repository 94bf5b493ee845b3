"""The routes where an upstream answers: the same names, the same errors, and all else is sent on as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.responses import Response

from llm_local.errors import LLMLocalError, ModelNotFound
from llm_local.server.body import read_object
from llm_local.server.info import not_ready
from llm_local.server.requestlog import record_of
from llm_local.server.stream import json_response, sse, unless_client_leaves
from llm_local.server.upstream import Upstream
from llm_local.server.upstream_exchange import Exchange
from llm_local.server.upstream_metrics import UpstreamMetrics


async def forward(request: Request) -> Response:
    """Send the request on to the upstream, and its answer back."""
    runtime = request.app.state.runtime
    upstream: Upstream = runtime.upstream
    body = await read_object(request, runtime.settings.max_body_bytes)
    path = request.url.path.removeprefix("/v1")
    watched = _Watched(request)
    try:
        exchange = await unless_client_leaves(request, upstream.open(path, body, record_of(request)))
        watched.exchange = exchange
        if exchange.streams:
            return sse(watched.events(), watched, runtime.settings)
        data = await unless_client_leaves(request, exchange.read())
    except BaseException:
        watched.close()
        raise
    watched.close()
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
        aliases = model.get("aliases")
        if name in (model["id"], *(aliases if isinstance(aliases, list) else ())):
            return json_response(model)
    if models and "*" in upstream.names:
        return json_response(models[0])
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


class _Watched:
    """One request's share of the metrics, however it ends."""

    def __init__(self, request: Request) -> None:
        self.exchange: Exchange | None = None
        self._metrics: UpstreamMetrics = request.app.state.upstream_metrics
        self._open = True
        self._metrics.open.inc()

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of a streamed answer."""
        assert self.exchange is not None
        try:
            async for data in self.exchange.events():
                yield data
        finally:
            self.close()

    def close(self) -> None:
        """Note the end."""
        if not self._open:
            return
        self._open = False
        first = None
        if self.exchange is not None:
            first = self.exchange.first_byte_s
            self.exchange.close()
        self._metrics.finished(first)
