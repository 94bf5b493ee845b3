"""A place in a JSON text, and what is there already of arrays whose items differ. Engine thread."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

from llm_local.structured.beginning import may_become
from llm_local.structured.logic import value_key
from llm_local.structured.places import Places, Plain

SPACE = b" \t\r\n"
UNREAD = object()
"""The value of what Python cannot read: thousands of digits, a thousand brackets."""


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of an array: its text without whitespace, and its value."""

    text: bytes
    value: Any

    def may_become_of(self, text: bytes) -> bool:
        """Tell whether a text that begins so may still become this item."""
        if self.value is UNREAD:
            return self.text.startswith(text)
        # (Half a character at the end is dropped.)
        return may_become(text.decode("utf-8", "ignore"), self.value)


@dataclass(slots=True)
class _Frame:
    """An open object or array. Cursors share them: one that is changed is copied before.

    Attributes:
        nodes: schemas that may hold for it.
        distinct: whether it is an array whose items differ.
        index: of the current item.
        key: of the current property; None while it is read.
        name: the value of the property `name`, where calls may stand.
        item: text of the current item so far, without whitespace.
        items, keys: the items before it, and their values.
        rivals: those of them that the current one may still become.
    """

    nodes: tuple[Plain, ...]
    is_array: bool
    distinct: bool
    index: int = 0
    key: str | None = None
    name: str | None = None
    item: bytes = b""
    items: tuple[_Item, ...] = ()
    keys: frozenset[str] = frozenset()
    rivals: tuple[_Item, ...] = ()

    def narrow(self) -> bool:
        """Tell whether the current item may still become an earlier one."""
        if self.item:
            self.rivals = tuple(rival for rival in self.rivals if rival.may_become_of(self.item))
        return bool(self.rivals)

    def finish(self) -> bool:
        """Take the current item in; False when it is there already."""
        try:
            value = json.loads(self.item)
            key = value_key(value)
        except (ValueError, RecursionError):
            value, key = UNREAD, self.item.decode("utf-8", "replace")
        if key in self.keys:
            return False
        self.items += (_Item(self.item, value),)
        self.keys |= {key}
        self.rivals = self.items
        self.item = b""
        return True


class Cursor:
    """A place in a text that is valid so far: a JSON value, or calls."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._frames: list[_Frame] = []
        self._n_values = 0
        self._n_distinct = 0
        self._in_string = False
        self._escaped = False
        self._string = b""

    def copy(self) -> Cursor:
        """Return one at the same place."""
        other = copy.copy(self)
        other._frames = self._frames.copy()
        return other

    @property
    def watching(self) -> bool:
        """Whether an array of distinct items is open."""
        return self._n_distinct > 0

    @property
    def is_open(self) -> bool:
        """Whether an item may still become one that is there already."""
        return self.watching and any(frame.narrow() for frame in self._frames if frame.distinct)

    def push(self, byte: int) -> bool:
        """Move on by a byte; False when that repeats an item."""
        char = bytes([byte])
        if self._in_string:
            self._record(char)
            self._inside_string(char)
            return True
        if char in SPACE:
            return True
        if char in b"{[":
            self._open(char)
            return True
        if self._frames and char in b",]}":
            return self._end_of_value(char)
        if char == b'"':
            self._in_string = True
            if self._frames and self._is_told():
                self._string = char
        self._record(char)
        return True

    def _open(self, char: bytes) -> None:
        nodes = self._value_nodes()
        self._record(char)
        distinct = char == b"[" and any(node.get("uniqueItems") is True for node, _ in nodes)
        self._n_values += not self._frames
        self._n_distinct += distinct
        self._frames.append(_Frame(nodes, char == b"[", distinct))

    def _is_told(self) -> bool:
        """Whether the string that begins says where we are: a key, or the name of a call."""
        top = self._frames[-1]
        return not top.is_array and (top.key is None or (top.key == "name" and len(self._frames) == 1))

    def _inside_string(self, char: bytes) -> None:
        if self._string:
            self._string += char
        if self._escaped:
            self._escaped = False
        elif char == b"\\":
            self._escaped = True
        elif char == b'"':
            self._in_string = False
            if self._string:
                self._end_of_string(json.loads(self._string))
                self._string = b""

    def _end_of_string(self, text: str) -> None:
        """A key of an object, or the value of a property."""
        top = self._changing(-1)
        if top.key is None:
            top.key = text
        elif top.key == "name":
            top.name = text

    def _end_of_value(self, char: bytes) -> bool:
        top = self._changing(-1)
        if top.distinct and top.item and not top.finish():
            return False
        if char == b",":
            top.index += 1
            top.key = None
            self._record(char, but=top if top.distinct else None)
        else:
            self._frames.pop()
            self._n_distinct -= top.distinct
            self._record(char)
        return True

    def _value_nodes(self) -> tuple[Plain, ...]:
        if not self._frames:
            return self._places.of_value(self._n_values)
        top = self._frames[-1]
        if top.is_array:
            return self._places.of_item(top.nodes, top.index)
        found = self._places.of_property(top.nodes, top.key or "")
        return (*found, *self._places.of_call(top.key or "", top.name)) if len(self._frames) == 1 else found

    def _record(self, char: bytes, but: _Frame | None = None) -> None:
        if not self.watching:
            return
        for at, frame in enumerate(self._frames):
            if frame.distinct and frame is not but:
                self._changing(at).item += char

    def _changing(self, at: int) -> _Frame:
        """Return a frame that no other cursor has."""
        frame = self._frames[at] = copy.copy(self._frames[at])
        return frame
