"""The small routes: models, health, tokenize and detokenize."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from llm_local.errors import LLMLocalError, ModelNotFound, RequestError
from llm_local.server.body import read_body
from llm_local.server.generation import check_tokens
from llm_local.server.runtime import Runtime, ServedModel
from llm_local.server.schema import DetokenizeRequest, TokenizeRequest
from llm_local.server.stream import json_response

MAX_PIECES = 2**17
"""Tokens of which each is looked up: so many take 0.4 s of a worker."""
MAX_SPECIAL = 16384
"""Special tokens in a text for `/tokenize`; the time to find them grows with the square of their number."""


async def list_models(request: Request) -> Response:
    """Return all served models."""
    runtime: Runtime = request.app.state.runtime
    return json_response({"object": "list", "data": [_model(model, runtime) for model in runtime.models()]})


async def get_model(request: Request) -> Response:
    """Return one model, by its id or an alias."""
    runtime: Runtime = request.app.state.runtime
    name = request.path_params["id"]
    models = runtime.models()
    named = [model for model in models if name in (model.id, *model.aliases)]
    for model in named or [model for model in models if "*" in model.aliases]:
        return json_response(_model(model, runtime))
    served = ", ".join(f"'{model.id}'" for model in runtime.models())
    raise ModelNotFound(f"The model '{name}' does not exist here. Served: {served}.", param="model")


async def health(request: Request) -> Response:
    """Tell whether requests are taken: 200, or 503 with the reason."""
    runtime: Runtime = request.app.state.runtime
    try:
        _ = runtime.ready
    except LLMLocalError as error:
        return not_ready(error)
    return json_response({"status": "ok"})


def not_ready(error: LLMLocalError) -> Response:
    """Return the answer of `/health` while requests are not taken."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
    status = error.code if error.status == 503 else "failed"
    return JSONResponse({"status": status, **error.envelope()}, 503, headers)


async def live(_request: Request) -> Response:
    """Tell that the process answers."""
    return json_response({"status": "ok"})


async def tokenize(request: Request) -> Response:
    """Return the tokens of a text."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, TokenizeRequest, runtime.settings.max_body_bytes)
    vocabulary = runtime.ready.model.vocabulary
    if body.parse_special and await runtime.in_worker(vocabulary.count_special, body.content) > MAX_SPECIAL:
        raise RequestError(f"The text spells out more than {MAX_SPECIAL} special tokens.", param="content")
    tokens = await runtime.in_worker(
        lambda: vocabulary.tokenize(body.content, add_special=body.add_special, parse_special=body.parse_special)
    )
    if not body.with_pieces:
        return json_response({"tokens": tokens})
    _check_number(tokens, "content")
    pieces = await runtime.in_worker(
        lambda: [{"id": t, "piece": _piece(vocabulary.piece(t, special=True))} for t in tokens]
    )
    return json_response({"tokens": pieces})


async def detokenize(request: Request) -> Response:
    """Return the text of tokens."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, DetokenizeRequest, runtime.settings.max_body_bytes)
    vocabulary = runtime.ready.model.vocabulary
    _check_number(body.tokens, "tokens")
    await runtime.in_worker(check_tokens, body.tokens, vocabulary, "tokens")
    return json_response({"content": await runtime.in_worker(vocabulary.detokenize, body.tokens)})


def _check_number(tokens: SequenceOf[int], param: str) -> None:
    if len(tokens) > MAX_PIECES:
        raise RequestError(f"At most {MAX_PIECES} tokens are looked up at once, not {len(tokens)}.", param=param)


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


def _model(model: ServedModel, runtime: Runtime) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": int(runtime.started_at),
        "owned_by": "llm_local",
        # A path is a name, too, for clients that have it from the server's environment; others need not see it.
        "aliases": [alias for alias in model.aliases if alias != "*" and not Path(alias).is_absolute()],
        "context_window": model.context_window,
        "quantization": model.quantization,
        "size_bytes": model.size_bytes,
        "meta": {
            "n_vocab": model.vocabulary.n_vocab,
            "n_embd": model.n_embd,
            "n_params": model.n_params,
            "generates": model.generates,
            "embeds": model.embeds,
        },
    }
