"""The constraint that leaves an answer free until it opens a call. Engine thread, once its answer runs."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import cast

import numpy as np

from llm_local.engine.constraint import Allowed, Constraint
from llm_local.engine.types import Token
from llm_local.structured.closing import Closing
from llm_local.structured.spec import FindCall
from llm_local.structured.tokens import Compiled, Copyable, Feedable, Tokens

SPACE = " \t\r\n"


class CompiledAfterOpening:
    """Starts constraints that are free until a call is opened.

    Args:
        find: looks for the opening.
        grammars: what follows each kind of opening, by its key.
        tokens: of the vocabulary.
    """

    def __init__(self, find: FindCall, grammars: Mapping[str, Compiled], tokens: Tokens) -> None:
        self._find = find
        self._grammars = grammars
        self._tokens = tokens

    @property
    def is_spent(self) -> bool:
        """Whether one of the grammars has to be compiled anew."""
        return any(grammar.is_spent for grammar in self._grammars.values())

    def start(self, budget: int | None = None) -> AfterOpening:
        """Return a constraint for one answer; with a budget of tokens, its calls end in time (`LLM_JSON_CLOSE`)."""
        return AfterOpening(self._find, self._grammars, self._tokens, budget)


class AfterOpening:
    """`engine.Constraint` that allows everything up to the opening of a call; see there for the methods."""

    def __init__(
        self, find: FindCall, grammars: Mapping[str, Compiled], tokens: Tokens, budget: int | None = None
    ) -> None:
        self._find = find
        self._grammars = grammars
        self._tokens = tokens
        self._left = budget
        # What may be the beginning of an opening, as Latin-1: openings are ASCII, and a position is a number of bytes.
        self._held = ""
        self._at_start = True
        self._inner: Constraint | None = None
        self._next: tuple[Token, _Step] | None = None
        self._refused: set[Token] = set()

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it is."""
        return self._inner is None or self._inner.may_end

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return self._inner is not None and self._inner.must_end

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next: one that opens a call must not go on with what cannot follow."""
        if self._inner is not None:
            return self._inner.allows(token)
        step = self._step(token)
        if step is None:
            self._refused.add(token)
            return False
        self._next = (token, step)
        return True

    def allowed(self) -> Allowed:
        """Return which tokens may come next, those of which `allows` said no left out."""
        if self._inner is not None:
            return self._inner.allowed()
        allowed = np.ones(self._tokens.n_vocab, np.bool_)
        allowed[list(self._refused)] = False
        return allowed

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        if self._inner is not None:
            self._inner.accept(token)
            return
        known = self._next is not None and self._next[0] == token
        step = self._next[1] if known and self._next else self._step(token)
        assert step is not None, "only what is allowed is accepted"
        self._held, self._at_start = step.held, step.at_start
        if self._left is not None:
            self._left -= 1
        if step.inner is not None:
            self._inner = step.inner if self._left is None else self._closing(step, self._left)
        self._next = None
        self._refused.clear()

    def _step(self, token: Token) -> _Step | None:
        """Return where the token leads; None when it opens a call and goes on with what cannot follow."""
        text = self._held + self._tokens.piece(token).decode("latin-1")
        key, end = self._find(text, self._at_start)
        if key is None:
            return _Step(text[end:], self._at_start and not text[:end].strip(SPACE))
        inner = cast(Feedable, self._grammars[key].start())
        if inner.feed(text[end:].encode("latin-1")):
            return _Step(text[end:], False, inner)
        inner.close()
        return None

    def _closing(self, step: _Step, left: int) -> Closing:
        return Closing(cast(Copyable, step.inner), self._tokens, left, begun=step.held.encode("latin-1"))

    def forced(self) -> SequenceOf[Token]:
        """Return tokens that are the only way to go on."""
        return () if self._inner is None else self._inner.forced()

    def completes(self, text: str) -> bool:
        """Tell whether an answer that is this text would be complete: free text is, a call that was cut is not."""
        return self._inner is None

    def close(self) -> None:
        """Free what it holds."""
        if self._inner is not None:
            self._inner.close()


class _Step:
    """Where a token leads: what is held of the text after it, and the constraint of the call that it opens."""

    __slots__ = ("at_start", "held", "inner")

    def __init__(self, held: str, at_start: bool, inner: Constraint | None = None) -> None:
        self.held = held
        self.at_start = at_start
        self.inner = inner
