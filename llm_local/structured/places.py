"""The schemas that may hold at each place of a JSON text. Workers, then the engine thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

from llm_local.structured.logic import REF, Defs, Node, parts_of
from llm_local.structured.schema import Schema

Plain = tuple[dict[str, Any], Defs]
"""A schema without `$ref`, `anyOf` and `allOf`, and the definitions that its parts refer to."""

ARGUMENTS = ("arguments", "parameters")


class Places:
    """Which schemas hold at each place of a text, as far as they may: all branches of an `anyOf` are followed.

    Args:
        schemas: of the JSON value that the text is; it is valid against at least one of them.
        calls: schemas of the arguments of functions, where the text may be calls
            (`{"name": ..., "arguments": {...}}` with markup around them).
        opened: the function in whose call the text begins, behind its name.
    """

    def __init__(
        self, schemas: SequenceOf[Schema], calls: Mapping[str, Schema] | None = None, opened: str | None = None
    ) -> None:
        self._arguments = {name: _plain([(one.root, one.defs)]) for name, one in (calls or {}).items()}
        self._root = _plain([(schema.root, schema.defs) for schema in schemas])
        self._first = self._root if opened is None else self._arguments[opened]

    def of_value(self, index: int) -> tuple[Plain, ...]:
        """Return the schemas of a value that stands in no other one."""
        return self._first if index == 0 else self._root

    def of_call(self, key: str, name: str | None) -> tuple[Plain, ...]:
        """Return the schemas of a property of a call of the function, if that is what an object is."""
        return self._arguments.get(name or "", ()) if key in ARGUMENTS else ()

    def of_property(self, nodes: tuple[Plain, ...], name: str) -> tuple[Plain, ...]:
        """Return the schemas of a property's value."""
        found: list[tuple[Node, Defs]] = []
        for node, defs in nodes:
            declared = node.get("properties", {})
            found.append((declared[name] if name in declared else node.get("additionalProperties", True), defs))
            found += [(value, defs) for value in node.get("patternProperties", {}).values()]
        return _plain(found)

    def of_item(self, nodes: tuple[Plain, ...], index: int) -> tuple[Plain, ...]:
        """Return the schemas of an array's item."""
        found: list[tuple[Node, Defs]] = []
        for node, defs in nodes:
            first = node.get("prefixItems", [])
            found.append((first[index] if index < len(first) else node.get("items", True), defs))
        return _plain(found)


def _plain(nodes: list[tuple[Node, Defs]]) -> tuple[Plain, ...]:
    """Return the plain schemas that nodes consist of."""
    out: dict[int, Plain] = {}
    seen: set[int] = set()
    while nodes:
        node, defs = nodes.pop()
        if isinstance(node, bool) or id(node) in seen:
            continue
        seen.add(id(node))
        if "$ref" in node:
            nodes.append((defs[node["$ref"].removeprefix(REF)], defs))
        elif "anyOf" in node or "allOf" in node:
            nodes += [(part, defs) for part in (*node.get("anyOf", []), *node.get("allOf", []))]
        else:
            out[id(node)] = (node, defs)
    return tuple(out.values())


def has_unique_items(nodes: Iterable[Node]) -> bool:
    """Tell whether arrays of distinct items are asked for anywhere in canonical schemas."""
    return any(
        isinstance(node, dict) and (node.get("uniqueItems") is True or has_unique_items(parts_of(node)))
        for node in nodes
    )
