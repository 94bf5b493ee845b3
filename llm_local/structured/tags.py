"""What tells the branches of a `oneOf` apart, types or a property, read from the schema as it is written. Any thread.

A branch may refer to a definition that is only half translated, because it contains the `oneOf` itself (a syntax tree).
What is looked for is plain to see all the same: `"kind": {"const": "add"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.logic import value_key
from llm_local.structured.look_ahead import Pattern
from llm_local.structured.rewriter import Subschema
from llm_local.structured.texts import is_never_found
from llm_local.structured.validity import matches

MAX_PARTS = 50
"""Schemas joined in one branch (`$ref`, `allOf`) that are looked at."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A property with values of its own in each branch.

    Attributes:
        name: of the property.
        certain: whether each branch is an object that has it.
        declared: whether the schema says that it tells the branches apart (OpenAPI's `discriminator`).
    """

    name: str
    certain: bool
    declared: bool


def tag_of(schema: Subschema, branches: list[Any]) -> Tag | None:
    """Return the tag of the branches of a `oneOf`, or None where there is none."""
    joined = [list(_parts(schema, branch)) for branch in branches]
    discriminator = schema.source.get("discriminator")
    declared = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
    found = [
        Tag(name, all(_has_for_certain(parts, name) for parts in joined), name == declared)
        for name in _names(joined[0] if joined else [])
        if _are_apart(_values(schema, parts, name) for parts in joined)
    ]
    return min(found, key=lambda tag: (not tag.declared, not tag.certain), default=None)


def types_are_apart(schema: Subschema, branches: Iterable[Any]) -> bool:
    """Tell whether each branch has types of its own."""
    return _are_apart(_types(list(_parts(schema, branch))) for branch in branches)


def names_are_apart(schema: Subschema, one: Any, other: Any) -> bool:
    """Tell whether a property that one branch needs is forbidden by the other one, or has another type there.

    One of them must be about objects alone.
    """
    parts, others = list(_parts(schema, one)), list(_parts(schema, other))
    if not any(part.get("type") == "object" for part in (*parts, *others)):
        return False
    return any(_are_apart_at(schema, name, parts, others) for name in _needed([*parts, *others]))


def _needed(parts: list[dict[str, Any]]) -> set[str]:
    lists = [part["required"] for part in parts if isinstance(part.get("required"), list)]
    return {name for names in lists for name in names if isinstance(name, str)}


def _are_apart_at(schema: Subschema, name: str, parts: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    one, other = (list(_of_property(name, some)) for some in (parts, others))
    return False in (*one, *other) or types_are_apart(schema, [{"allOf": one}, {"allOf": other}])


def _of_property(name: str, parts: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield schemas that the property's value must satisfy, not always all of them."""
    for part in parts:
        declared, patterns = part.get("properties", {}), part.get("patternProperties", {})
        if not isinstance(declared, dict) or not isinstance(patterns, dict):
            continue
        if name in declared:
            yield declared[name]
            continue
        try:
            found = {Pattern.of(pattern, ""): node for pattern, node in patterns.items()}
        except InvalidSchema:
            continue
        yield from (node for pattern, node in found.items() if matches(pattern, name))
        if all(is_never_found(pattern, name) for pattern in found):
            yield part.get("additionalProperties", True)


def _types(parts: list[dict[str, Any]]) -> set[str] | None:
    for part in parts:
        if isinstance(part.get("type"), str | list):
            named = part["type"] if isinstance(part["type"], list) else [part["type"]]
            return {"number" if name == "integer" else str(name) for name in named}
    return None


def _parts(schema: Subschema, node: Any) -> Iterator[dict[str, Any]]:
    """Yield schemas that all hold for a value that is valid against this one, not always all of them."""
    stack, n_parts = [node], 0
    while stack and n_parts < MAX_PARTS:
        node, n_parts = stack.pop(), n_parts + 1
        if not isinstance(node, dict):
            continue
        if "$ref" in node:
            stack.append(schema.rewriter.original(node["$ref"], node, schema.where))
            if schema.rewriter.ref_stands_alone:
                continue
        stack += node["allOf"] if isinstance(node.get("allOf"), list) else []
        yield node


def _names(parts: list[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        if isinstance(part.get("properties"), dict):
            yield from part["properties"]


def _has_for_certain(parts: list[dict[str, Any]], name: str) -> bool:
    required = any(isinstance(part.get("required"), list) and name in part["required"] for part in parts)
    return required and any(part.get("type") == "object" for part in parts)


def _values(schema: Subschema, parts: list[dict[str, Any]], name: str) -> set[str] | None:
    """Return keys of the only values that the property may have, or None."""
    for part in parts:
        properties = part.get("properties")
        if isinstance(properties, dict) and name in properties:
            for node in _parts(schema, properties[name]):
                if "const" in node:
                    return {value_key(node["const"])}
                if isinstance(node.get("enum"), list):
                    return set(map(value_key, node["enum"]))
    return None


def _are_apart(values: Iterable[set[str] | None]) -> bool:
    seen: set[str] = set()
    for some in values:
        if not some or seen & some:
            return False
        seen |= some
    return True
