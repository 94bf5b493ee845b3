"""The opposite of a canonical schema, where it can be written. Any thread."""

from __future__ import annotations

import itertools
from typing import Any

from llm_local.structured.exclusion import MAX_DEPTH, known, possible, types_of
from llm_local.structured.logic import (
    MAX_PLACES,
    REF,
    TYPES,
    Defs,
    Narrowed,
    Node,
    all_of,
    any_of,
    at_places,
    narrowed,
    type_of,
)
from llm_local.structured.look_ahead import OtherTexts, Pattern
from llm_local.structured.other_strings import OtherStrings, other_strings


def closed_names(node: Node, defs: Defs) -> frozenset[str] | None:
    """Return the only names that properties may have, or None where there may be others."""
    ways = possible(node, defs)
    if ways is None:
        return None
    names: frozenset[str] = frozenset()
    for way in ways:
        closed = [part for part in way if part.get("additionalProperties") is False and not _patterns(part)]
        if closed:
            names |= frozenset(closed[0].get("properties", {}))
        elif "object" in types_of(way):
            return None
    return names


def _patterns(node: dict[str, Any]) -> bool:
    return bool(node.get("patternProperties"))


def negate(node: Node, defs: Defs, depth: int = 0, names: frozenset[str] | None = None) -> Node | None:
    """Return the schema of all other values, or None when it cannot be written with canonical keywords.

    Args:
        names: the only names of properties that need be thought of (`closed_names`), where that is known.
    """
    if isinstance(node, bool):
        return not node
    if isinstance(node, Narrowed):
        return node.opposite
    if depth > MAX_DEPTH:
        return None
    if "$ref" in node:
        target = defs[node["$ref"].removeprefix(REF)] if known(node, defs) else None
        return None if target is None else negate(target, defs, depth + 1, names)
    if "anyOf" in node or "allOf" in node:
        is_any = "anyOf" in node
        parts = [negate(part, defs, depth + 1, names) for part in node["anyOf" if is_any else "allOf"]]
        if any(part is None for part in parts):
            return None
        return all_of(parts) if is_any else any_of(parts)
    opposites = []
    for key, value in node.items():
        opposite = negate_keyword(key, value, node, defs, depth, names)
        if opposite is None:
            return None
        opposites.append(opposite)
    return any_of(opposites)


def negate_keyword(
    key: str, value: Any, node: dict[str, Any], defs: Defs, depth: int, names: frozenset[str] | None = None
) -> Node | None:
    """Return what fails this keyword, or None when it cannot be written."""
    match key:
        case "type":
            return _other_types(value)
        case "enum":
            return _other_values(value)
        case "minLength" | "minItems" | "minProperties":
            kind = {"minLength": "string", "minItems": "array", "minProperties": "object"}[key]
            return {"type": kind, key.replace("min", "max"): value - 1} if value > 0 else False
        case "pattern" if isinstance(value, OtherStrings):
            return {"type": "string", "enum": value.strings}
        case "pattern" if isinstance(value, OtherTexts):
            return {"type": "string", "pattern": value.pattern}
        case "pattern":
            opposite = OtherTexts.than(value) if isinstance(value, Pattern) else None
            return None if opposite is None else {"type": "string", "pattern": opposite}
        case "maxLength" | "maxItems":
            return {"type": "string" if key == "maxLength" else "array", key.replace("max", "min"): value + 1}
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            bounds = {
                "minimum": "exclusiveMaximum",
                "maximum": "exclusiveMinimum",
                "exclusiveMinimum": "maximum",
                "exclusiveMaximum": "minimum",
            }
            return {"type": "number", bounds[key]: value}
        case "required":
            return any_of([{"type": "object", "properties": {name: False}} for name in value])
        case "properties":
            possible = {name: item for name, item in value.items() if names is None or name in names}
            return _other_properties(possible, defs, depth)
        case "items":
            others_of = negate(value, defs, depth + 1)
            return None if others_of is None else _some_item(others_of, value, node)
        case "additionalProperties" if value is True:
            return False
        case "additionalProperties" if value is False and names is not None and not _patterns(node):
            other_names = sorted(names - set(node.get("properties", {})))
            return any_of([{"type": "object", "required": [name]} for name in other_names])
    # (A format is enforced, but to others it is an annotation that nothing fails: its opposite is not certain.)
    return None


def _some_item(other: Node, item: Node, node: dict[str, Any]) -> Node:
    """Return the arrays in which some item is another one, behind those that `prefixItems` speaks of."""
    n_first = len(node.get("prefixItems", []))
    opposite: Node = {"items": item} if n_first == 0 else None
    return narrowed(any_of(at_places(other, 1, range(n_first, n_first + MAX_PLACES))), opposite)


def _other_types(named: Any) -> Node | None:
    names = set(named if isinstance(named, list) else [named])
    if "integer" in names and "number" not in names:
        return None
    rest = [name for name in TYPES if name not in names]
    return {"type": rest} if rest else False


def _other_values(values: list[Any]) -> Node | None:
    """All values but some: what is left of each type."""
    kinds = {type_of(value) for value in values}
    if kinds & {"array", "object"}:
        return None
    options: list[Node] = []
    rest = [name for name in TYPES if name not in kinds]
    if rest:
        options.append({"type": rest})
    if "boolean" in kinds:
        options += [{"enum": [flag]} for flag in (True, False) if not any(flag is value for value in values)]
    if "number" in kinds:
        numbers = sorted(value for value in values if type_of(value) == "number")
        options.append({"type": "number", "exclusiveMaximum": numbers[0]})
        options += [
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
            for low, high in itertools.pairwise(numbers)
            if low < high
        ]
        options.append({"type": "number", "exclusiveMinimum": numbers[-1]})
    if "string" in kinds:
        strings = [value for value in values if isinstance(value, str)]
        if sum(map(len, strings)) > 2000:
            return None
        options.append({"type": "string", "pattern": other_strings(strings)})
    return any_of(options)


def _other_properties(properties: dict[str, Node], defs: Defs, depth: int) -> Node | None:
    options = []
    for name, node in properties.items():
        opposite = negate(node, defs, depth + 1)
        if opposite is None:
            return None
        if opposite is not False:
            options.append({"type": "object", "properties": {name: opposite}, "required": [name]})
    return any_of(options)
