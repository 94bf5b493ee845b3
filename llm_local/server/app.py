"""The application: its routes, its documentation, and what happens when it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from llm_local import __version__
from llm_local.engine.warm import warm
from llm_local.errors import Draining, LLMLocalError
from llm_local.server import errors, forward, info
from llm_local.server.access import Access
from llm_local.server.chat import apply_template, chat_completions
from llm_local.server.completions import completions
from llm_local.server.embeddings import embeddings
from llm_local.server.engine_metrics import EngineMetrics
from llm_local.server.keys import Keys
from llm_local.server.metrics import metrics
from llm_local.server.middleware import EXPOSED_HEADERS, ApiKeys, LastNet, RequestIds
from llm_local.server.runtime import Loaded, Runtime
from llm_local.server.schema import (
    ApplyTemplateRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from llm_local.server.stream import ClientLeft
from llm_local.server.upstream_metrics import UpstreamMetrics

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

POSTS: list[tuple[str, Handler, type[BaseModel]]] = [
    ("/v1/chat/completions", chat_completions, ChatRequest),
    ("/v1/completions", completions, CompletionRequest),
    ("/v1/embeddings", embeddings, EmbeddingRequest),
    ("/tokenize", info.tokenize, TokenizeRequest),
    ("/detokenize", info.detokenize, DetokenizeRequest),
    ("/apply-template", apply_template, ApplyTemplateRequest),
]
GETS: list[tuple[str, Handler]] = [
    ("/v1/models", info.list_models),
    ("/v1/models/{id:path}", info.get_model),
    ("/health", info.health),
    ("/health/ready", info.health),
    ("/health/live", info.live),
    ("/metrics", metrics),
]
FORWARDED_POSTS: list[tuple[str, Handler, type[BaseModel]]] = [
    (path, forward.forward, body) for path, _, body in POSTS if path.startswith("/v1/")
]
FORWARDED_GETS: list[tuple[str, Handler]] = [
    ("/v1/models", forward.list_models),
    ("/v1/models/{id:path}", forward.get_model),
    ("/health", forward.health),
    ("/health/ready", forward.health),
    ("/health/live", info.live),
    ("/metrics", metrics),
]
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "The API key is missing or wrong.",
    "404": "No such model.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "The queue is full; `Retry-After` says when to come back.",
    "500": "An internal error.",
    "502": "The upstream failed.",
    "503": "Loading, draining or dead.",
    "504": "The deadline passed.",
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

    app: FastAPI = FastAPIOffline(
        title="llm_local",
        version=__version__,
        description="OpenAI's API over one local GGUF model.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.runtime = runtime
    runtime.metrics.registry.register(EngineMetrics(runtime))
    errors.install(app)
    for gone in (ClientLeft, ClientDisconnect):
        app.add_exception_handler(gone, _nobody_to_answer)
    if runtime.upstream is not None:
        app.state.upstream_metrics = UpstreamMetrics(runtime.metrics.registry)
    posts, gets = (POSTS, GETS) if runtime.upstream is None else (FORWARDED_POSTS, FORWARDED_GETS)
    for path, handler, body in posts:
        _add(app, path, handler, "POST", _body_schema(body))
    for path, handler in gets:
        _add(app, path, handler, "GET", {})
    _add_middleware(app, runtime)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {}).setdefault("schemas", {}).update(_schemas())
        return document

    app.openapi = openapi  # type: ignore[method-assign]
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


def _add(app: FastAPI, path: str, handler: Handler, method: str, extra: dict[str, Any]) -> None:
    """Add a route, and for OpenAI's own the same without `/v1`."""
    for shown, alias in ((True, path), (False, path.removeprefix("/v1"))):
        if shown or alias != path:
            app.add_api_route(
                alias,
                handler,
                methods=[method],
                response_class=Response,
                include_in_schema=shown,
                openapi_extra=extra | _path_parameters(path),
                responses=_responses(method),
                summary=(handler.__doc__ or "").strip().splitlines()[0].rstrip("."),
            )


def _path_parameters(path: str) -> dict[str, Any]:
    if "{id" not in path:
        return {}
    return {"parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]}


def _responses(method: str) -> dict[int | str, dict[str, Any]]:
    wanted = ERRORS if method == "POST" else {code: ERRORS[code] for code in ("401", "404", "500", "503")}
    content = {"application/json": {"schema": ERROR_SCHEMA}}
    answers: dict[int | str, dict[str, Any]] = {
        code: {"description": text, "content": content} for code, text in wanted.items()
    }
    answers[200] = {
        "description": "The answer; with `stream`, server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    return answers


def _body_schema(body: type[BaseModel]) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def _schemas() -> dict[str, Any]:
    bodies = [(body, "validation") for _, _, body in POSTS]
    _, document = models_json_schema(bodies, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas: dict[str, Any] = document["$defs"]
    for schema in schemas.values():
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            if name not in required:
                schema["properties"][name] = _or_null(field)
    return schemas


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that may be null, which is the same as leaving it out."""
    null = {"type": "null"}
    if not {"type", "anyOf", "$ref", "const", "enum"} & set(field) or null in field.get("anyOf", ()):
        return field
    notes: dict[str, Any] = {name: field[name] for name in ("title", "description", "default") if name in field}
    inner = {name: value for name, value in field.items() if name not in notes}
    branches = inner["anyOf"] if set(inner) == {"anyOf"} else [inner]
    return {**notes, "anyOf": [*branches, null]}


async def _nobody_to_answer(_request: Request, _error: Exception) -> Response:
    # 499 is nginx's name for a client that closed the connection; it is seen only by a log or a test.
    return Response(status_code=499)
