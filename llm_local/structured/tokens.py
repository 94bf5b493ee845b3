"""What constraints that look at text must know of a vocabulary. Any thread."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_local.engine.constraint import Constraint
from llm_local.engine.types import Token


class Copyable(Constraint, Protocol):
    """A constraint whose state can be tried out."""

    def copy(self) -> Copyable:
        """Return one in the same state."""
        ...


class Feedable(Constraint, Protocol):
    """A constraint that can be moved on by text."""

    def feed(self, text: bytes) -> bool:
        """Move on by text, however it is cut into tokens; False when it cannot follow."""
        ...


class Compiled(Protocol):
    """A compiled grammar."""

    @property
    def is_spent(self) -> bool:
        """Whether it has to be compiled anew: an answer hit a limit of what all of its answers share."""
        ...

    def start(self) -> Constraint:
        """Return a constraint for one answer."""
        ...


class Tokens:
    """A vocabulary as bytes.

    Args:
        n_vocab: number of tokens (logits).
        piece: returns the bytes that a token stands for in an answer.
        byte_tokens: the token of each byte, where the vocabulary has one.
        end_tokens: tokens that end an answer.
    """

    def __init__(
        self,
        n_vocab: int,
        piece: Callable[[Token], bytes],
        byte_tokens: SequenceOf[Token | None],
        end_tokens: SequenceOf[Token],
    ) -> None:
        self.n_vocab = n_vocab
        self.piece = piece
        self.byte_tokens = byte_tokens
        self.end_tokens = frozenset(end_tokens)

    def built(self) -> Tokens:
        """Build all tables, 0.5 s for 150,000 tokens; else each is built when it is first asked for."""
        _ = self.marks, self.begin_with_digit, self._in_order
        return self

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of all tokens."""
        return [self.piece(token) for token in range(self.n_vocab)]

    @cached_property
    def marks(self) -> tuple[Token, ...]:
        """Tokens such as `</tool_call>`, which a grammar may know by their names only."""
        return tuple(token for token, piece in enumerate(self.pieces) if piece[:1] == b"<" and piece[2:][-1:] == b">")

    @cached_property
    def begin_with_digit(self) -> npt.NDArray[np.bool_]:
        """Which tokens [n_vocab] begin with a digit."""
        return np.array([piece[:1].isdigit() for piece in self.pieces])

    @cached_property
    def _in_order(self) -> tuple[list[bytes], npt.NDArray[np.intp]]:
        order = sorted(range(self.n_vocab), key=self.pieces.__getitem__)
        return [self.pieces[token] for token in order], np.array(order, np.intp)

    def starting_with(self, prefix: bytes) -> npt.NDArray[np.intp]:
        """Return the tokens whose bytes begin so."""
        pieces, order = self._in_order
        first = bisect_left(pieces, prefix)
        return order[first : bisect_right(pieces, prefix, first, key=lambda piece: piece[: len(prefix)])]
