"""Keywords about arrays. Any thread."""

from __future__ import annotations

import itertools
import math
from typing import Any

from llm_local.structured.logic import MAX_PLACES, TYPES, Node, any_of, at_places, narrowed
from llm_local.structured.negation import negate
from llm_local.structured.rewriter import Handler, Subschema
from llm_local.structured.scalars import whole_number
from llm_local.structured.value_count import most_values

MAX_LISTED = 100
MAX_SHORT = 24
"""Items of an array of which each may be one that it must contain."""

MAX_WANTED = 100


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
    """Some of the first items are what is wanted: their places are chosen, and what stands elsewhere is free.

    Where there may not be more of them, nothing else is wanted. Later places are valid, too, but not offered where the
    array may be long: a grammar cannot count on without end.
    """
    least = whole_number(schema, "minContains", schema.source.get("minContains", 1))
    most = schema.source.get("maxContains")
    wanted = schema.sub(value, key)
    if most is None and least == 0:
        return
    unwanted = negate(wanted, schema.rewriter.defs)
    n_wanted = range(least, least + 1)
    others: Node = True
    if most is not None:
        if unwanted is None:
            raise schema.bad("maxContains", "the opposite of 'contains' cannot be enforced; use 'prefixItems'.")
        n_wanted, others = range(least, whole_number(schema, "maxContains", most) + 1), unwanted
    places = range(_n_places(schema, n_wanted))
    ways = [way for n in n_wanted[: len(places) + 1] for way in at_places(wanted, n, places, others)]
    is_simple = most is None and least == 1 and unwanted is not None
    opposite = {"type": "array", "items": unwanted} if is_simple else None
    not_arrays = {"type": [name for name in TYPES if name != "array"]}
    schema.parts.append(narrowed(any_of([not_arrays, *ways]), opposite))


def _n_places(schema: Subschema, n_wanted: range) -> int:
    """Return at how many places items are looked for: all of a short array, else as many as few ways lead to."""
    least = n_wanted.start
    if least > MAX_WANTED:
        raise schema.bad("minContains", f"at most {MAX_WANTED} can be enforced.")
    longest = schema.source.get("maxItems")
    n_places: int = max(MAX_PLACES, least)
    if isinstance(longest, int) and longest <= MAX_SHORT:
        n_places = longest
    while n_places > least and sum(math.comb(n_places, n) for n in n_wanted[: n_places + 1]) > MAX_LISTED:
        n_places -= 1
    return n_places


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
