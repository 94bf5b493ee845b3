"""`uniqueItems`: arrays whose items differ, which no grammar can say. A constraint around another one.

It follows the JSON text and the schema side by side. A token that would complete an item for the second time is
refused, and so is one after which every way to complete the item is taken: while an item's text is the beginning of an
earlier one, another ending is looked for on a copy. Engine thread, once its answer runs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, cast

from llm_local.engine.constraint import Allowed, ConstraintFailed
from llm_local.engine.types import Token
from llm_local.structured.logic import REF, Defs, Node, value_key
from llm_local.structured.schema import Schema
from llm_local.structured.tokens import Compiled, Copyable, Feedable, Tokens

Plain = tuple[dict[str, Any], Defs]
"""A schema without `$ref`, `anyOf` and `allOf`, and the definitions that its parts refer to."""

ARGUMENTS = ("arguments", "parameters")

MAX_STEPS = 2000
"""Bytes that are tried to find an ending that is not taken; beyond them it is believed to be there."""

MAX_DEPTH = 600
"""Bytes that are tried in a row, likewise."""

FIRST = b'"]}'
BYTES = FIRST + bytes(byte for byte in range(0x20, 0x100) if byte not in FIRST)
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


class _Cursor:
    """A place in a JSON text that is valid so far."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._frames: list[_Frame] = []
        self._in_string = False
        self._escaped = False
        self._key = b""

    def copy(self) -> _Cursor:
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


class CompiledDistinct:
    """A compiled grammar of JSON with arrays of distinct items, from which any number of constraints start."""

    def __init__(self, compiled: Compiled, places: Places, tokens: Tokens) -> None:
        self._compiled = compiled
        self._places = places
        self._tokens = tokens

    def start(self) -> Distinct:
        """Return a constraint for one answer."""
        return Distinct(cast(Copyable, self._compiled.start()), self._places, self._tokens)


class Distinct:
    """`engine.Constraint` that keeps items distinct; see there for the methods.

    Args:
        inner: what the answer must be otherwise.
        places: of the schema.
        tokens: of the vocabulary.
    """

    def __init__(self, inner: Copyable, places: Places, tokens: Tokens, cursor: _Cursor | None = None) -> None:
        self._inner = inner
        self._places = places
        self._tokens = tokens
        self._cursor = cursor or _Cursor(places)
        self._next: tuple[Token, _Cursor] | None = None
        self._refused: list[bytes] = []

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it is."""
        return self._inner.may_end

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return self._inner.must_end

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next and repeats nothing."""
        if not self._inner.allows(token):
            return False
        piece = self._tokens.piece(token)
        if not self._cursor.watching and b"[" not in piece:
            return True
        cursor = self._cursor.copy()
        for at, byte in enumerate(piece):
            if not cursor.push(byte):
                self._refused.append(piece[: at + 1])
                return False
        if cursor.is_open and not self._can_differ(token, cursor):
            self._refused.append(piece)
            return False
        self._next = (token, cursor)
        return True

    def _can_differ(self, token: Token, cursor: _Cursor) -> bool:
        trial = self._inner.copy()
        try:
            trial.accept(token)
            return self._search(trial, cursor, [MAX_STEPS], 0)
        except ConstraintFailed:
            return False
        finally:
            trial.close()

    def _search(self, state: Copyable, cursor: _Cursor, steps: list[int], depth: int) -> bool:
        """Tell whether some way on leads to an item that is not there yet; `steps` has how many are left."""
        for byte in BYTES:
            token = self._tokens.byte_tokens[byte]
            if token is None or not state.allows(token):
                continue
            after = cursor.copy()
            if not after.push(byte):
                continue
            if not after.is_open:
                return True
            steps[0] -= 1
            if steps[0] < 0 or depth > MAX_DEPTH:
                return True
            trial = state.copy()
            try:
                trial.accept(token)
                if self._search(trial, after, steps, depth + 1):
                    return True
            finally:
                trial.close()
        return False

    def allowed(self) -> Allowed:
        """Return which tokens may come next, less those that begin like refused ones."""
        allowed = self._inner.allowed().copy()
        for prefix in self._refused:
            allowed[self._tokens.starting_with(prefix)] = False
        if not allowed.any():
            raise ConstraintFailed("The items of an array must differ, and no other one is left.")
        return allowed

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        self._inner.accept(token)
        self._refused.clear()
        if self._next is not None and self._next[0] == token:
            self._cursor = self._next[1]
        elif not all(map(self._cursor.push, self._tokens.piece(token))):
            raise ConstraintFailed("The items of an array must differ, and no other one is left.")
        self._next = None

    def forced(self) -> SequenceOf[Token]:
        """Return tokens that are the only way to go on."""
        return self._inner.forced()

    def feed(self, text: bytes) -> bool:
        """Move on by text, however it is cut into tokens; False when it cannot follow."""
        return cast(Feedable, self._inner).feed(text) and all(map(self._cursor.push, text))

    def copy(self) -> Distinct:
        """Return a constraint in the same state."""
        return Distinct(self._inner.copy(), self._places, self._tokens, self._cursor.copy())

    def close(self) -> None:
        """Free what it holds."""
        self._inner.close()
