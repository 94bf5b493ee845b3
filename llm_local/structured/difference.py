"""What one schema admits and another one surely does not, where the whole opposite of the other cannot be written.

Some values that only the first one admits are left out (objects that have a property, but with another value than the
other schema wants), never all of one type. Any thread.
"""

from __future__ import annotations

from typing import Any

from llm_local.structured.exclusion import MAX_DEPTH, alternatives, exclusive, known, possible, types_of
from llm_local.structured.logic import REF, TYPES, Defs, Narrowed, Node, all_of, any_of
from llm_local.structured.negation import negate, negate_keyword

ABOUT = {
    "number": frozenset({"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}),
    "object": frozenset(
        {"properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"}
    ),
}
"""Keywords that may refuse values of a type. (An `integer` is a `number` here.)"""


def difference(node: Node, other: Node, defs: Defs, names: frozenset[str] | None = None) -> Node | None:
    """Return what to join with `node`, so that nothing is left that is valid against `other`; None when too little is.

    Args:
        names: the only names of properties that `node` lets be (`closed_names`), where that is known.
    """
    ways = possible(node, defs)
    if ways is None:
        return None
    kinds = [kind for kind in TYPES if any(kind in types_of(way) for way in ways)]
    parts = {kind: all_of([{"type": kind}, node]) for kind in kinds}
    apart = [kind for kind in kinds if exclusive(parts[kind], other, defs)]
    rest = _Difference(node, defs, names).of(other, 0)
    for kind in kinds:
        if kind not in apart and exclusive(parts[kind], rest, defs) and not _admits_all(other, kind, defs):
            return None
    found = any_of([{"type": apart}, rest]) if apart else rest
    return None if found is False else found


def _admits_all(node: Node, kind: str, defs: Defs) -> bool:
    """Tell whether it is certain that all values of a type are valid."""
    ways = alternatives(node, defs) or []
    return any(all(_is_about_others(part, kind) for part in way) for way in ways)


def _is_about_others(part: dict[str, Any], kind: str) -> bool:
    return kind in types_of([part]) and "enum" not in part and not part.keys() & ABOUT.get(kind, frozenset())


class _Difference:
    """Walks the schema that is taken away."""

    def __init__(self, node: Node, defs: Defs, names: frozenset[str] | None) -> None:
        self._node = node
        self._defs = defs
        self._names = names

    def of(self, other: Node, depth: int, *, is_whole: bool = True) -> Node:
        """Return values that are surely not valid against a schema; False when none are known.

        Args:
            is_whole: whether it is about the value itself, and not about a part of it.
        """
        exact = negate(other, self._defs, depth, self._names if is_whole else None)
        if exact is not None:
            return exact
        if depth > MAX_DEPTH or isinstance(other, Narrowed):
            return False
        if "$ref" in other:
            target = self._defs[other["$ref"].removeprefix(REF)] if known(other, self._defs) else None
            return False if target is None else self.of(target, depth + 1, is_whole=is_whole)
        if "anyOf" in other:
            return all_of([self.of(part, depth + 1, is_whole=is_whole) for part in other["anyOf"]])
        if "allOf" in other:
            return any_of([self.of(part, depth + 1, is_whole=is_whole) for part in other["allOf"]])
        return any_of([self._of_keyword(key, value, other, depth, is_whole) for key, value in other.items()])

    def _of_keyword(self, key: str, value: Any, other: dict[str, Any], depth: int, is_whole: bool) -> Node:
        if key == "properties":
            return any_of([self._of_property(name, part, depth) for name, part in value.items()])
        if key == "items" and is_whole and "prefixItems" not in other and self._has_other_items(value):
            return {"type": "array", "minItems": 1}
        if key == "type" and "integer" in value and "number" not in value:
            # (Numbers that are no integers cannot be written.)
            rest = [name for name in TYPES if name not in value and name != "number"]
            return {"type": rest} if rest else False
        found = negate_keyword(key, value, other, self._defs, depth, self._names if is_whole else None)
        return False if found is None else found

    def _of_property(self, name: str, part: Node, depth: int) -> Node:
        found = self.of(part, depth + 1, is_whole=False)
        return found and {"type": "object", "properties": {name: found}, "required": [name]}

    def _has_other_items(self, items: Node) -> bool:
        """Whether no item of the arrays that are there is valid against a schema."""
        ways = [way for way in possible(self._node, self._defs) or [] if "array" in types_of(way)]
        return bool(ways) and all(
            any(
                exclusive(part.get("items", True), items, self._defs)
                and all(exclusive(first, items, self._defs) for first in part.get("prefixItems", []))
                for part in way
            )
            for way in ways
        )
