"""`uniqueItems`: arrays whose items differ, which no grammar can say. A constraint around another one.

It follows the JSON text and the schema side by side. A token that would complete an item for the second time is
refused, and so is one after which every way to complete the item is taken: while an item may still become an earlier
one, however that is written, another ending is looked for on a copy. Engine thread, once its answer runs.
"""

from __future__ import annotations

from collections import deque

from llm_local.engine.constraint import Allowed, ConstraintFailed
from llm_local.engine.types import Token
from llm_local.structured.around import Around
from llm_local.structured.cursor import Cursor
from llm_local.structured.places import Places
from llm_local.structured.tokens import Copyable, Tokens

MAX_STEPS = 400
"""Places from which all bytes are tried to find an ending that is not taken (1 to 2 ms each); beyond them it is
believed to be there."""

FIRST = b'"]}'
BYTES = FIRST + bytes(byte for byte in range(0x20, 0x100) if byte not in FIRST)


class Distinct(Around):
    """`engine.Constraint` that keeps items distinct; see there for the methods.

    Args:
        inner: what the answer must be otherwise.
        places: of the schema.
        tokens: of the vocabulary.
    """

    def __init__(self, inner: Copyable, places: Places, tokens: Tokens, cursor: Cursor | None = None) -> None:
        super().__init__(inner)
        self._places = places
        self._tokens = tokens
        self._cursor = cursor or Cursor(places)
        self._next: tuple[Token, Cursor] | None = None
        self._refused: list[bytes] = []

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

    def _can_differ(self, token: Token, cursor: Cursor) -> bool:
        trial = self._inner.copy()
        try:
            trial.accept(token)
            return self._search(trial, cursor)
        except ConstraintFailed:
            return False
        finally:
            trial.close()

    def _search(self, first: Copyable, cursor: Cursor) -> bool:
        """Tell whether some way on leads to an item that is not there yet; the shortest ways are looked at first.

        (`1E` may become 1 with any number of zeros behind it; the way to 10 is short.)
        """
        waiting: deque[tuple[Copyable, Token | None, Cursor]] = deque([(first, None, cursor.copy())])
        for _ in range(MAX_STEPS):
            if not waiting:
                return False
            before, token, at = waiting.popleft()
            state = before.copy()
            if token is not None:
                state.accept(token)
            if not self._follow_forced(state, at):
                continue
            if not at.is_open:
                return True
            for byte in BYTES:
                following = self._tokens.byte_tokens[byte]
                if following is None or not state.allows(following):
                    continue
                after = at.copy()
                if not after.push(byte):
                    continue
                if not after.is_open:
                    return True
                waiting.append((state, following, after))
        return True

    def _follow_forced(self, state: Copyable, cursor: Cursor) -> bool:
        """Move on as far as there is one way; False when that repeats an item."""
        for token in state.forced():
            state.accept(token)
            if not all(map(cursor.push, self._tokens.piece(token))):
                return False
        return True

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

    def feed(self, text: bytes) -> bool:
        """Move on by text, however it is cut into tokens; False when it cannot follow."""
        return super().feed(text) and all(map(self._cursor.push, text))

    def copy(self) -> Distinct:
        """Return a constraint in the same state."""
        return Distinct(self._inner.copy(), self._places, self._tokens, self._cursor.copy())
