"""Which patterns no text satisfies together. Any thread."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

from llm_local.structured.automaton import Automaton, Edges, NoText
from llm_local.structured.characters import common, complement
from llm_local.structured.complement import automaton_of
from llm_local.structured.look_ahead import OtherTexts, Pattern
from llm_local.structured.pattern import LAST_NEWLINE, PatternError, to_rust, widest

MANY_TEXTS = 1000
"""Texts of a pattern that are counted."""

MAX_PAIRS = 4000
"""Pairs of states that a text may lead to."""


def patterns_are_apart(one: str, other: str) -> bool:
    """Tell whether it is certain that both patterns are found in no text, whoever reads them."""
    if isinstance(one, OtherTexts):
        one, other = other, one
    if not isinstance(one, Pattern):
        return False
    try:
        if isinstance(other, OtherTexts):
            return _is_within(one.source, other.pattern.source)
        return isinstance(other, Pattern) and _are_apart(widest(one.source), widest(other.source))
    except NoText:
        return True
    except PatternError:
        return False


def are_apart(one: str, other: str) -> bool:
    """Tell whether it is certain that two patterns (Rust) are found in no text together, whoever reads them."""
    try:
        return _are_apart(one, other)
    except NoText:
        return True
    except PatternError:
        return False


def is_never_found(pattern: str, text: str) -> bool:
    """Tell whether it is certain that no reader finds a pattern in a text."""
    if not isinstance(pattern, Pattern):
        return False
    try:
        found = _automaton(pattern.source)
    except PatternError:
        return False
    at: int | None = 0
    for char in text:
        at = None if at is None else _next(found.edges[at], ord(char))
    return at is None or at not in found.ends


def n_texts(pattern: str) -> float:
    """Return in how many texts all readers find a pattern; infinity for more than `MANY_TEXTS`.

    Raises:
        PatternError: it has no automaton.
    """
    try:
        found = _automaton(pattern, all_readers=False)
    except NoText:
        return 0
    n, ways = 0, {0: 1}
    # A text that is longer than there are states goes round in a circle, and so do others without end.
    for _ in range(len(found.edges) + 1):
        n += sum(count for state, count in ways.items() if state in found.ends)
        following: Counter[int] = Counter()
        for state, count in ways.items():
            for target, characters in found.edges[state].items():
                following[target] += count * sum(high - low + 1 for low, high in characters)
        ways = following
        if not ways:
            return n
        if n + sum(ways.values()) > MANY_TEXTS:
            break
    return math.inf


def listed(pattern: str, most: int) -> list[str] | None:
    """Return the texts in which any reader finds a pattern (Rust), where they are few.

    Args:
        most: so many are few.
    """
    try:
        found = automaton_of(pattern, all_readers=True)
    except NoText:
        return []
    except PatternError:
        return None
    texts, begun = [], [("", 0)]
    while begun:
        text, state = begun.pop()
        if state in found.ends:
            texts.append(text)
        n_ways = sum(high - low + 1 for characters in found.edges[state].values() for low, high in characters)
        # (A text that is longer than there are states goes round in a circle. Each way leads to an end.)
        if len(texts) + len(begun) + n_ways > most or len(text) > len(found.edges):
            return None
        for target, characters in found.edges[state].items():
            begun += [(text + chr(code), target) for low, high in characters for code in range(low, high + 1)]
    return sorted(texts)


@lru_cache(1024)
def _is_within(one: str, other: str) -> bool:
    """Tell whether each reader who finds one pattern in a text finds the other one, too."""
    if _is_read_alike(one) and _is_read_alike(other):
        readings = [True, False]
        return all(_includes(_automaton(other, all_readers=who), _automaton(one, all_readers=who)) for who in readings)
    return _includes(_automaton(other, all_readers=False), _automaton(one))


def _is_read_alike(source: str) -> bool:
    """Tell whether all that readers differ about is if `$` lets a last newline be."""
    return widest(source).replace(LAST_NEWLINE, "$") == to_rust(source)


def _includes(right: Automaton, left: Automaton) -> bool:
    """Tell whether the first automaton accepts all that the second one does."""
    seen, waiting = {(0, 0)}, [(0, 0)]
    while waiting:
        at, beside = waiting.pop()
        if at in left.ends and beside not in right.ends:
            return False
        for target, characters in left.edges[at].items():
            rest = characters
            for other_target, others in right.edges[beside].items():
                pair = target, other_target
                if pair not in seen and common(characters, others):
                    seen.add(pair)
                    waiting.append(pair)
                rest = common(rest, complement(others))
            if rest:
                return False
        if len(seen) > MAX_PAIRS:
            return False
    return True


def _next(edges: Edges, code: int) -> int | None:
    return next(
        (target for target, characters in edges.items() if any(low <= code <= high for low, high in characters)), None
    )


@lru_cache(1024)
def _are_apart(one: str, other: str) -> bool:
    left, right = _found_by_any(one), _found_by_any(other)
    seen, waiting = {(0, 0)}, [(0, 0)]
    while waiting:
        at, beside = waiting.pop()
        if at in left.ends and beside in right.ends:
            return False
        for target, characters in left.edges[at].items():
            for other_target, others in right.edges[beside].items():
                pair = target, other_target
                if pair not in seen and common(characters, others):
                    seen.add(pair)
                    waiting.append(pair)
        if len(seen) > MAX_PAIRS:
            return False
    return True


@lru_cache(256)
def _found_by_any(pattern: str) -> Automaton:
    return automaton_of(pattern, all_readers=True)


@lru_cache(256)
def _automaton(source: str, *, all_readers: bool = True) -> Automaton:
    return _found_by_any(widest(source)) if all_readers else automaton_of(to_rust(source))
