"""Which canonical schemas have finite values, and which references lead nowhere. Any thread."""

from __future__ import annotations

from typing import Any

from llm_local.structured.logic import REF, TYPES, Defs, Node, all_of, any_of


def looping(defs: Defs) -> str | None:
    """Return the name of a definition that refers to itself about the same value, which no validator can follow."""
    done: set[str] = set()
    for start in defs:
        stack: list[tuple[str, bool]] = [(start, False)]
        on_path: set[str] = set()
        while stack:
            name, leaving = stack.pop()
            if leaving:
                on_path.discard(name)
                done.add(name)
            elif name in on_path:
                return name
            elif name not in done:
                on_path.add(name)
                stack.append((name, True))
                stack += [(other, False) for other in _same_value(defs[name])]
    return None


def _same_value(node: Node) -> list[str]:
    """Return the definitions that a schema applies to the value itself."""
    if isinstance(node, bool):
        return []
    if "$ref" in node:
        return [node["$ref"].removeprefix(REF)]
    return [name for key in ("anyOf", "allOf") for part in node.get(key, []) for name in _same_value(part)]


def endless(defs: dict[str, Node]) -> set[str]:
    """Return the names of definitions that no finite value satisfies (each needs another one of itself)."""
    ending: set[str] = set()
    n_before = -1
    while n_before < len(ending):
        n_before = len(ending)
        for name, node in defs.items():
            # What was found in this round counts already: a chain of definitions takes one, as its end comes first.
            if name not in ending and can_end(node, ending):
                ending.add(name)
    return set(defs) - ending


def can_end(node: Node, ending: set[str]) -> bool:
    """Tell whether a finite value may satisfy the schema, given the definitions that have one."""
    if isinstance(node, bool):
        return node
    if "$ref" in node:
        return node["$ref"].removeprefix(REF) in ending
    if "anyOf" in node:
        return any(can_end(option, ending) for option in node["anyOf"])
    if "allOf" in node:
        return all(can_end(part, ending) for part in node["allOf"])
    kinds = node.get("type", list(TYPES))
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return any(_kind_can_end(kind, node, ending) for kind in kinds)


def _kind_can_end(kind: str, node: dict[str, Any], ending: set[str]) -> bool:
    if kind == "array":
        least = node.get("minItems", 0)
        first = node.get("prefixItems", [])
        needed = [*first[:least], *([node.get("items", True)] if least > len(first) else [])]
        return all(can_end(item, ending) for item in needed)
    if kind == "object":
        properties, rest = node.get("properties", {}), node.get("additionalProperties", True)
        if node.get("patternProperties"):
            rest = True
        return all(can_end(properties.get(name, rest), ending) for name in node.get("required", []))
    return True


def without(node: Node, dead: set[str]) -> Node:
    """Return a schema with `false` in place of references to these definitions, which nothing satisfies.

    (For such a reference llguidance 1.9 calls a whole schema unsatisfiable, also where a property may be left out.)
    """
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return False if node["$ref"].removeprefix(REF) in dead else node
    for key, join in (("anyOf", any_of), ("allOf", all_of)):
        if key in node:
            return join([without(part, dead) for part in node[key]])
    return {key: _without(key, value, dead) for key, value in node.items()}


def _without(key: str, value: Any, dead: set[str]) -> Any:
    if key in ("properties", "patternProperties"):
        return {name: without(node, dead) for name, node in value.items()}
    if key == "prefixItems":
        return [without(node, dead) for node in value]
    return without(value, dead) if key in ("items", "additionalProperties") else value
