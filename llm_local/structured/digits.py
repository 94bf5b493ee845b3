"""Numbers that end: a small model may write `1.0000...` until its tokens are used up. A constraint around another one.

A number has no longest form in JSON, but no reader takes in more than 17 digits of one. After 20 in a row another
digit is refused, as long as the number may end there. Engine thread, once its answer runs.
"""

from __future__ import annotations

from llm_local.engine.constraint import Allowed
from llm_local.engine.types import Token
from llm_local.structured.around import Around
from llm_local.structured.tokens import Copyable, Tokens

MOST = 20
"""Digits in a row: as many as the largest 64-bit integer has."""

ENDS = b",}] \n"
"""What may follow a number."""

QUOTE, BACKSLASH, ZERO, NINE = b'"\\09'


class Digits(Around):
    """`engine.Constraint` under which numbers end; see there for the methods.

    Args:
        inner: what the answer must be otherwise.
        tokens: of the vocabulary.
    """

    def __init__(self, inner: Copyable, tokens: Tokens) -> None:
        super().__init__(inner)
        self._tokens = tokens
        self._in_string = False
        self._escaped = False
        self._n_digits = 0

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next and is not one digit too many."""
        if not super().allows(token):
            return False
        return not (self._n_digits >= MOST and self._tokens.piece(token)[:1].isdigit() and self._can_end())

    def allowed(self) -> Allowed:
        """Return which tokens may come next."""
        allowed = super().allowed()
        if self._n_digits >= MOST and self._can_end():
            allowed = allowed & ~self._tokens.begin_with_digit
        return allowed

    def _can_end(self) -> bool:
        """Whether the number may be over."""
        ends = (self._tokens.byte_tokens[byte] for byte in ENDS)
        return self._inner.may_end or any(token is not None and self._inner.allows(token) for token in ends)

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        super().accept(token)
        self._follow(self._tokens.piece(token))

    def _follow(self, text: bytes) -> None:
        if self._in_string and not self._escaped and QUOTE not in text and BACKSLASH not in text:
            return
        for byte in text:
            if self._in_string:
                self._in_string = self._escaped or byte != QUOTE
                self._escaped = not self._escaped and byte == BACKSLASH
            else:
                self._in_string = byte == QUOTE
                self._n_digits = self._n_digits + 1 if ZERO <= byte <= NINE else 0

    def feed(self, text: bytes) -> bool:
        """Move on by text, however it is cut into tokens; False when it cannot follow."""
        if not super().feed(text):
            return False
        self._follow(text)
        return True

    def copy(self) -> Digits:
        """Return a constraint in the same state."""
        other = Digits(self._inner.copy(), self._tokens)
        other._in_string, other._escaped, other._n_digits = self._in_string, self._escaped, self._n_digits
        return other
