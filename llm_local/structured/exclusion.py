"""Which canonical schemas exclude each other, provably. Any thread."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from llm_local.structured.logic import REF, TYPES, Defs, Narrowed, Node, type_of, value_key
from llm_local.structured.texts import patterns_are_apart
from llm_local.structured.validity import matches, surely_invalid

MAX_ALTERNATIVES = 64
MAX_DEPTH = 12
"""Deeper than this nothing is proved."""

MAX_ITEMS = 8
"""Places of an array that are compared."""

MAX_TRIED = 200
"""Values of an enum that are tried on another schema."""

MAX_STEPS = 3000
"""Pairs of conjunctions that one proof may look at."""


def exclusive(a: Node, b: Node, defs: Defs, depth: int = 0, steps: list[int] | None = None) -> bool:
    """Tell whether it is provable, within some steps, that no value is valid against both."""
    steps = [MAX_STEPS] if steps is None else steps
    if depth > MAX_DEPTH or steps[0] < 0:
        return False
    ways_a, ways_b = possible(a, defs), possible(b, defs)
    if ways_a is None or ways_b is None:
        return False
    return all(_ways_exclude(x, y, defs, depth, steps) for x in ways_a for y in ways_b)


def told_apart(branches: list[Node], defs: Defs) -> bool:
    """Tell whether one property has a value of its own in each branch, so that all of them exclude each other.

    What `exclusive` would find, too, but without looking at each pair. So are branches with listed values of their own.
    """
    if _are_listed_apart(branches):
        return True
    ways = []
    for branch in branches:
        found = possible(branch, defs)
        if found is None or len(found) != 1 or types_of(found[0]) != {"object"}:
            return False
        ways.append(found[0])
    names = [{name for part in way for name in part.get("required", [])} for way in ways]
    return any(_is_tag(name, ways) for name in (set.intersection(*names) if names else ()))


def _are_listed_apart(branches: list[Node]) -> bool:
    seen: set[str] = set()
    for branch in branches:
        values = _values([branch]) if isinstance(branch, dict) else None
        if values is None or seen & values:
            return False
        seen |= values
    return True


def _is_tag(name: str, ways: list[list[dict[str, Any]]]) -> bool:
    seen: set[str] = set()
    for way in ways:
        values = _values([node for node in _properties(name, way) if isinstance(node, dict)])
        if values is None or seen & values:
            return False
        seen |= values
    return True


def possible(node: Node, defs: Defs) -> list[list[dict[str, Any]]] | None:
    """Return alternatives that admit at least what is valid, of parts that admit less, too; None as `alternatives`."""
    return alternatives(node, defs, widened=True)


def alternatives(node: Node, defs: Defs, depth: int = 0, *, widened: bool = False) -> list[list[dict[str, Any]]] | None:
    """Return a schema as alternatives of conjunctions of plain schemas; None when there are too many or too deep.

    Args:
        widened: parts that stand for more than they admit (`Narrowed`) count as if they admitted everything.
    """
    if node is False:
        return []
    if node is True or (widened and isinstance(node, Narrowed)):
        return [[]]
    if depth > MAX_DEPTH:
        return None
    if "$ref" in node:
        target = defs.get(node["$ref"].removeprefix(REF))
        return None if target is None else alternatives(target, defs, depth + 1, widened=widened)
    if "anyOf" in node:
        out: list[list[dict[str, Any]]] = []
        for option in node["anyOf"]:
            found = alternatives(option, defs, depth + 1, widened=widened)
            if found is None:
                return None
            out += found
        return out if len(out) <= MAX_ALTERNATIVES else None
    if "allOf" not in node:
        return [[node]]
    product: list[list[dict[str, Any]]] = [[]]
    for part in node["allOf"]:
        found = alternatives(part, defs, depth + 1, widened=widened)
        if found is None or len(product) * len(found) > MAX_ALTERNATIVES:
            return None
        product = [left + right for left in product for right in found]
    return product


def known(node: dict[str, Any], defs: Defs) -> bool:
    """Tell whether the definition that a reference names is translated already (a recursive one may not be)."""
    return defs.get(node["$ref"].removeprefix(REF)) is not None


def types_of(way: list[dict[str, Any]]) -> set[str]:
    """Return the types that values of a conjunction of plain schemas may have."""
    types = set(TYPES)
    for part in way:
        if "type" in part:
            named = part["type"] if isinstance(part["type"], list) else [part["type"]]
            types &= {"number" if name == "integer" else name for name in named}
        if "enum" in part:
            types &= {type_of(value) for value in part["enum"]}
    return types


def _ways_exclude(a: list[dict[str, Any]], b: list[dict[str, Any]], defs: Defs, depth: int, steps: list[int]) -> bool:
    steps[0] -= 1
    values_a, values_b = _values(a), _values(b)
    if values_a is not None and values_b is not None and not values_a & values_b:
        return True
    if _refuses(b, values_a, steps) or _refuses(a, values_b, steps):
        return True
    return all(_exclude_as(kind, a, b, defs, depth, steps) for kind in types_of(a) & types_of(b))


def _refuses(way: list[dict[str, Any]], keys: set[str] | None, steps: list[int]) -> bool:
    """Tell whether none of these values is valid against a conjunction."""
    if keys is None or len(keys) > MAX_TRIED:
        return False
    # (Each is looked at in all its parts.)
    steps[0] -= len(keys) + sum(map(len, keys)) // 10
    if steps[0] < 0:
        return False
    return all(any(surely_invalid(json.loads(key), part) for part in way) for key in keys)


def _values(way: list[dict[str, Any]]) -> set[str] | None:
    sets = [{value_key(value) for value in part["enum"]} for part in way if "enum" in part]
    return set.intersection(*sets) if sets else None


def _exclude_as(
    kind: str, a: list[dict[str, Any]], b: list[dict[str, Any]], defs: Defs, depth: int, steps: list[int]
) -> bool:
    """Tell whether no value of this one type is valid against both."""
    parts = a + b
    if kind == "number":
        return _largest(parts, "minimum", "exclusiveMinimum") > _smallest(parts, "maximum", "exclusiveMaximum")
    if kind == "string":
        return _largest(parts, "minLength") > _smallest(parts, "maxLength") or _texts_exclude(a, b, steps)
    if kind == "array":
        least = _largest(parts, "minItems")
        return least > _smallest(parts, "maxItems") or any(
            exclusive(x, y, defs, depth + 1, steps)
            for at in range(int(min(max(least, 0), MAX_ITEMS)))
            for x in _items(at, a)
            for y in _items(at, b)
        )
    if kind == "object":
        if _largest(parts, "minProperties") > _smallest(parts, "maxProperties"):
            return True
        required = dict.fromkeys(name for part in parts for name in part.get("required", []))
        return any(_exclude_at(name, a, b, defs, depth, steps) for name in required)
    return False


def _texts_exclude(a: list[dict[str, Any]], b: list[dict[str, Any]], steps: list[int]) -> bool:
    for one, other in itertools.product(a, b):
        steps[0] -= 1
        if "pattern" in one and "pattern" in other and patterns_are_apart(one["pattern"], other["pattern"]):
            return True
    return False


def _items(at: int, way: list[dict[str, Any]]) -> list[Node]:
    """Return schemas that an array's item in this place must satisfy."""
    found = []
    for part in way:
        first = part.get("prefixItems", [])
        found.append(first[at] if at < len(first) else part.get("items", True))
    return found


def _exclude_at(
    name: str, a: list[dict[str, Any]], b: list[dict[str, Any]], defs: Defs, depth: int, steps: list[int]
) -> bool:
    left, right = _properties(name, a), _properties(name, b)
    return any(exclusive(x, y, defs, depth + 1, steps) for x in left for y in right) or any(
        node is False for node in (*left, *right)
    )


def _properties(name: str, way: list[dict[str, Any]]) -> list[Node]:
    """Return schemas that the property's value must satisfy; not all of them when patterns may match it."""
    out = []
    for part in way:
        if name in part.get("properties", {}):
            out.append(part["properties"][name])
        elif "additionalProperties" in part and not any(
            _may_match(pattern, name) for pattern in part.get("patternProperties", {})
        ):
            out.append(part["additionalProperties"])
    return out or [True]


def _may_match(pattern: str, name: str) -> bool:
    # (What readers disagree about is not among these characters.)
    return not (name.isascii() and name.isprintable() and matches(pattern, name) is False)


def _largest(parts: Iterable[dict[str, Any]], *keywords: str) -> float:
    return max((part[key] for part in parts for key in keywords if key in part), default=float("-inf"))


def _smallest(parts: Iterable[dict[str, Any]], *keywords: str) -> float:
    return min((part[key] for part in parts for key in keywords if key in part), default=float("inf"))
