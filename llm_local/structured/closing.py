"""`LLM_JSON_CLOSE`: a JSON answer that would be cut by `max_tokens` is steered to a short valid ending instead.

A constraint around another one. It counts the tokens that are left, and near the end it knows a way to finish: before
a token is let through, an ending from behind it is looked for on a copy. If that no longer fits, the answer takes the
ending that was found before. Engine thread, once its answer runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from enum import Enum

import numpy as np

from llm_local.engine.constraint import Allowed, ConstraintFailed
from llm_local.engine.types import Token
from llm_local.structured.around import Around
from llm_local.structured.tokens import Copyable, Tokens

WATCH_FROM = 512
"""Tokens before the end (beside four shortest answers) from which on an ending is known; searching takes 0.1 to 0.5 ms
a token, and no token opens so much."""

# What brings a JSON text to its end soonest, outside of strings. The comma stands before digits, which would go on
# forever, and behind the brackets, which make it needless; the newline stands before the mark that ends a call.
OUTSIDE = b'}],":0123456789ntf-[{.eE+\n'
ALL_BYTES = bytes(range(0x20, 0x100))
STRIDE = 37
"""Where nothing closes, each step tries the bytes from another place on: a pattern such as `a*b` must not get stuck."""


class _Place(Enum):
    OUTSIDE = "outside"
    STRING = "string"
    ESCAPE = "escape"


def _advance(place: _Place, text: bytes) -> _Place:
    """Return where in JSON's lexical structure the text leads."""
    for byte in text:
        if place is _Place.ESCAPE:
            place = _Place.STRING
        elif byte == ord('"'):
            place = _Place.OUTSIDE if place is _Place.STRING else _Place.STRING
        elif byte == ord("\\") and place is _Place.STRING:
            place = _Place.ESCAPE
    return place


class Closing(Around):
    """`engine.Constraint` that ends in time; see there for the methods.

    Args:
        inner: what the answer must be.
        tokens: of the vocabulary.
        budget: tokens that the answer may have.
        begun: JSON text that is there already.
    """

    def __init__(self, inner: Copyable, tokens: Tokens, budget: int, begun: bytes = b"") -> None:
        super().__init__(inner)
        self._tokens = tokens
        self._left = budget
        self._place = _advance(_Place.OUTSIDE, begun)
        self._closing = False
        self._after: tuple[Token, list[Token]] | None = None
        self._ending = self._search(inner.copy(), self._place, budget)
        # An answer that cannot fit anyway is left alone: it ends with `length`.
        self._watch = -1 if self._ending is None else WATCH_FROM + 4 * len(self._ending)

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow, or nothing is left to follow with."""
        if self._inner.must_end:
            return True
        spent = self._left == 0 or (self._closing and not self._ending)
        return self._watch >= 0 and spent and self._inner.may_end

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next and leaves room for an ending."""
        if self._closing:
            return token == self._ending_tokens[0] if self._ending else token in self._tokens.end_tokens
        if not self._inner.allows(token):
            return False
        piece = self._tokens.piece(token)
        if self._left > self._watch or not piece:
            return True
        ending = self._ending_after(token, piece)
        if ending is None:
            self._closing = True
            return False
        self._after = (token, ending)
        return True

    @property
    def _ending_tokens(self) -> list[Token]:
        assert self._ending is not None
        return self._ending

    def _ending_after(self, token: Token, piece: bytes) -> list[Token] | None:
        trial = self._inner.copy()
        try:
            trial.accept(token)
        except ConstraintFailed:
            trial.close()
            return None
        return self._search(trial, _advance(self._place, piece), self._left - 1)

    def allowed(self) -> Allowed:
        """Return which tokens may come next; `allows` is asked about room."""
        if not self._closing:
            return self._inner.allowed()
        allowed = np.zeros(self._tokens.n_vocab, np.bool_)
        allowed[self._ending_tokens[:1] or list(self._tokens.end_tokens)] = True
        return allowed

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        self._inner.accept(token)
        self._left -= 1
        self._place = _advance(self._place, self._tokens.piece(token))
        if self._closing:
            del self._ending_tokens[0]
        elif self._left <= self._watch:
            known = self._after is not None and self._after[0] == token
            found = self._after[1] if known and self._after else None
            found = found if found is not None else self._search(self._inner.copy(), self._place, self._left)
            if found is None:
                # Only a nesting deeper than WATCH_FROM gets here: it cannot be closed any more.
                self._watch = -1
            self._ending = found
        self._after = None

    def forced(self) -> SequenceOf[Token]:
        """Return tokens that are the only way to go on; the whole ending, once it has begun."""
        return list(self._ending_tokens) if self._closing else self._inner.forced()

    def _search(self, trial: Copyable, place: _Place, most: int) -> list[Token] | None:
        """Return a short ending of at most `most` tokens from a state, which is used up; None when there is none."""
        out: list[Token] = []
        try:
            while len(out) <= most:
                if trial.may_end:
                    return out
                step = list(trial.forced()) or self._step(trial, place, len(out))
                if not step:
                    return None
                for token in step:
                    trial.accept(token)
                    place = _advance(place, self._tokens.piece(token))
                out += step
        except ConstraintFailed:
            return None
        finally:
            trial.close()
        return None

    def _step(self, trial: Copyable, place: _Place, at: int) -> list[Token]:
        for byte in _preferred(place, at):
            token = self._tokens.byte_tokens[byte]
            if token is not None and trial.allows(token):
                return [token]
        return next(([token] for token in self._tokens.marks if trial.allows(token)), [])


def _preferred(place: _Place, at: int) -> Iterator[int]:
    """Yield bytes, those first that end the text soonest."""
    if place is _Place.OUTSIDE:
        yield from OUTSIDE
    elif place is _Place.STRING:
        yield ord('"')
    start = at * STRIDE % len(ALL_BYTES)
    yield from ALL_BYTES[start:]
    yield from ALL_BYTES[:start]
