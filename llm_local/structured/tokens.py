"""What constraints that look at text must know of a vocabulary. Any thread."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_local.engine.constraint import Constraint
from llm_local.engine.types import Token

MAX_PREFIXES = 1000


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
        self._starting_with: dict[bytes, npt.NDArray[np.intp]] = {}

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of all tokens; 0.1 s for 150,000 of them, so first asked for on a worker."""
        return [self.piece(token) for token in range(self.n_vocab)]

    @cached_property
    def marks(self) -> tuple[Token, ...]:
        """Tokens such as `</tool_call>`, which a grammar may know by their names only; ask on a worker, too."""
        return tuple(token for token, piece in enumerate(self.pieces) if piece[:1] == b"<" and piece[2:][-1:] == b">")

    @cached_property
    def begin_with_digit(self) -> npt.NDArray[np.bool_]:
        """Which tokens [n_vocab] begin with a digit; ask on a worker, too."""
        return np.array([piece[:1].isdigit() for piece in self.pieces])

    def starting_with(self, prefix: bytes) -> npt.NDArray[np.intp]:
        """Return the tokens whose bytes begin so."""
        found = self._starting_with.get(prefix)
        if found is None:
            if len(self._starting_with) > MAX_PREFIXES:
                self._starting_with.clear()
            found = np.array([token for token, piece in enumerate(self.pieces) if piece.startswith(prefix)], np.intp)
            self._starting_with[prefix] = found
        return found
