"""Keywords about types, single values, numbers and strings. Any thread."""

from __future__ import annotations

import math
from typing import Any

from llm_local.structured.ambiguity import check_ambiguity
from llm_local.structured.logic import TYPES, value_key
from llm_local.structured.look_ahead import patterns
from llm_local.structured.pattern import PatternError
from llm_local.structured.rewriter import Handler, Subschema, kind

MAX_ENUM_CHARACTERS = 2**20
MAX_COUNT = 2**31

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"},
)
"""Formats that are enforced; others say nothing about validity."""


def _type(schema: Subschema, key: str, value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or name not in (*TYPES, "integer"):
            raise schema.bad(key, f"{name!r} is no type; types are {', '.join((*TYPES, 'integer'))}.")
    if not names:
        raise schema.bad(key, "the list is empty.")
    schema.plain["type"] = value if isinstance(value, str) else list(dict.fromkeys(names))


def _enum(schema: Subschema, key: str, value: Any) -> None:
    values = [value] if key == "const" else value
    if not isinstance(values, list) or not values:
        raise schema.bad(key, "must be a list of at least one value.")
    if sum(len(item) if isinstance(item, str) else 8 for item in values) > MAX_ENUM_CHARACTERS:
        raise schema.bad(key, f"its values have over {MAX_ENUM_CHARACTERS} characters.")
    schema.conjoin({"enum": list({value_key(item): item for item in values}.values())})


def _bound(schema: Subschema, key: str, value: Any) -> None:
    if isinstance(value, bool) and key.startswith("exclusive"):
        _draft4_bound(schema, key, value)
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise schema.bad(key, f"must be a number, not {kind(value)}.")
    if key == "multipleOf":
        schema.rewriter.multiple(value, schema.bad)
    if key not in schema.plain:
        schema.plain[key] = value


def _draft4_bound(schema: Subschema, key: str, value: bool) -> None:
    """In draft 4 `exclusiveMinimum: true` makes `minimum` exclusive."""
    inclusive = "minimum" if key == "exclusiveMinimum" else "maximum"
    if value and isinstance(schema.source.get(inclusive), int | float):
        schema.plain[key] = schema.source[inclusive]


def count(schema: Subschema, key: str, value: Any) -> None:
    """Take a length or a number of items or properties in, a whole number."""
    schema.plain[key] = whole_number(schema, key, value)


def whole_number(schema: Subschema, key: str, value: Any) -> int:
    """Return what must be a whole number."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    whole = number and value == int(value)
    if not whole or not 0 <= value < MAX_COUNT:
        raise schema.bad(key, f"must be a whole number from 0 to {MAX_COUNT - 1}, not {value!r}.")
    return int(value)


def _pattern(schema: Subschema, key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise schema.bad(key, f"must be a string, not {kind(value)}.")
    *ahead, schema.plain[key] = patterns(value, f"{schema.where}/{key}")
    schema.parts += [{"pattern": pattern} for pattern in ahead]
    try:
        for pattern in (*ahead, schema.plain[key]):
            check_ambiguity(pattern)
    except PatternError as error:
        raise schema.bad(key, f"{error}.") from None


def _format(schema: Subschema, key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise schema.bad(key, f"must be a string, not {kind(value)}.")
    if value in FORMATS:
        schema.plain[key] = value


HANDLERS: dict[str, Handler] = {
    "type": _type,
    "enum": _enum,
    "const": _enum,
    "minimum": _bound,
    "maximum": _bound,
    "exclusiveMinimum": _bound,
    "exclusiveMaximum": _bound,
    "multipleOf": _bound,
    "minLength": count,
    "maxLength": count,
    "pattern": _pattern,
    "format": _format,
    "minItems": count,
    "maxItems": count,
}
