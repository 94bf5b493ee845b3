"""`/openapi.json`: every route with its request, its answers, its errors and an example."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llm_local import __version__
from llm_local.server import answer_schema as answers
from llm_local.server import schema as bodies

Json = dict[str, Any]

OPENAI, LLAMA_CPP, OPERATIONS = "OpenAI", "llama.cpp", "Operations"
TAGS = {
    OPENAI: "As OpenAI's API; each is served without `/v1`, too.",
    LLAMA_CPP: "Tokens and templates, as in llama.cpp's server.",
    OPERATIONS: "For probes and Prometheus.",
}
ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "There is no such model; the message lists those that there are.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON, or it is compressed.",
    429: "The queue is full, or the key has as many requests at work as it may; `Retry-After` says when to come back.",
    500: "An internal error. The log has it.",
    502: "The upstream failed.",
    503: "Loading, draining or dead; `Retry-After` says when to come back.",
    504: "The deadline passed.",
}
WRONG_BODY = (400, 401, 404, 408, 413, 415, 500, 503)
WRONG_REQUEST = (*WRONG_BODY, 429, 502, 504)
MESSAGES = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What is a token?"}]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route.

    Attributes:
        body: of the request; None for GET.
        answer: its body; None for Prometheus' text.
        events: `data` of the events of a stream, where there may be one.
        errors: statuses that it may have.
        examples: bodies of requests by what they show.
        is_open: whether it needs no key.
    """

    tag: str
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    events: type[BaseModel] | None = None
    errors: tuple[int, ...] = (401,)
    examples: Json | None = None
    is_open: bool = False


CHAT_EXAMPLES = {
    "a question": {"messages": MESSAGES, "max_tokens": 64},
    "streamed": {"messages": MESSAGES, "max_tokens": 64, "stream": True, "stream_options": {"include_usage": True}},
    "JSON by a schema": {
        "messages": [{"role": "user", "content": "Is 7 prime?"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "verdict",
                "schema": {
                    "type": "object",
                    "properties": {"prime": {"type": "boolean"}},
                    "required": ["prime"],
                    "additionalProperties": False,
                },
            },
        },
    },
    "tools": {
        "messages": [{"role": "user", "content": "What is the weather in Omsk?"}],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells the weather of a city.",
                    "parameters": {"type": "object", "properties": {"city": {"enum": ["Omsk", "Tver"]}}},
                },
            }
        ],
        "tool_choice": "required",
    },
}
BY_PATH = {
    "/v1/chat/completions": Operation(
        OPENAI, "Answer a conversation", answers.ChatCompletion, bodies.ChatRequest, answers.ChatCompletionChunk,
        WRONG_REQUEST, CHAT_EXAMPLES,
    ),
    "/v1/completions": Operation(
        OPENAI, "Continue one or several prompts", answers.Completion, bodies.CompletionRequest, answers.Completion,
        WRONG_REQUEST,
        {
            "a text": {"prompt": "Once upon a time", "max_tokens": 32},
            "how likely a text is": {"prompt": "The sky is blue", "echo": True, "logprobs": 1, "max_tokens": 0},
        },
    ),
    "/v1/embeddings": Operation(
        OPENAI, "Return the vector of each input", answers.EmbeddingList, bodies.EmbeddingRequest, None, WRONG_REQUEST,
        {"two texts": {"input": ["fraud", "credit risk"]}},
    ),
    "/v1/models": Operation(
        OPENAI, "Return all served models", answers.ModelList, errors=(401, 500, 502, 503)
    ),
    "/v1/models/{id:path}": Operation(
        OPENAI, "Return one model, by its id or an alias", answers.ServedModelObject, errors=(401, 404, 500, 502, 503)
    ),
    "/tokenize": Operation(
        LLAMA_CPP, "Return the tokens of a text", answers.TokenList, bodies.TokenizeRequest, None, WRONG_BODY,
        {"with what they spell": {"content": "Hello", "with_pieces": True}},
    ),
    "/detokenize": Operation(
        LLAMA_CPP, "Return the text of tokens", answers.PlainText, bodies.DetokenizeRequest, None, WRONG_BODY,
        {"three tokens": {"tokens": [72, 101, 106]}},
    ),
    "/apply-template": Operation(
        LLAMA_CPP, "Return the prompt text of a conversation", answers.PromptText, bodies.ApplyTemplateRequest, None,
        WRONG_BODY, {"a question": {"messages": MESSAGES}},
    ),
    "/health": Operation(
        OPERATIONS, "Tell whether requests are taken", answers.Health, errors=(503,), is_open=True
    ),
    "/health/ready": Operation(
        OPERATIONS, "The same, for orchestrators", answers.Health, errors=(503,), is_open=True
    ),
    "/health/live": Operation(OPERATIONS, "Tell that the process answers", answers.Health, errors=(), is_open=True),
    "/metrics": Operation(OPERATIONS, "Return counters, gauges and histograms for Prometheus", None),
}  # fmt: skip
"""By the path as it is declared."""


