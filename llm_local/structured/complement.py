"""The patterns of the texts in which a pattern is not found. Any thread.

By way of deterministic automata: ends and other states change places, and states are eliminated one by one until a
regular expression is left (Brzozowski and McCluskey, 1963). Only small automata have a short one.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import lru_cache

from llm_local.structured.automaton import Automaton, NoText, automaton
from llm_local.structured.characters import EVERYTHING, Characters, Ranges, complement, ranges
from llm_local.structured.expression import Anchor, Choice, Expression, One, Repeat, Sequence, anchors, parse
from llm_local.structured.pattern import PatternError, widest

MAX_STATES = 200
MAX_CHARACTERS = 150_000
MAX_RANGES = 20
MAX_KEPT = 128
"""Of patterns that were made, which may have `MAX_CHARACTERS`."""

ANYTHING = Repeat(One(Characters(EVERYTHING, EVERYTHING)), 0, None)
ALL_TEXTS, NO_TEXT = r"^[\s\S]*$", r"^[^\s\S]$"


@lru_cache(MAX_KEPT)
def others(pattern: str) -> str | None:
    """Return the pattern (Rust) of the texts in which no reader finds this one (ECMA-262), or None where it is long.

    Where sets of characters make it long, it matches less: as if any character beyond ASCII were in them.
    """
    try:
        expression = parse(widest(pattern))
        ways = anchored(expression)
        if ways is None:
            return None
        return _complement(Choice(tuple(ways))) or _complement(_coarse(Choice(tuple(ways))))
    except NoText:
        return ALL_TEXTS
    except PatternError:
        return None


@lru_cache(MAX_KEPT)
def without(pattern: str) -> str | None:
    """Return the pattern (Rust) of just the texts in which another one (Rust) is not found; None where it is long."""
    try:
        ways = anchored(parse(pattern))
        if ways is None:
            return None
        whole = Choice(tuple(ways))
        return NO_TEXT if _has_all(automaton(whole, all_readers=True)) else _complement(whole)
    except NoText:
        return ALL_TEXTS
    except PatternError:
        return None


def _has_all(found: Automaton) -> bool:
    """Tell whether an automaton accepts all texts, and it is plain to see."""
    everywhere = (ranges(pair for characters in ways.values() for pair in characters) for ways in found.edges)
    return found.ends >= set(range(len(found.edges))) and all(one == EVERYTHING for one in everywhere)


def _coarse(expression: Expression) -> Expression:
    match expression:
        case One(characters) if len(characters.possible) > MAX_RANGES:
            ascii_part = tuple((low, min(high, 0x7F)) for low, high in characters.possible if low <= 0x7F)
            coarse = ranges((*ascii_part, (0x80, 0xD7FF), (0xE000, sys.maxunicode)))
            return One(Characters(coarse, coarse))
        case Repeat(part, least, most):
            return Repeat(_coarse(part), least, most)
        case Sequence(parts):
            return Sequence(tuple(map(_coarse, parts)))
        case Choice(ways):
            return Choice(tuple(map(_coarse, ways)))
    return expression


def _complement(expression: Expression) -> str | None:
    found = automaton(expression, all_readers=True)
    # The last state is that of texts that the automaton does not follow any more.
    n = len(found.edges)
    if n > MAX_STATES:
        return None
    edges = [{target: set_of(characters) for target, characters in ways.items()} for ways in found.edges]
    for number, leaving in enumerate(found.edges):
        rest = complement(ranges(pair for characters in leaving.values() for pair in characters))
        if rest:
            edges[number][n] = set_of(rest)
    edges.append({n: r"[\s\S]"})
    text = expression_of(edges, set(range(n + 1)) - found.ends)
    return None if text is None else f"^(?:{text})$"


def anchored(expression: Expression, *, start: bool = False, end: bool = False) -> list[Expression] | None:
    """Return ways to write texts in which an expression is found; None where an anchor is in the middle of it."""
    match expression:
        case Choice(ways):
            found = [anchored(way, start=start, end=end) for way in ways]
            return None if any(one is None for one in found) else [way for one in found for way in one or []]
        case Anchor(char):
            return anchored(Sequence(()), start=start or char == "^", end=end or char == "$")
        case Sequence(parts):
            first = next((at for at, part in enumerate(parts) if part != _anchor("^", part)), len(parts))
            last = next(
                (at for at in range(len(parts), first, -1) if parts[at - 1] != _anchor("$", parts[at - 1])), first
            )
            start, end, inner = start or first > 0, end or last < len(parts), parts[first:last]
            if len(inner) == 1:
                return anchored(inner[0], start=start, end=end)
            expression = Sequence(inner)
    if anchors(expression):
        return None
    return [Sequence((*([] if start else [ANYTHING]), expression, *([] if end else [ANYTHING])))]


def _anchor(char: str, part: Expression) -> Expression | None:
    return part if isinstance(part, Anchor) and part.char == char else None


def automaton_of(pattern: str, *, all_readers: bool = False) -> Automaton:
    """Return the automaton of the texts in which a pattern (Rust) is found.

    Raises:
        NoText: there are none.
        PatternError: it is too long, or has an anchor in the middle.
    """
    ways = anchored(parse(pattern))
    if ways is None:
        raise PatternError("an anchor is in the middle of it")
    return automaton(Choice(tuple(ways)), all_readers=all_readers)


def set_of(characters: Ranges) -> str:
    """Return a class of characters (Rust)."""
    if characters == EVERYTHING:
        return r"[\s\S]"
    pairs = (_code(low) + (f"-{_code(high)}" if high > low else "") for low, high in characters)
    return f"[{''.join(pairs)}]"


def _code(code: int) -> str:
    return f"\\u{{{code:x}}}"


def expression_of(edges: list[dict[int, str]], ends: set[int]) -> str | None:
    """Return the regular expression of an automaton, or None where it is long.

    States are eliminated. A way is an expression that stands by itself beside others (`_union`) or in a row.

    Args:
        edges: of each state, beginning with 0: the expressions that lead to others.
        ends: states where a text may end.
    """
    begin, finish = len(edges), len(edges) + 1
    ways = {(at, to): way for at, leaving in enumerate(edges) for to, way in leaving.items()}
    ways[begin, 0] = ""
    ways.update({(at, finish): "" for at in ends})
    left = set(range(len(edges)))
    while left:
        n_ways = Counter(state for pair in ways for state in set(pair))
        # (The last of a chain of states first: expressions grow at their ends, and are not copied.)
        state = min(left, key=lambda one: (n_ways[one], -one))
        left.remove(state)
        loop = ways.pop((state, state), None)
        again = "" if loop is None else f"(?:{loop})*"
        into = {at: ways.pop((at, to)) for at, to in list(ways) if to == state}
        out = {to: ways.pop((at, to)) for at, to in list(ways) if at == state}
        for at, before in into.items():
            for to, behind in out.items():
                ways[at, to] = _union(ways.get((at, to)), f"{before}{again}{behind}")
        if sum(map(len, ways.values())) > MAX_CHARACTERS:
            return None
    return ways.get((begin, finish))


def _union(one: str | None, other: str) -> str:
    return other if one is None or one == other else f"(?:{one}|{other})"
