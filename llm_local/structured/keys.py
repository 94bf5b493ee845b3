r"""Names of properties that have one spelling and one meaning. A constraint around another one.

In JSON `"\u0069d"` is the name `id`, which llguidance 1.9 takes for one of the others. And readers of regular
expressions differ on a newline at the end of a name (`$`), and on `\r`, U+2028 and U+2029 (`.`). So no name is written
with `\u`, or has an end of a line in it. Engine thread, once its answer runs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from llm_local.engine.constraint import Allowed, ConstraintFailed
from llm_local.engine.types import Token
from llm_local.errors import InvalidSchema
from llm_local.structured.around import Around
from llm_local.structured.logic import Node, parts_of
from llm_local.structured.tokens import Copyable, Tokens

_ODD = re.compile(r"[\x00-\x07\n\x0b\x0d-\x1f\u2028\u2029]")
"""What is in no name that is written."""

QUOTE, BACKSLASH, E2 = 0x22, 0x5C, 0xE2
ENDS = (b"\xe2\x80\xa8", b"\xe2\x80\xa9")
"""U+2028 and U+2029."""


def has_other_names(nodes: Iterable[Node]) -> bool:
    """Tell whether an object in canonical schemas may have others beside declared names, or names of a pattern."""
    return any(
        isinstance(node, dict)
        and (
            bool(node.get("patternProperties"))
            or (bool(node.get("properties")) and node.get("additionalProperties", True) is not False)
            or has_other_names(parts_of(node))
        )
        for node in nodes
    )


def can_be_written(name: str) -> bool:
    """Tell whether a name may be in an answer."""
    return not _ODD.search(name)


def check_names(nodes: Iterable[Node]) -> None:
    """Let canonical schemas pass in which all names can be written.

    Raises:
        InvalidSchema: one cannot.
    """
    for node in nodes:
        if isinstance(node, dict):
            names = [*node.get("properties", {}), *node.get("required", []), *_names_in(node.get("enum", []))]
            odd = next((name for name in names if not can_be_written(name)), None)
            if odd is not None:
                raise InvalidSchema(
                    f"#: the name {odd!r} of a property cannot be enforced: it may have no control characters but a "
                    "tab, and none of U+2028 and U+2029."
                )
            check_names(parts_of(node))


def _names_in(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _names_in(item)


ONLY_ODD = "The name of a property could only go on with an end of a line or a control character."


class _Place:
    """Where in a JSON text we are, as far as names go."""

    __slots__ = ("_begun", "_escaped", "_in_name", "_in_string", "_is_object", "_name_follows")

    def __init__(self) -> None:
        self._is_object: tuple[bool, ...] = ()
        self._name_follows = False
        self._in_string = False
        self._in_name = False
        self._escaped = False
        self._begun = b""

    def is_free(self, text: bytes) -> bool:
        """Tell at a glance that a text has nothing that names may not have."""
        return not (self._escaped or self._begun or BACKSLASH in text or E2 in text)

    def stays(self, text: bytes) -> bool:
        """Tell at a glance that a string goes on."""
        return self._in_string and QUOTE not in text and self.is_free(text)

    def push(self, byte: int) -> bool:
        """Move on by a byte; False when no name may have it."""
        if not self._in_string:
            self._move(byte)
            return True
        begun, self._begun = self._begun, b""
        if self._escaped:
            self._escaped = False
            return not (self._in_name and byte in b"nru")
        if byte == BACKSLASH:
            self._escaped = True
        elif byte == QUOTE:
            self._in_string = False
        elif self._in_name:
            begun += bytes([byte])
            self._begun = begun if b"\xe2\x80".startswith(begun) else b"\xe2" if byte == E2 else b""
            return begun not in ENDS
        return True

    def _move(self, byte: int) -> None:
        match bytes([byte]):
            case b'"':
                self._in_string, self._in_name = True, self._name_follows
            case b"{" | b"[" as opened:
                self._name_follows = opened == b"{"
                self._is_object += (self._name_follows,)
            case b"}" | b"]":
                self._is_object = self._is_object[:-1]
                self._name_follows = False
            case b",":
                self._name_follows = self._is_object[-1:] == (True,)
            case b":":
                self._name_follows = False


class Keys(Around):
    """`engine.Constraint` under which names have one spelling; see there for the methods.

    Args:
        inner: what the answer must be otherwise.
        tokens: of the vocabulary.
    """

    def __init__(self, inner: Copyable, tokens: Tokens) -> None:
        super().__init__(inner)
        self._tokens = tokens
        self._place = _Place()
        self._refused: list[bytes] = []

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next, and writes no such name."""
        if not super().allows(token):
            return False
        piece = self._tokens.piece(token)
        if self._place.is_free(piece):
            return True
        place = copy.copy(self._place)
        for at, byte in enumerate(piece):
            if not place.push(byte):
                self._refused.append(piece[: at + 1])
                return False
        return True

    def allowed(self) -> Allowed:
        """Return which tokens may come next, less those that begin like refused ones."""
        allowed = super().allowed()
        if self._refused:
            allowed = allowed.copy()
            for prefix in self._refused:
                allowed[self._tokens.starting_with(prefix)] = False
            if not allowed.any():
                raise ConstraintFailed(ONLY_ODD)
        return allowed

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        super().accept(token)
        self._refused.clear()
        if not self._follow(self._tokens.piece(token)):
            raise ConstraintFailed(ONLY_ODD)

    def _follow(self, text: bytes) -> bool:
        return self._place.stays(text) or all(map(self._place.push, text))

    def feed(self, text: bytes) -> bool:
        """Move on by text, however it is cut into tokens; False when it cannot follow."""
        return super().feed(text) and self._follow(text)

    def copy(self) -> Keys:
        """Return a constraint in the same state."""
        other = Keys(self._inner.copy(), self._tokens)
        other._place = copy.copy(self._place)
        return other
