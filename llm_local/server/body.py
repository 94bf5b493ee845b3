"""From the bytes of a request to a validated model, or to a 400 that says what, where and what is allowed."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from llm_local.errors import BodyTooLarge, RequestError, UnknownParameter, UnsupportedMediaType

MAX_SHOWN = 80
LARGE_BYTES = 2**17
"""From so many on a body is validated on a worker: 6 MB of small messages take 2 s, in which no stream would go on."""
MAX_ENTRIES = 1024
"""Fields of an object, such as biases."""
_PYTHON_WORDS = re.compile(r" or (?:instance of \w+|object to extract fields from)| after validation")


class Body(BaseModel):
    """Base of all request models: no unknown fields, no conversions, and `null` is the same as leaving out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name, item in [("the object", value), *value.items()]:
            # Each wrong entry would cost an error of its own.
            if isinstance(item, dict) and len(item) > MAX_ENTRIES:
                raise ValueError(f"{name} has {len(item)} entries, and at most {MAX_ENTRIES} are allowed")
        return {name: item for name, item in value.items() if item is not None}


B = TypeVar("B", bound=Body)


async def read_body(request: Request, kind: type[B], max_bytes: int) -> B:
    """Read and validate the body.

    Raises:
        UnsupportedMediaType, BodyTooLarge, RequestError, UnknownParameter: it cannot be taken.
    """
    data = await _read(request, max_bytes)
    if len(data) < LARGE_BYTES:
        return _validated(data, kind)
    body: B = await request.app.state.runtime.in_worker(_validated, data, kind)
    return body


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Read the body, whatever fields it has.

    Raises:
        UnsupportedMediaType, BodyTooLarge, RequestError: it is no JSON object.
    """
    return _object(await _read(request, max_bytes))


def _validated(data: bytes, kind: type[B]) -> B:
    value = _object(data)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise explain(error, value, kind) from None


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"The body must be a JSON object, not {_kind(value)}.")
    return value


def explain(error: ValidationError, value: Any, kind: type[BaseModel]) -> RequestError:
    """Return the error of the first wrong field, with its dotted path as `param`."""
    details = error.errors(include_url=False)
    unknown = next((detail for detail in details if detail["type"] == "extra_forbidden"), None)
    first = unknown or _deepest(details, value)
    path = _path(first, value)
    param = ".".join(str(part) for part in path)
    if first["type"] == "extra_forbidden":
        param = _short(param)
        near = difflib.get_close_matches(param, kind.model_fields, n=1) if len(path) == 1 else []
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return UnknownParameter(f"Unknown parameter: '{param}'.{hint}", param=param)
    same = [_reason(detail) for detail in details if _path(detail, value) == path]
    reasons = " or ".join(dict.fromkeys(same)).replace(" or must be ", " or ")
    if first["type"] == "missing":
        return RequestError(f"Missing required parameter: '{param}'.", param=param)
    found = "" if not path else f" (got {_shown(first['input'])})"
    return RequestError(f"Invalid value for '{param}': {reasons}{found}.", param=param or None)


def _deepest(details: list[ErrorDetails], value: Any) -> ErrorDetails:
    """Return the error of the first wrong field that goes deepest: of a union's branches, the one that fitted best."""
    field = _path(details[0], value)[:1]
    of_field = [detail for detail in details if _path(detail, value)[:1] == field]
    return max(of_field, key=lambda detail: len(_path(detail, value)))


def _check_media_type(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(f"The body is encoded as '{encoding}'; send it as it is.")
    declared = request.headers.get("content-type")
    if declared is None:
        return
    media_type = declared.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"The content type is '{media_type}'; send JSON as 'application/json'.")


async def _read(request: Request, max_bytes: int) -> bytes:
    _check_media_type(request)
    declared = request.headers.get("content-length", "")
    too_large = BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _path(detail: ErrorDetails, value: Any) -> tuple[str | int, ...]:
    """Return where the error is in the body; pydantic's own location also names the branches of unions."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if _has(value, part):
            value = value[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        path.append(part)
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _reason(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "union_tag_invalid":
        return f"must be one of {context['expected_tags']}"
    if detail["type"] == "union_tag_not_found":
        return "is required"
    if detail["type"] == "value_error":
        return str(context["error"])
    message = _PYTHON_WORDS.sub("", detail["msg"]).replace("a valid integer", "an integer").replace("a valid ", "a ")
    return message.replace("Input should", "must") if "Input" in message else message[0].lower() + message[1:]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "something else")


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return _kind(value)
    return _short(orjson.dumps(value, default=str).decode())


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
