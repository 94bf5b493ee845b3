"""How many ways there are to read a text along a regular expression. Any thread.

llguidance follows all of them at once. Nested repetitions such as `(a{1,100}){1,100}` have thousands of them, which it
takes, and then gives up on in the middle of an answer ("too many expressions constructed").
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from llm_local.structured.automaton import most_at_once, weight_of
from llm_local.structured.expression import Choice, Expression, One, Repeat, Sequence, parse
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
    if _is_too_ambiguous(rust):
        raise PatternError("there are too many ways to read it; let nested repetitions have something between them")


@lru_cache(1024)
def _is_too_ambiguous(rust: str) -> bool:
    counts = [int(found[2] or found[1]) for found in _COUNT.finditer(rust)]
    if math.prod(max(count, 1) for count in counts) * len(rust) <= MAX_AT_ONCE:
        return False
    try:
        expression = parse(rust)
    except PatternError:
        # A property of characters that only Rust knows, which is no matter of repetitions.
        return False
    if _length(expression, weighed=True) <= MAX_AT_ONCE:
        return False
    return most_at_once(_shortened(expression), MAX_AT_ONCE) > MAX_AT_ONCE


def _shortened(expression: Expression) -> Expression:
    most = MAX_POSITIONS
    while _length(expression) > MAX_POSITIONS and most > 1:
        most = most * 2 // 3
        expression = _at_most(expression, most)
    return expression


def _length(expression: Expression, *, weighed: bool = False) -> int:
    """Return the number of positions, repetitions written out; or their weights."""
    match expression:
        case Repeat(part, least, most):
            return _length(part, weighed=weighed) * max(least, 1 if most is None else most)
        case Sequence(parts) | Choice(parts):
            return sum(_length(part, weighed=weighed) for part in parts)
        case One(characters) if weighed:
            return weight_of(characters.sure)
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
