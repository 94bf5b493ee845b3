"""A place in a JSON text, and the schemas that may hold there. Workers, then the engine thread."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

from llm_local.structured.logic import REF, Defs, Node, value_key
from llm_local.structured.schema import Schema

Plain = tuple[dict[str, Any], Defs]
"""A schema without `$ref`, `anyOf` and `allOf`, and the definitions that its parts refer to."""

ARGUMENTS = ("arguments", "parameters")

SPACE = b" \t\r\n"


class Places:
    """Which schemas hold at each place of a document, as far as they may: all branches of an `anyOf` are followed.

    Args:
        schemas: of the whole document, which is valid against at least one of them.
    """

    def __init__(self, schemas: SequenceOf[Schema]) -> None:
        self.root = _plain([(schema.root, schema.defs) for schema in schemas])

    @classmethod
    def of_calls(cls, tools: SequenceOf[Schema], others: SequenceOf[Schema]) -> Places:
        """Return the places in calls (`{"name": ..., "arguments": {...}}`, markup around them) or other documents."""
        places = cls([*tools, *others])
        arguments = [(schema.root, schema.defs) for schema in tools]
        calls = [({"properties": dict.fromkeys(ARGUMENTS, node)}, defs) for node, defs in arguments]
        places.root = (*places.root, *calls)
        return places

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


def has_unique_items(node: Node) -> bool:
    """Tell whether arrays of distinct items are asked for anywhere in a canonical schema."""
    if isinstance(node, list):
        return any(map(has_unique_items, node))
    if not isinstance(node, dict):
        return False
    if node.get("uniqueItems") is True:
        return True
    for key, value in node.items():
        # What properties are called means nothing, and values of an enum are no schemas.
        inner = list(value.values()) if key in ("properties", "patternProperties") else value
        if key != "enum" and has_unique_items(inner):
            return True
    return False


@dataclass(slots=True)
class _Frame:
    """An open object or array.

    Attributes:
        nodes: schemas that may hold for it.
        distinct: whether it is an array whose items differ.
        index: of the current item.
        key: of the current property; None while it is read.
        item: text of the current item so far, without whitespace.
        used, values: texts and values of the items before it.
    """

    nodes: tuple[Plain, ...]
    is_array: bool
    distinct: bool
    index: int = 0
    key: str | None = None
    item: bytes = b""
    used: tuple[bytes, ...] = ()
    values: frozenset[str] = frozenset()

    @property
    def is_open(self) -> bool:
        """Whether the current item may still become an earlier one."""
        return any(text.startswith(self.item) for text in self.used)

    def finish(self) -> bool:
        """Take the current item in; False when it is there already."""
        try:
            value = value_key(json.loads(self.item))
        except (ValueError, RecursionError):
            # Thousands of digits, a thousand brackets: compared as they are written.
            value = self.item.decode("utf-8", "replace")
        if value in self.values:
            return False
        self.used += (self.item,)
        self.values |= {value}
        self.item = b""
        return True


class Cursor:
    """A place in a JSON text that is valid so far."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._frames: list[_Frame] = []
        self._in_string = False
        self._escaped = False
        self._key = b""

    def copy(self) -> Cursor:
        """Return one at the same place."""
        other = copy.copy(self)
        other._frames = [copy.copy(frame) for frame in self._frames]
        return other

    @property
    def watching(self) -> bool:
        """Whether an array of distinct items is open."""
        return any(frame.distinct for frame in self._frames)

    @property
    def is_open(self) -> bool:
        """Whether an item may still become one that is there already."""
        return any(frame.distinct and frame.is_open for frame in self._frames)

    def push(self, byte: int) -> bool:
        """Move on by a byte; False when that repeats an item."""
        char = bytes([byte])
        if self._in_string:
            self._record(char)
            self._inside_string(char)
            return True
        if char in SPACE:
            return True
        top = self._frames[-1] if self._frames else None
        if char in b"{[":
            nodes = self._value_nodes()
            self._record(char)
            distinct = char == b"[" and any(node.get("uniqueItems") is True for node, _ in nodes)
            self._frames.append(_Frame(nodes, char == b"[", distinct))
            return True
        if top is not None and char in b",]}":
            return self._end_of_value(top, char)
        if char == b'"':
            self._in_string = True
            if top is not None and not top.is_array and top.key is None:
                self._key = char
        self._record(char)
        return True

    def _inside_string(self, char: bytes) -> None:
        if self._key:
            self._key += char
        if self._escaped:
            self._escaped = False
        elif char == b"\\":
            self._escaped = True
        elif char == b'"':
            self._in_string = False
            if self._key:
                self._frames[-1].key, self._key = json.loads(self._key), b""

    def _end_of_value(self, top: _Frame, char: bytes) -> bool:
        if top.distinct and top.item and not top.finish():
            return False
        if char == b",":
            top.index += 1
            top.key = None
            self._record(char, but=top if top.distinct else None)
        else:
            self._frames.pop()
            self._record(char)
        return True

    def _value_nodes(self) -> tuple[Plain, ...]:
        if not self._frames:
            return self._places.root
        top = self._frames[-1]
        if top.is_array:
            return self._places.of_item(top.nodes, top.index)
        return self._places.of_property(top.nodes, top.key or "")

    def _record(self, char: bytes, but: _Frame | None = None) -> None:
        for frame in self._frames:
            if frame.distinct and frame is not but:
                frame.item += char
