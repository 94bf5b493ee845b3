"""How many ways there are to read a text along a regular expression. Any thread.

llguidance follows all of them at once. Nested repetitions such as `(a{1,100}){1,100}` have thousands of them, which it
takes, and then gives up on in the middle of an answer ("too many expressions constructed").
"""

from __future__ import annotations

import math
import re

from llm_local.structured.automaton import most_at_once
from llm_local.structured.expression import Choice, Expression, Repeat, Sequence, parse
from llm_local.structured.pattern import PatternError

MAX_AT_ONCE = 6000
"""Places of an expression where a text may be at once; llguidance gave up at about 20,000 of them."""

MAX_POSITIONS = 9000
"""Longer expressions are looked at with fewer repetitions: how the ways multiply is plain to see then, too."""

_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def check_ambiguity(rust: str) -> None:
    """Let a pattern that `pattern.to_rust` returned pass, or not.

    Raises:
        PatternError: llguidance would not follow it to the end.
    """
    counts = [int(found[2] or found[1]) for found in _COUNT.finditer(rust)]
    if math.prod(max(count, 1) for count in counts) * len(rust) <= MAX_AT_ONCE:
        return
    try:
        expression = _shortened(parse(rust))
    except PatternError:
        # A property of characters that only Rust knows, which is no matter of repetitions.
        return
    if most_at_once(expression, MAX_AT_ONCE) > MAX_AT_ONCE:
        raise PatternError("there are too many ways to read it; let nested repetitions have something between them")


def _shortened(expression: Expression) -> Expression:
    most = MAX_POSITIONS
    while _length(expression) > MAX_POSITIONS and most > 1:
        most = most * 2 // 3
        expression = _at_most(expression, most)
    return expression


def _length(expression: Expression) -> int:
    """Return the number of positions, repetitions written out."""
    match expression:
        case Repeat(part, least, most):
            return _length(part) * max(least, 1 if most is None else most)
        case Sequence(parts) | Choice(parts):
            return sum(map(_length, parts))
    return 1


def _at_most(expression: Expression, n: int) -> Expression:
    match expression:
        case Repeat(part, least, most):
            return Repeat(_at_most(part, n), min(least, n), None if most is None else min(most, n))
        case Sequence(parts):
            return Sequence(tuple(_at_most(part, n) for part in parts))
        case Choice(ways):
            return Choice(tuple(_at_most(way, n) for way in ways))
    return expression
