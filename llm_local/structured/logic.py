"""Canonical schemas as values: their types, equality, unions and intersections. Any thread.

A canonical schema is a boolean or an object with only the keywords that `schema.py` leaves, `anyOf`, `allOf` and a
`$ref` to `#/$defs/NAME`; `schema.py` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Node = Any
Defs = Mapping[str, Node]

TYPES = ("null", "boolean", "number", "string", "array", "object")
REF = "#/$defs/"


def value_key(value: Any) -> str:
    """Return a text that is equal for values that JSON Schema calls equal (1 and 1.0, but not 1 and true)."""
    return json.dumps(_normal(value), sort_keys=True, ensure_ascii=False)


def _normal(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_normal(item) for item in value]
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return value


def type_of(value: Any) -> str:
    """Return the JSON type of a value; integers are numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def any_of(options: list[Node]) -> Node:
    """Return the union of schemas."""
    kept: dict[str, Node] = {}
    for option in options:
        if option is True:
            return True
        if option is not False:
            kept.setdefault(json.dumps(option), option)
    if not kept:
        return False
    return next(iter(kept.values())) if len(kept) == 1 else {"anyOf": list(kept.values())}


def all_of(parts: list[Node]) -> Node:
    """Return the intersection of schemas."""
    kept: list[Node] = []
    for part in parts:
        if part is False:
            return False
        if part is True or part == {}:
            continue
        kept += part["allOf"] if list(part) == ["allOf"] else [part]
    if not kept:
        return True
    return kept[0] if len(kept) == 1 else {"allOf": kept}


def has_all_of(node: Node) -> bool:
    """Tell whether schemas are joined anywhere in this one."""
    if isinstance(node, list):
        return any(map(has_all_of, node))
    return isinstance(node, dict) and ("allOf" in node or any(map(has_all_of, node.values())))
