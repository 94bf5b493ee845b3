"""Whether single values are valid against canonical schemas, as far as that is certain. Any thread."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from typing import Any

from llm_local.structured.logic import Narrowed, Node, type_of, value_key
from llm_local.structured.other_strings import OtherStrings
from llm_local.structured.texts import is_never_found

_ESCAPE = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|x([0-9a-f]{2})|(.))", re.DOTALL)
_LETTERS = "sStnrfv"
"""Escapes that both languages read alike; `[\\s\\S]` is the only use of the first two."""

# Python's engine goes back and forth: repetitions of groups may take it exponential time, others polynomial.
MAX_REPETITIONS = 3
SHORT, LONG = 14, 40
"""Characters of a text that is tried on a pattern with groups, and without."""


def surely_invalid(value: Any, node: Node) -> bool:
    """Tell whether a schema, or what it stands for, provably refuses a value."""
    return _refuses(value, node, {})


def _refuses(value: Any, node: Node, keys: dict[int, set[str]]) -> bool:
    """See `surely_invalid`.

    Args:
        keys: of the enums that were looked at, by the ids of their nodes.
    """
    if isinstance(node, bool | Narrowed):
        return node is False
    if "anyOf" in node:
        return all(_refuses(value, option, keys) for option in node["anyOf"])
    if "allOf" in node:
        return any(_refuses(value, part, keys) for part in node["allOf"])
    kind = type_of(value)
    if "type" in node and not _has_type(value, kind, node["type"]):
        return True
    if "enum" in node:
        if id(node) not in keys:
            keys[id(node)] = set(map(value_key, node["enum"]))
        if value_key(value) not in keys[id(node)]:
            return True
    if kind == "string":
        # (Lengths count characters.)
        wrong = len(value) < node.get("minLength", 0) or len(value) > node.get("maxLength", len(value))
        return wrong or ("pattern" in node and _is_refused(value, node["pattern"]))
    if kind == "number":
        low, high = node.get("minimum", value), node.get("maximum", value)
        above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
        return value < low or value > high or (above is not None and value <= above) or _at_least(value, below)
    if kind == "array":
        return _items_are_refused(value, node, keys)
    return kind == "object" and _properties_are_refused(value, node, keys)


def _items_are_refused(items: list[Any], node: dict[str, Any], keys: dict[int, set[str]]) -> bool:
    if not node.get("minItems", 0) <= len(items) <= node.get("maxItems", len(items)):
        return True
    nodes = itertools.chain(node.get("prefixItems", []), itertools.repeat(node.get("items", True)))
    return any(_refuses(item, part, keys) for item, part in zip(items, nodes, strict=False))


def _properties_are_refused(members: dict[str, Any], node: dict[str, Any], keys: dict[int, set[str]]) -> bool:
    if any(name not in members for name in node.get("required", [])):
        return True
    declared = node.get("properties", {})
    others = True if node.get("patternProperties") else node.get("additionalProperties", True)
    return any(_refuses(value, declared.get(name, others), keys) for name, value in members.items())


def _is_refused(text: str, pattern: str) -> bool:
    if isinstance(pattern, OtherStrings):
        return text in pattern.strings
    found = matches(pattern, text)
    # (Readers do not differ about these characters.)
    is_read_alike = found is not None and text.isascii() and text.isprintable()
    return not found if is_read_alike else is_never_found(pattern, text)


def _at_least(value: float, bound: float | None) -> bool:
    return bound is not None and value >= bound


def _has_type(value: Any, kind: str, named: Any) -> bool:
    names = named if isinstance(named, list) else [named]
    return kind in names or (kind == "number" and "integer" in names and float(value).is_integer())


def matches(pattern: str, text: str) -> bool | None:
    """Tell whether a pattern (Rust) is found in a text; None where Python may read it differently, or take long."""
    compiled = _compiled(pattern)
    longest = SHORT if compiled is None or ")" in compiled.pattern else LONG
    return None if compiled is None or len(text) > longest else compiled.search(text) is not None


@lru_cache(1024)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Return the pattern in Python's syntax, or None."""
    out: list[str] = []
    at, in_class = 0, False
    while at < len(pattern):
        found = _ESCAPE.match(pattern, at)
        if found is None:
            char = pattern[at]
            if char == "[" and in_class:
                # Rust's classes may hold classes.
                return None
            in_class = char == "[" or (in_class and char != "]")
            out.append(r"\Z" if char == "$" and not in_class else char)
            at += 1
            continue
        code = found[1] or found[2]
        if code is None and found[3].isalnum() and found[3] not in _LETTERS:
            return None
        out.append(f"\\U{int(code, 16):08x}" if code else found[0])
        at = found.end()
    if sum(symbol in ("*", "+", "{") for symbol in out) > MAX_REPETITIONS or pattern.startswith("(?i)"):
        return None
    try:
        return re.compile("".join(out))
    except (re.error, OverflowError):
        return None
