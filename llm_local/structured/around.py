"""A constraint around another one. Engine thread, once its answer runs."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Generic, TypeVar, cast

from llm_local.engine.constraint import Allowed, Constraint
from llm_local.engine.types import Token
from llm_local.structured.tokens import Compiled, Copyable, Feedable

Wrapped = TypeVar("Wrapped", bound=Constraint)


class CompiledAround(Generic[Wrapped]):
    """A compiled grammar whose constraints have another one around them.

    Args:
        compiled: the grammar.
        wrap: puts it around a constraint that has just been started.
    """

    def __init__(self, compiled: Compiled, wrap: Callable[[Copyable], Wrapped]) -> None:
        self._compiled = compiled
        self._wrap = wrap

    @property
    def is_spent(self) -> bool:
        """Whether it has to be compiled anew."""
        return self._compiled.is_spent

    def start(self) -> Wrapped:
        """Return a constraint for one answer."""
        return self._wrap(cast(Copyable, self._compiled.start()))


class Around:
    """`engine.Constraint` that says what the inner one says; see there for the methods. Others narrow it."""

    def __init__(self, inner: Copyable) -> None:
        self._inner = inner

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it is."""
        return self._inner.may_end

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return self._inner.must_end

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next."""
        return self._inner.allows(token)

    def allowed(self) -> Allowed:
        """Return which tokens may come next."""
        return self._inner.allowed()

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        self._inner.accept(token)

    def forced(self) -> SequenceOf[Token]:
        """Return tokens that are the only way to go on."""
        return self._inner.forced()

    def feed(self, text: bytes) -> bool:
        """Move on by text, however it is cut into tokens; False when it cannot follow."""
        return cast(Feedable, self._inner).feed(text)

    def completes(self, text: str) -> bool:
        """Tell whether an answer that is this text would be complete."""
        return self._inner.completes(text)

    def close(self) -> None:
        """Free what it holds."""
        self._inner.close()
