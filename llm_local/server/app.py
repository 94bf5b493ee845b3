"""The application: its routes, its documentation, and what happens when it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from llm_local.engine.warm import warm
from llm_local.errors import Draining, LLMLocalError
from llm_local.server import errors, forward, info
from llm_local.server.access import Access
from llm_local.server.chat import apply_template, chat_completions
from llm_local.server.completions import completions
from llm_local.server.documentation import document
from llm_local.server.embeddings import embeddings
from llm_local.server.engine_metrics import EngineMetrics
from llm_local.server.keys import Keys
from llm_local.server.metrics import metrics
from llm_local.server.middleware import EXPOSED_HEADERS, ApiKeys, LastNet, RequestIds
from llm_local.server.runtime import Loaded, Runtime
from llm_local.server.stream import ClientLeft
from llm_local.server.upstream_metrics import UpstreamMetrics

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

POSTS: dict[str, Handler] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/tokenize": info.tokenize,
    "/detokenize": info.detokenize,
    "/apply-template": apply_template,
}
GETS: dict[str, Handler] = {
    "/v1/models": info.list_models,
    "/v1/models/{id:path}": info.get_model,
    "/health": info.health,
    "/health/ready": info.health,
    "/health/live": info.live,
    "/metrics": metrics,
}
FORWARDED_POSTS: dict[str, Handler] = {path: forward.forward for path in POSTS if path.startswith("/v1/")}
FORWARDED_GETS: dict[str, Handler] = {
    **GETS,
    "/v1/models": forward.list_models,
    "/v1/models/{id:path}": forward.get_model,
    "/health": forward.health,
    "/health/ready": forward.health,
}


def create_app(runtime: Runtime, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """Return the ASGI application.

    Args:
        runtime: its `load` is called on a thread when the application starts.
        on_failure: called on the event loop when loading has failed; `runtime.failed` says why.

    Raises:
        StartupError: the file of keys cannot be used.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        upstream = runtime.upstream
        async with upstream.running() if upstream is not None else _engine(runtime, on_failure):
            yield
        runtime.workers.shutdown(wait=False, cancel_futures=True)
        if runtime.tracing is not None:
            await runtime.tracing.close()

    app: FastAPI = FastAPIOffline(title="llm_local", lifespan=lifespan, redirect_slashes=False)
    app.state.runtime = runtime
    runtime.metrics.registry.register(EngineMetrics(runtime))
    errors.install(app)
    for gone in (ClientLeft, ClientDisconnect):
        app.add_exception_handler(gone, _nobody_to_answer)
    if runtime.upstream is not None:
        app.state.upstream_metrics = UpstreamMetrics(runtime.metrics.registry)
    posts, gets = (POSTS, GETS) if runtime.upstream is None else (FORWARDED_POSTS, FORWARDED_GETS)
    for method, routes in (("POST", posts), ("GET", gets)):
        for path, handler in routes.items():
            _add(app, path, handler, method)
    _add_middleware(app, runtime)
    app.openapi = cache(lambda: document([*posts, *gets], keyed=runtime.keys is not None))  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _engine(runtime: Runtime, on_failure: Callable[[], None]) -> AsyncIterator[None]:
    """Load the model beside what is done meanwhile, and stop its engine at the end."""
    loading = asyncio.create_task(_load(runtime, on_failure))
    yield
    runtime.give_up()
    if runtime.warming is not None:
        await runtime.warming.engine.stop()
    else:
        loading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loading
    if runtime.loaded is not None and await runtime.loaded.engine.stop():
        # A worker may still tokenize for a client who has left.
        await asyncio.to_thread(runtime.workers.shutdown, wait=True, cancel_futures=True)
        runtime.loaded.close()


def _add_middleware(app: FastAPI, runtime: Runtime) -> None:
    """Add what is around the routes; what is added last is outermost."""
    settings, runtime.keys = runtime.settings, Keys.of(runtime.settings)
    if runtime.keys is not None:
        app.add_middleware(ApiKeys, keys=runtime.keys, most_at_work=settings.key_concurrency)
    app.add_middleware(LastNet)
    if settings.cors_origins:
        # Outside of the keys: a browser asks first, without one.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )
    # Around all that may refuse a request, so that it is counted; within the ids, one of which it takes.
    app.add_middleware(Access, runtime=runtime)
    app.add_middleware(RequestIds)


async def _load(runtime: Runtime, on_failure: Callable[[], None]) -> None:
    """Load the weights and compute the warm prefixes, while `/health` answers."""
    began = time.monotonic()
    try:
        loaded = await runtime.loading()
        await _warm(runtime, loaded)
    except (Draining, asyncio.CancelledError):
        return  # Told to stop before anything was served.
    except BaseException as error:
        runtime.failed = error if isinstance(error, LLMLocalError) else errors.internal(error)
        on_failure()
        return
    runtime.loaded = loaded
    seconds = time.monotonic() - began
    log.info("ready: %s, window %d, loaded in %.1f s", loaded.model.id, loaded.model.context_window, seconds)


async def _warm(runtime: Runtime, loaded: Loaded) -> None:
    loaded.engine.start()
    runtime.warming = loaded
    try:
        await warm(loaded.engine, loaded.warm_prefixes)
    except BaseException:
        if await loaded.engine.stop():
            loaded.close()
        raise
    finally:
        runtime.warming = None


def _add(app: FastAPI, path: str, handler: Handler, method: str) -> None:
    """Add a route, and for OpenAI's own the same without `/v1`. What answers GET answers HEAD."""
    for each in dict.fromkeys((path, path.removeprefix("/v1"))):
        app.router.routes.append(_Route(each, handler, methods=[method]))


class _Route(Route):
    """Tells `access.py` where a request went."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return match, {**child, "route": self}


async def _nobody_to_answer(_request: Request, _error: Exception) -> Response:
    # 499 is nginx's name for a client that closed the connection; it is seen only by a log or a test.
    return Response(status_code=499)
