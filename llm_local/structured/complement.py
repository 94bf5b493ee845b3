"""The patterns of the texts in which a pattern is not found. Any thread.

By way of deterministic automata: ends and other states change places, and states are eliminated one by one until a
regular expression is left (Brzozowski and McCluskey, 1963). Only small automata have a short one.
"""

from __future__ import annotations

from functools import lru_cache

from llm_local.structured.automaton import NoText, automaton
from llm_local.structured.characters import EVERYTHING, Characters, Ranges, complement, ranges
from llm_local.structured.expression import Anchor, Choice, Expression, One, Repeat, Sequence, anchors, parse
from llm_local.structured.pattern import PatternError, widest

MAX_STATES = 60
MAX_CHARACTERS = 150_000

ANYTHING = Repeat(One(Characters(EVERYTHING, EVERYTHING)), 0, None)
ALL_TEXTS = r"^[\s\S]*$"


@lru_cache(1024)
def others(pattern: str) -> str | None:
    """Return the pattern (Rust) of the texts in which no reader finds this one (ECMA-262), or None where it is long."""
    try:
        expression = parse(widest(pattern))
        ways = _anchored(expression)
        if ways is None:
            return None
        found = automaton(Choice(tuple(ways)), all_readers=True)
    except NoText:
        return ALL_TEXTS
    except PatternError:
        return None
    # The last state is that of texts that the automaton does not follow any more.
    n = len(found.edges)
    if n > MAX_STATES:
        return None
    edges = [{target: _set(characters) for target, characters in ways.items()} for ways in found.edges]
    for number, leaving in enumerate(found.edges):
        rest = complement(ranges(pair for characters in leaving.values() for pair in characters))
        if rest:
            edges[number][n] = _set(rest)
    edges.append({n: r"[\s\S]"})
    text = _expression(edges, set(range(n + 1)) - found.ends)
    return None if text is None else f"^(?:{text})$"


def _anchored(expression: Expression, *, start: bool = False, end: bool = False) -> list[Expression] | None:
    """Return ways to write texts in which an expression is found; None where an anchor is in the middle of it."""
    match expression:
        case Choice(ways):
            found = [_anchored(way, start=start, end=end) for way in ways]
            return None if any(one is None for one in found) else [way for one in found for way in one or []]
        case Anchor(char):
            return _anchored(Sequence(()), start=start or char == "^", end=end or char == "$")
        case Sequence(parts):
            first = next((at for at, part in enumerate(parts) if part != _anchor("^", part)), len(parts))
            last = next(
                (at for at in range(len(parts), first, -1) if parts[at - 1] != _anchor("$", parts[at - 1])), first
            )
            start, end, inner = start or first > 0, end or last < len(parts), parts[first:last]
            if len(inner) == 1:
                return _anchored(inner[0], start=start, end=end)
            expression = Sequence(inner)
    if anchors(expression):
        return None
    return [Sequence((*([] if start else [ANYTHING]), expression, *([] if end else [ANYTHING])))]


def _anchor(char: str, part: Expression) -> Expression | None:
    return part if isinstance(part, Anchor) and part.char == char else None


def _set(characters: Ranges) -> str:
    if characters == EVERYTHING:
        return r"[\s\S]"
    pairs = (_code(low) + (f"-{_code(high)}" if high > low else "") for low, high in characters)
    return f"[{''.join(pairs)}]"


def _code(code: int) -> str:
    return f"\\u{{{code:x}}}"


def _expression(edges: list[dict[int, str]], ends: set[int]) -> str | None:
    """Eliminate states. A way is an expression that stands by itself beside others (`_union`) or in a row."""
    begin, finish = len(edges), len(edges) + 1
    ways = {(at, to): way for at, leaving in enumerate(edges) for to, way in leaving.items()}
    ways[begin, 0] = ""
    ways.update({(at, finish): "" for at in ends})
    left = set(range(len(edges)))
    while left:
        state = min(left, key=lambda one: sum(one in pair for pair in ways))
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
