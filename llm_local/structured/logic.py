"""Canonical schemas as values: their types, equality, unions and intersections. Any thread.

A canonical schema is a boolean or an object with only the keywords that `schema.py` leaves, `anyOf`, `allOf` and a
`$ref` to `#/$defs/NAME`; `schema.py` makes them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Node = Any
Defs = Mapping[str, Node]

MAX_PLACES = 8
"""Places of an array at which an item is looked for."""

TYPES = ("null", "boolean", "number", "string", "array", "object")
REF = "#/$defs/"


class Narrowed(dict[str, Any]):
    """A union that admits fewer values than the schema it stands for: what it does not admit may be valid there.

    So its opposite is no opposite of that schema, and what excludes it need not exclude that schema.

    Attributes:
        opposite: of the schema that it stands for; None where that is not known.
    """

    opposite: Node | None = None


def narrowed(node: Node, opposite: Node | None = None) -> Node:
    """Return a node as one that admits less than what it stands for."""
    made = Narrowed(anyOf=node["anyOf"] if isinstance(node, dict) and list(node) == ["anyOf"] else [node])
    made.opposite = opposite
    return made


def is_narrowed(node: Node) -> bool:
    """Tell whether a part of a schema admits less than what it stands for."""
    return isinstance(node, Narrowed) or any(map(is_narrowed, parts_of(node)))


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
            kept.setdefault(f"{isinstance(option, Narrowed)} {json.dumps(option)}", option)
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


def at_places(wanted: Node, n: int, places: Sequence[int], others: Node = True) -> list[Node]:
    """Return arrays with what is wanted at `n` of some places, and other items elsewhere: a grammar cannot count on."""
    beside = {} if others is True else {"items": others}
    if n == 0:
        return [{"type": "array", **beside}]
    return [
        {
            "type": "array",
            "prefixItems": [wanted if at in chosen else others for at in range(chosen[-1] + 1)],
            "minItems": chosen[-1] + 1,
            **beside,
        }
        for chosen in itertools.combinations(places, n)
    ]


def parts_of(node: Node) -> Iterator[Node]:
    """Yield the schemas directly inside a canonical one. (A property may be called `allOf`, an enum hold anything.)"""
    if not isinstance(node, dict):
        return
    for key in ("properties", "patternProperties"):
        yield from node.get(key, {}).values()
    for key in ("anyOf", "allOf", "prefixItems"):
        yield from node.get(key, [])
    for key in ("items", "additionalProperties"):
        if key in node:
            yield node[key]


def has_all_of(nodes: Iterable[Node]) -> bool:
    """Tell whether schemas are joined anywhere in these."""
    return any(isinstance(node, dict) and ("allOf" in node or has_all_of(parts_of(node))) for node in nodes)
