"""Keywords about arrays. Any thread."""

from __future__ import annotations

import itertools
import math
from typing import Any

from llm_local.structured.logic import MAX_PLACES, TYPES, Node, any_of, at_some_place, narrowed
from llm_local.structured.negation import negate
from llm_local.structured.rewriter import Handler, Subschema
from llm_local.structured.value_count import most_values

MAX_LISTED = 100


def _items(schema: Subschema, key: str, value: Any) -> None:
    if isinstance(value, list):
        schema.plain["prefixItems"] = schema.subs(key, value)
    else:
        schema.plain["items"] = schema.sub(value, key)


def _additional_items(schema: Subschema, key: str, value: Any) -> None:
    if isinstance(schema.source.get("items"), list):
        schema.plain["items"] = schema.sub(value, key)


def _prefix_items(schema: Subschema, key: str, value: Any) -> None:
    schema.plain[key] = schema.subs(key, value)


def _unique_items(schema: Subschema, key: str, value: Any) -> None:
    """Distinct items are listed where they are few, and watched elsewhere (`distinct.py`)."""
    most, least = schema.source.get("maxItems"), schema.source.get("minItems", 0)
    if value is not True or (isinstance(most, int) and most <= 1) or not _may_be_array(schema):
        return
    schema.rewriter.has_unique_items = True
    items = schema.source.get("items")
    values = None
    if isinstance(items, dict):
        node = schema.sub(items, "items")
        values = _finite(schema, node)
        if isinstance(least, int) and least > 1 and least > most_values(node, schema.rewriter.defs) + _n_first(schema):
            raise schema.bad(key, f"no value satisfies this schema: there are no {least} distinct items.")
    counted = all(isinstance(n, int) and n >= 0 for n in (least, 0 if most is None else most))
    if values is None or not counted or len(values) > MAX_LISTED or schema.source.get("prefixItems"):
        schema.plain[key] = True
        return
    top = min(len(values), most if isinstance(most, int) else len(values))
    if sum(math.perm(len(values), n) for n in range(least, top + 1)) > MAX_LISTED:
        schema.plain[key] = True
        return
    arrays = [list(way) for n in range(least, top + 1) for way in itertools.permutations(values, n)]
    others = [name for name in TYPES if name != "array"]
    schema.parts.append(any_of([{"type": others}, *([{"enum": arrays}] if arrays else [])]))


def _n_first(schema: Subschema) -> int:
    """Return how many places of an array have a schema of their own."""
    first = schema.source.get("prefixItems", [])
    return len(first) if isinstance(first, list) else 0


def _contains(schema: Subschema, key: str, value: Any) -> None:
    """One of the first items is what is wanted: its place is chosen, and what stands before and behind is free.

    Later places are valid, too, but not offered: a grammar cannot count on without end.
    """
    least, most = schema.source.get("minContains", 1), schema.source.get("maxContains")
    wanted = schema.sub(value, key)
    if most is not None or least not in (0, 1) or isinstance(least, bool):
        name = "maxContains" if most is not None else "minContains"
        raise schema.bad(name, "this keyword cannot be enforced; say which items there must be with 'prefixItems'.")
    if least == 0:
        return
    n_places = schema.source.get("maxItems", MAX_PLACES)
    n_places = min(MAX_PLACES, n_places) if isinstance(n_places, int) else MAX_PLACES
    others = [name for name in TYPES if name != "array"]
    unwanted = negate(wanted, schema.rewriter.defs)
    opposite = None if unwanted is None else {"type": "array", "items": unwanted}
    schema.parts.append(narrowed(any_of([{"type": others}, *at_some_place(wanted, 0, n_places)]), opposite))


def _may_be_array(schema: Subschema) -> bool:
    kinds = schema.source.get("type", "array")
    return "array" in (kinds if isinstance(kinds, list) else [kinds])


def _finite(schema: Subschema, node: Node) -> list[Any] | None:
    if isinstance(node, dict) and "$ref" in node:
        node = schema.rewriter.defs.get(node["$ref"].removeprefix("#/$defs/"))
    if not isinstance(node, dict):
        return None
    if "enum" in node and set(node) <= {"enum", "type"}:
        kinds = node.get("type")
        return list(node["enum"]) if kinds in (None, "string") or len(node) == 1 else None
    return [True, False] if node == {"type": "boolean"} else None


HANDLERS: dict[str, Handler] = {
    "items": _items,
    "additionalItems": _additional_items,
    "prefixItems": _prefix_items,
    "uniqueItems": _unique_items,
    "contains": _contains,
}
