"""What an answer may be, as the engine sees it. `llm_local.structured` makes them, and so do the tests' fakes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from llm_local.engine.types import Token
from llm_local.errors import EngineError

log = logging.getLogger(__name__)

Allowed = npt.NDArray[np.bool_]
T = TypeVar("T")


class ConstraintFailed(EngineError):
    """The constraint cannot go on (a limit of its parser, a dead end): this answer fails, its neighbours do not."""

    code = "constraint_failed"


class Constraint(Protocol):
    """Follows one answer token by token. Made on a worker, then used by the engine thread only.

    The engine samples first and asks about the one token (`allows`); only when it is refused are all tokens looked
    at (`allowed`) and another one is drawn among them.
    """

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it is."""
        ...

    @property
    def must_end(self) -> bool:
        """Whether it is complete and nothing can follow."""
        ...

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next; a token that ends the answer may when `may_end`."""
        ...

    def allowed(self) -> Allowed:
        """Return which tokens [n_vocab] may come next, at least one.

        A constraint may leave in what it has not been asked about yet: `allows` is asked about the next draw, too.

        Raises:
            ConstraintFailed: none may.
        """
        ...

    def accept(self, token: Token) -> None:
        """Move on by a token that is allowed (not by one that ends the answer).

        Raises:
            ConstraintFailed: a limit was hit.
        """
        ...

    def forced(self) -> SequenceOf[Token]:
        """Return tokens that are the only way to go on, often none. Each of them is to be accepted, too."""
        ...

    def completes(self, text: str) -> bool:
        """Tell whether an answer that is this text would be complete: a stop string has cut off what followed."""
        ...

    def close(self) -> None:
        """Free what it holds. Calling twice is harmless."""
        ...


def ask(question: Callable[..., T], *arguments: object) -> T:
    """Ask a constraint; a bug of its own ends its answer, and not the engine.

    Raises:
        ConstraintFailed: it cannot go on.
    """
    try:
        return question(*arguments)
    except ConstraintFailed:
        raise
    except BaseException as error:  # A panic in Rust is no `Exception`.
        log.exception("a constraint broke")
        raise ConstraintFailed("The grammar could not be followed: an internal error, which is in the log.") from error