def document(paths: Iterable[str], *, keyed: bool) -> Json:
    """Return the OpenAPI 3.1 document.

    Args:
        paths: those that are served.
        keyed: whether API keys are asked for.
    """
    served = {path: BY_PATH[path] for path in paths}
    out: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "llm_local",
            "version": __version__,
            "description": "OpenAI's API over one local GGUF model. `null` is the same as leaving a field out; a field "
            "that is not listed is an error. Every answer has `x-request-id`.",
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": {path.replace(":path", ""): _path(path, operation, keyed) for path, operation in served.items()},
        "components": {"schemas": _schemas(served.values())},
    }
    if keyed:
        out["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        }
        out["security"] = [{"bearer": []}, {"header": []}]
    return out


def _path(path: str, operation: Operation, keyed: bool) -> Json:
    errors = [status for status in operation.errors if keyed or status != 401]
    out: Json = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": path.strip("/").removeprefix("v1/").replace("/{id:path}", "-by-id").replace("/", "-"),
        "responses": {"200": _answer(operation), **{str(status): _error(operation, status) for status in errors}},
    }
    if not operation.is_open:
        out["responses"]["default"] = {"description": "Any other error.", **_json(_reference(answers.Error))}
    elif keyed:
        out["security"] = []
    if "{id" in path:
        out["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.body is None:
        return {"get": out}
    content = _json(_reference(operation.body))
    if operation.examples:
        content["content"]["application/json"]["examples"] = {
            name: {"value": example} for name, example in operation.examples.items()
        }
    return {"post": {**out, "requestBody": {"required": True, **content}}}


def _answer(operation: Operation) -> Json:
    if operation.answer is None:
        return {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    out: Json = {"description": operation.answer.__doc__, **_json(_reference(operation.answer))}
    if operation.events is not None:
        out["description"] += " With `stream`, server-sent events with pieces, then `data: [DONE]`."
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(operation.events)}
        event = {"type": "object", "required": ["data"], "properties": {"data": data}}
        out["content"]["text/event-stream"] = {"schema": event}
    return out


def _error(operation: Operation, status: int) -> Json:
    model = answers.NotReady if operation.is_open else answers.Error
    return {"description": ERRORS[status], **_json(_reference(model))}


def _json(schema: Json) -> Json:
    return {"content": {"application/json": {"schema": schema}}}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _schemas(operations: Iterable[Operation]) -> Json:
    used = [model for one in operations for model in (one.answer, one.events) if model is not None]
    requests = [one.body for one in operations if one.body is not None]
    schemas = _of({answers.Error, answers.NotReady, *used})
    for name, schema in _of(set(requests)).items():
        schemas[name] = _with_nulls(schema)
    return dict(sorted(schemas.items()))


def _of(models: set[type[BaseModel]]) -> Json:
    modes: Any = [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)]
    _, document = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    schemas: Json = document.get("$defs", {})
    return schemas


def _with_nulls(schema: Json) -> Json:
    """Return the schema of a request, in which null is the same as leaving a field out."""
    required = schema.get("required", ())
    fields = schema.get("properties", {})
    return schema | {
        "properties": {name: field if name in required else _or_null(field) for name, field in fields.items()}
    }


def _or_null(field: Json) -> Json:
    null = {"type": "null"}
    if not {"type", "anyOf", "$ref", "const", "enum"} & set(field) or null in field.get("anyOf", ()):
        return field
    notes: Json = {name: field[name] for name in ("title", "description", "default") if name in field}
    inner = {name: value for name, value in field.items() if name not in notes}
    branches = inner["anyOf"] if set(inner) == {"anyOf"} else [inner]
    return {**notes, "anyOf": [*branches, null]}
