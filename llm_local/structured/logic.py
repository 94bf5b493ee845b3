"""What is provable about canonical schemas: which exclude each other, what the opposite of one is, which can end.

A canonical schema is a boolean or an object with only the keywords of `PLAIN`, `anyOf`, `allOf` and a `$ref` to
`#/$defs/NAME`; `schema.py` makes them. Any thread.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

Node = Any
Defs = Mapping[str, Node]

TYPES = ("null", "boolean", "number", "string", "array", "object")
REF = "#/$defs/"
MAX_ALTERNATIVES = 64
MAX_STEPS = 3000
"""Pairs of conjunctions that one proof may look at."""

MAX_DEPTH = 12
"""Deeper than this nothing is proved."""


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


# -- exclusion ------------------------------------------------------------------------------------------------------


def exclusive(a: Node, b: Node, defs: Defs, depth: int = 0, steps: list[int] | None = None) -> bool:
    """Tell whether it is provable, within some steps, that no value is valid against both."""
    steps = [MAX_STEPS] if steps is None else steps
    if depth > MAX_DEPTH or steps[0] < 0:
        return False
    ways_a, ways_b = alternatives(a, defs), alternatives(b, defs)
    if ways_a is None or ways_b is None:
        return False
    return all(_ways_exclude(x, y, defs, depth, steps) for x in ways_a for y in ways_b)


def told_apart(branches: list[Node], defs: Defs) -> bool:
    """Tell whether one property has a value of its own in each branch, so that all of them exclude each other.

    What `exclusive` would find, too, but without looking at each pair.
    """
    ways = []
    for branch in branches:
        found = alternatives(branch, defs)
        if found is None or len(found) != 1 or _types(found[0]) != {"object"}:
            return False
        ways.append(found[0])
    names = [{name for part in way for name in part.get("required", [])} for way in ways]
    return any(_is_tag(name, ways) for name in (set.intersection(*names) if names else ()))


def _is_tag(name: str, ways: list[list[dict[str, Any]]]) -> bool:
    seen: set[str] = set()
    for way in ways:
        values = _values([node for node in _properties(name, way) if isinstance(node, dict)])
        if values is None or seen & values:
            return False
        seen |= values
    return True


def alternatives(node: Node, defs: Defs, depth: int = 0) -> list[list[dict[str, Any]]] | None:
    """Return a schema as alternatives of conjunctions of plain schemas; None when there are too many or too deep."""
    if node is False:
        return []
    if node is True:
        return [[]]
    if depth > MAX_DEPTH:
        return None
    if "$ref" in node:
        return alternatives(defs.get(node["$ref"].removeprefix(REF)), defs, depth + 1) if _known(node, defs) else None
    if "anyOf" in node:
        out: list[list[dict[str, Any]]] = []
        for option in node["anyOf"]:
            found = alternatives(option, defs, depth + 1)
            if found is None:
                return None
            out += found
        return out if len(out) <= MAX_ALTERNATIVES else None
    if "allOf" not in node:
        return [[node]]
    product: list[list[dict[str, Any]]] = [[]]
    for part in node["allOf"]:
        found = alternatives(part, defs, depth + 1)
        if found is None or len(product) * len(found) > MAX_ALTERNATIVES:
            return None
        product = [left + right for left in product for right in found]
    return product


def _known(node: dict[str, Any], defs: Defs) -> bool:
    return defs.get(node["$ref"].removeprefix(REF)) is not None


def _types(way: list[dict[str, Any]]) -> set[str]:
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
    return all(_exclude_as(kind, a, b, defs, depth, steps) for kind in _types(a) & _types(b))


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
    if kind in ("string", "array"):
        least, most = ("minLength", "maxLength") if kind == "string" else ("minItems", "maxItems")
        return _largest(parts, least) > _smallest(parts, most)
    if kind == "object":
        if _largest(parts, "minProperties") > _smallest(parts, "maxProperties"):
            return True
        required = dict.fromkeys(name for part in parts for name in part.get("required", []))
        return any(_exclude_at(name, a, b, defs, depth, steps) for name in required)
    return False


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
        elif "additionalProperties" in part and not part.get("patternProperties"):
            out.append(part["additionalProperties"])
    return out or [True]


def _largest(parts: Iterable[dict[str, Any]], *keywords: str) -> float:
    return max((part[key] for part in parts for key in keywords if key in part), default=float("-inf"))


def _smallest(parts: Iterable[dict[str, Any]], *keywords: str) -> float:
    return min((part[key] for part in parts for key in keywords if key in part), default=float("inf"))


# -- negation -------------------------------------------------------------------------------------------------------


def closed_names(node: Node, defs: Defs) -> frozenset[str] | None:
    """Return the only names that properties may have, or None where there may be others."""
    ways = alternatives(node, defs)
    if ways is None:
        return None
    names: frozenset[str] = frozenset()
    for way in ways:
        closed = [part for part in way if part.get("additionalProperties") is False and not _patterns(part)]
        if closed:
            names |= frozenset(closed[0].get("properties", {}))
        elif "object" in _types(way):
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
    if depth > MAX_DEPTH:
        return None
    if "$ref" in node:
        target = defs[node["$ref"].removeprefix(REF)] if _known(node, defs) else None
        return None if target is None else negate(target, defs, depth + 1, names)
    if "anyOf" in node or "allOf" in node:
        is_any = "anyOf" in node
        parts = [negate(part, defs, depth + 1, names) for part in node["anyOf" if is_any else "allOf"]]
        if any(part is None for part in parts):
            return None
        return all_of(parts) if is_any else any_of(parts)
    opposites = []
    for key, value in node.items():
        if key == "additionalProperties" and value is False and names is not None and not _patterns(node):
            others = sorted(names - set(node.get("properties", {})))
            opposite: Node | None = any_of([{"type": "object", "required": [name]} for name in others])
        else:
            opposite = _negate_keyword(key, value, node, defs, depth)
        if opposite is None:
            return None
        opposites.append(opposite)
    return any_of(opposites)


def _negate_keyword(key: str, value: Any, node: dict[str, Any], defs: Defs, depth: int) -> Node | None:
    """Return what fails this keyword."""
    match key:
        case "type":
            return _other_types(value)
        case "enum":
            return _other_values(value)
        case "minLength" | "minItems" | "minProperties":
            kind = {"minLength": "string", "minItems": "array", "minProperties": "object"}[key]
            return {"type": kind, key.replace("min", "max"): value - 1} if value > 0 else False
        case "maxLength" | "maxItems":
            return {"type": "string" if key == "maxLength" else "array", key.replace("max", "min"): value + 1}
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            opposite = {
                "minimum": "exclusiveMaximum",
                "maximum": "exclusiveMinimum",
                "exclusiveMinimum": "maximum",
                "exclusiveMaximum": "minimum",
            }
            return {"type": "number", opposite[key]: value}
        case "required":
            return any_of([{"type": "object", "properties": {name: False}} for name in value])
        case "properties":
            return _other_properties(value, defs, depth)
        case "additionalProperties" if value is True:
            return False
    # (A format is enforced, but to others it is an annotation that nothing fails: its opposite is not certain.)
    return None


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


def other_strings(strings: list[str]) -> str:
    """Return a pattern (Rust) that matches all strings but these."""
    trie: dict[str, Any] = {}
    for text in strings:
        at = trie
        for char in text:
            at = at.setdefault(char, {})
        at[""] = {}
    return f"^(?:{_not_in(trie)})$"


def _not_in(trie: dict[str, Any]) -> str:
    branches = [char for char in trie if char]
    options = [] if "" in trie else [""]
    listed = "".join(f"\\u{{{ord(char):x}}}" for char in branches)
    options.append((f"[^{listed}]" if listed else r"[\s\S]") + r"[\s\S]*")
    options += [f"\\u{{{ord(char):x}}}(?:{_not_in(trie[char])})" for char in branches]
    return "|".join(options)


def _other_properties(properties: dict[str, Node], defs: Defs, depth: int) -> Node | None:
    options = []
    for name, node in properties.items():
        opposite = negate(node, defs, depth + 1)
        if opposite is None:
            return None
        if opposite is not False:
            options.append({"type": "object", "properties": {name: opposite}, "required": [name]})
    return any_of(options)


# -- building -------------------------------------------------------------------------------------------------------


def any_of(options: list[Node]) -> Node:
    """Return the union of schemas."""
    kept: dict[str, Node] = {}
    for option in options:
        if option is True:
            return True
        if option is not False:
            kept.setdefault(json.dumps(option), option)
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


def has_all_of(node: Node) -> bool:
    """Tell whether schemas are joined anywhere in this one."""
    if isinstance(node, list):
        return any(map(has_all_of, node))
    return isinstance(node, dict) and ("allOf" in node or any(map(has_all_of, node.values())))


# -- what refers to itself -----------------------------------------------------------------------------------------


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


# -- what can end ---------------------------------------------------------------------------------------------------


def endless(defs: dict[str, Node]) -> set[str]:
    """Return the names of definitions that no finite value satisfies (each needs another one of itself)."""
    ending: set[str] = set()
    while True:
        new = {name for name, node in defs.items() if name not in ending and can_end(node, ending)}
        if not new:
            return set(defs) - ending
        ending |= new


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
