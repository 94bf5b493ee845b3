"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request
from starlette.responses import Response

from llm_local.errors import ContextLengthExceeded, DeadlineExceeded, QueueFull, RequestError
from llm_local.server.body import read_body
from llm_local.server.generation import check_length, check_tokens
from llm_local.server.requestlog import record_of
from llm_local.server.runtime import Embeddings, Runtime, Vocabulary
from llm_local.server.schema import EmbeddingRequest
from llm_local.server.stream import json_response, unless_client_leaves

MAX_INPUTS = 2048
"""OpenAI's own limit."""


async def embeddings(request: Request) -> Response:
    """Return the vector of each input."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, EmbeddingRequest, runtime.settings.max_body_bytes)
    model, embedder = runtime.embedder(body.model)
    record = record_of(request)
    record.describe(body, model.id)
    if body.dimensions is not None and body.dimensions > embedder.n_embd:
        raise RequestError(
            f"'dimensions' is {body.dimensions}, but vectors of this model have {embedder.n_embd}.", param="dimensions"
        )
    inputs = await runtime.in_worker(_inputs, body, model.vocabulary, embedder)
    vectors = await unless_client_leaves(request, _embed(runtime, embedder, inputs))
    n_tokens = sum(len(tokens) for tokens in inputs)
    record.embedded(len(inputs), n_tokens)
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _encode(vector, body)}
                for index, vector in enumerate(vectors)
            ],
            "model": model.id,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


async def _embed(runtime: Runtime, embedder: Embeddings, inputs: list[list[int]]) -> list[Any]:
    """Embed within the queue's limit and the request's deadline."""
    settings = runtime.settings
    if runtime.n_embedding > settings.queue_max:
        raise QueueFull(f"The server is busy: {runtime.n_embedding} embedding requests wait.", retry_after_s=1)
    runtime.n_embedding += 1
    try:
        async with asyncio.timeout(settings.request_timeout):
            return await embedder.embed(inputs)
    except TimeoutError:
        raise DeadlineExceeded("The request's deadline passed.") from None
    finally:
        runtime.n_embedding -= 1


def _inputs(body: EmbeddingRequest, vocabulary: Vocabulary, embedder: Embeddings) -> list[list[int]]:
    given: Any = body.input
    single = not isinstance(given, list) or bool(given and isinstance(given[0], int))
    items: SequenceOf[str | list[int]] = [given] if single else given
    if not items or len(items) > MAX_INPUTS:
        raise RequestError(f"'input' must have 1 to {MAX_INPUTS} items; it has {len(items)}.", param="input")
    out = []
    for index, item in enumerate(items):
        param = "input" if single else f"input.{index}"
        if not item:
            raise RequestError("An input must not be empty.", param=param)
        if isinstance(item, str):
            check_length(item, vocabulary, embedder.window, param, embeds=True)
            tokens = vocabulary.tokenize(item)
        else:
            check_tokens(item, vocabulary, param)
            tokens = item
        if not tokens:
            raise RequestError("An input must have at least one token.", param=param)
        if len(tokens) > embedder.window:
            raise ContextLengthExceeded(len(tokens), embedder.window, param=param, embeds=True)
        out.append(tokens)
    return out


def _encode(vector: npt.NDArray[np.float32], body: EmbeddingRequest) -> str | npt.NDArray[np.float32]:
    """Return the vector as orjson writes it: float32 in the fewest digits that give the same number again."""
    if body.dimensions is not None and body.dimensions < len(vector):
        vector = vector[: body.dimensions]
        norm = float(np.linalg.norm(vector))
        vector = (vector / norm if norm else vector).astype(np.float32)
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector
