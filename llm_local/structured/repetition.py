"""Where `uniqueItems` of one branch would leave another branch without a value. Any thread.

Which branch of an `anyOf` an answer takes is not known while it is written, so `distinct.py` keeps an array distinct
where any branch asks for that. It is stricter than the schema, and fine, unless another branch needs repetition: two
items or more, of fewer values.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from llm_local.structured.exclusion import alternatives, types_of
from llm_local.structured.logic import Defs, Node, all_of

MAX_DEPTH = 4
MAX_VALUES = 1000
MAX_PLACES = 2_000
"""Places that are looked at; beyond them nothing is found. (Each property of a syntax tree may be any node.)"""

Way = list[dict[str, Any]]
"""A conjunction of plain schemas."""

Key = tuple[int, ...]
"""The identities of those schemas."""


def contradicted(branches: list[Node], defs: Defs) -> str | None:
    """Return where (`/tags`, or "" for the value itself) a branch needs equal items that another one forbids."""
    return _contradicted(branches, defs, 0, set())


def _contradicted(nodes: list[Node], defs: Defs, depth: int, seen: set[tuple[int, frozenset[Key]]]) -> str | None:
    """Look at alternatives, and at their properties and items.

    Args:
        seen: what was looked at, and how deep: many ways lead to the same place of a syntax tree.
    """
    found = _ways(nodes, defs)
    place = depth, frozenset(found)
    if place in seen or len(seen) > MAX_PLACES:
        return None
    seen.add(place)
    ways = list(found.values())
    arrays = [way for way in ways if "array" in types_of(way)]
    unique = [way for way in arrays if _is_unique(way)]
    if unique and any(_must_repeat(way, defs) for way in arrays if not _is_unique(way)):
        return ""
    if len(ways) < 2 or depth > MAX_DEPTH:
        return None
    inner = {f"/{name}": [_property(way, name) for way in ways] for name in _shared_names(ways)}
    inner["/items"] = [_item(way) for way in arrays]
    for path, parts in inner.items():
        below = _contradicted(parts, defs, depth + 1, seen)
        if below is not None:
            return path + below
    return None


def _ways(nodes: list[Node], defs: Defs) -> dict[Key, Way]:
    """Return the alternatives of all nodes, each once: several may refer to the same definition."""
    found = [way for node in nodes for way in alternatives(node, defs) or []]
    return {tuple(map(id, way)): way for way in found}


def _is_unique(way: Way) -> bool:
    return any(part.get("uniqueItems") is True for part in way)


def _shared_names(ways: list[Way]) -> list[str]:
    named = Counter(name for way in ways for name in {name for part in way for name in part.get("properties", {})})
    return sorted(name for name, n in named.items() if n > 1)


def _property(way: Way, name: str) -> Node:
    return all_of([part["properties"][name] for part in way if name in part.get("properties", {})])


def _item(way: Way) -> Node:
    return all_of([part["items"] for part in way if "items" in part])


def _must_repeat(way: Way, defs: Defs) -> bool:
    """Tell whether an array needs more items than there are values for them."""
    least = max(part.get("minItems", 0) for part in way) if way else 0
    if least < 2:
        return False
    first: list[Node] = next((part["prefixItems"] for part in way if part.get("prefixItems")), [])
    values = _count(first[:least], defs) + (_count([_item(way)], defs) if least > len(first) else 0)
    return values < least


def _count(nodes: list[Node], defs: Defs) -> int:
    """Return how many values there are, at most; from `MAX_VALUES` on they count as many."""
    keys: set[str] = set()
    for way in _ways(nodes, defs).values():
        found = _values(way)
        if found is None:
            return MAX_VALUES
        keys |= found
    return len(keys)


def _values(way: Way) -> set[str] | None:
    listed = [{repr(value) for value in part["enum"]} for part in way if "enum" in part]
    if listed:
        return set.intersection(*listed)
    kinds = types_of(way)
    if not kinds <= {"boolean", "null"}:
        return None
    constants = {"boolean": {"True", "False"}, "null": {"None"}}
    return set().union(*(constants[kind] for kind in kinds))
