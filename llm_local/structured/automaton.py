r"""Regular expressions as deterministic automata, and these as GBNF. Workers.

llama.cpp follows all ways through a grammar at once: `(a|b*){1,50}` written as it stands would be thousands of them,
or left-recursive. A deterministic automaton has one way, whatever the expression: each state is a rule, each of its
alternatives one character and the next state.

Source: V. M. Glushkov, The abstract theory of automata (1961): a position for each character of the expression, and
which ones may follow it; then the subset construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from llm_local.structured.characters import Ranges, complement, ranges
from llm_local.structured.expression import Anchor, Choice, Expression, One, Repeat, Sequence
from llm_local.structured.pattern import PatternError

MAX_POSITIONS = 10_000
MAX_STATES = 4000
RANGES = 20
MAX_STEPS = 200_000
"""Positions that are looked at while states are made."""

Edges = dict[int, Ranges]
"""The characters that lead to each next state."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """States by number, beginning with 0; from each of them an end can be reached.

    Attributes:
        edges: of each state; no character leads to two states.
        ends: states where the text may end.
    """

    edges: list[Edges]
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an expression: whether it may be empty, and the positions (bits) where it may begin and end."""

    empty: bool
    first: int
    last: int


def weight_of(characters: Ranges) -> int:
    """Return as how many positions a set of characters counts: what has many ranges is many bytes' ways."""
    return 1 + len(characters) // RANGES


class NoText(PatternError):
    """No text matches."""


def automaton(expression: Expression, *, all_readers: bool = False) -> Automaton:
    """Return the automaton of a whole text; anchors in the expression mean nothing.

    Args:
        all_readers: of what any reader may take to match, and not of what all of them do.

    Raises:
        PatternError: it would be too large, or no text matches.
    """
    positions = _Positions(all_readers=all_readers)
    whole = positions.part(expression)
    return trimmed(*_States(positions, whole).found())


def most_at_once(expression: Expression, enough: int) -> int:
    """Return at how many positions a text may be at once: a text that always takes the character with the most of them.

    A position whose set has many ranges counts as several.

    Args:
        enough: no more than one above this need be found.
    """
    positions = _Positions()
    try:
        whole = positions.part(expression)
        return _States(positions, whole).most_at_once(enough)
    except PatternError:
        return 0


class _Positions:
    """The positions of an expression: the set that each one matches, and the positions that may follow it."""

    def __init__(self, *, all_readers: bool = False) -> None:
        self._all_readers = all_readers
        self.sets: dict[Ranges, int] = {}
        self.set_of: list[int] = []
        self.follow: list[int] = []
        self._n_steps = 0

    def part(self, node: Expression) -> _Part:
        """Add what a part has, and return where it begins and ends."""
        match node:
            case One(characters):
                return self._one(characters.possible if self._all_readers else _without_nul(characters.sure))
            case Anchor():
                return _Part(empty=True, first=0, last=0)
            case Sequence(parts):
                return self._sequence([self.part(part) for part in parts])
            case Choice(ways):
                found = [self.part(way) for way in ways]
                first = last = 0
                for one in found:
                    first, last = first | one.first, last | one.last
                return _Part(any(one.empty for one in found), first, last)
            case Repeat():
                return self._repeat(node)

    def _one(self, matched: Ranges) -> _Part:
        if not matched:
            return _Part(empty=False, first=0, last=0)
        if len(self.follow) >= MAX_POSITIONS:
            raise PatternError(f"it has over {MAX_POSITIONS} characters, repetitions written out")
        self.set_of.append(self.sets.setdefault(matched, len(self.sets)))
        self.follow.append(0)
        bit = 1 << (len(self.follow) - 1)
        return _Part(empty=False, first=bit, last=bit)

    def _sequence(self, parts: list[_Part]) -> _Part:
        whole = _Part(empty=True, first=0, last=0)
        for part in parts:
            self._link(whole.last, part.first)
            whole = _Part(
                whole.empty and part.empty,
                whole.first | part.first if whole.empty else whole.first,
                whole.last | part.last if part.empty else part.last,
            )
        return whole

    def _repeat(self, node: Repeat) -> _Part:
        """Copies in a row; the ends of all that suffice are ends. (Leaving out one is leaving out the last.)"""
        least, n = node.least, max(node.least, 1) if node.most is None else node.most
        if n == 0:
            return _Part(empty=True, first=0, last=0)
        copies: list[_Part] = []
        for _ in range(n):
            copy = self.part(node.part)
            if copies:
                self._link(copies[-1].last, copy.first)
            copies.append(copy)
            if not copy.first:
                # Repeating what matches nothing but the empty text, or nothing at all.
                return _Part(least == 0 or copy.empty, first=0, last=0)
        if node.most is None:
            self._link(copies[-1].last, copies[-1].first)
        empty = copies[0].empty
        last = 0
        for copy in copies[0 if empty else max(least, 1) - 1 :]:
            last |= copy.last
        return _Part(least == 0 or empty, copies[0].first, last)

    def _link(self, last: int, first: int) -> None:
        for at in bits(last):
            self.follow[at] |= first
            self._n_steps += 1
        if self._n_steps > MAX_STEPS:
            raise PatternError("it has too many parts that may be left out")


@lru_cache(256)
def _without_nul(sure: Ranges) -> Ranges:
    """Return a set less NUL, which for llama.cpp is the end of a token's text."""
    return complement(ranges((*complement(sure), (0, 0))))


class _States:
    """The subset construction: a state is what may be matched next, and whether the text may end."""

    def __init__(self, positions: _Positions, whole: _Part) -> None:
        self._positions = positions
        self._whole = whole
        self._numbers: dict[tuple[int, bool], int] = {}
        self._masks: list[int] = []
        self._n_steps = 0

    def found(self) -> tuple[list[Edges], set[int]]:
        """Return the edges of all states, and those where the text may end."""
        letters = _letters(list(self._positions.sets))
        self._number(self._whole.first, end=self._whole.empty)
        edges: list[Edges] = []
        while len(edges) < len(self._masks):
            edges.append(self._edges(self._masks[len(edges)], letters))
        return edges, {number for (_, end), number in self._numbers.items() if end}

    def most_at_once(self, enough: int) -> int:
        """Return the most positions of the states along one way, as far as it leads to new ones within the limits."""
        sets, heavy = list(self._positions.sets), dict[int, int]()
        for at, of in enumerate(self._positions.set_of):
            weight = weight_of(sets[of])
            heavy[weight] = heavy.get(weight, 0) | 1 << at
        letters = _letters(sets)
        at = self._number(self._whole.first, end=self._whole.empty)
        most, seen = 0, set[int]()
        try:
            while at not in seen and most <= enough:
                seen.add(at)
                most = max(most, sum((self._masks[at] & mask).bit_count() * weight for weight, mask in heavy.items()))
                edges = self._edges(self._masks[at], letters)
                at = max(edges, key=lambda target: self._masks[target].bit_count(), default=at)
        except PatternError:
            # What was found until here counts.
            pass
        return most

    def _number(self, mask: int, *, end: bool) -> int:
        if len(self._numbers) >= MAX_STATES:
            raise PatternError(f"it needs over {MAX_STATES} states to be followed; make repetitions shorter")
        number = self._numbers.setdefault((mask, end), len(self._masks))
        if number == len(self._masks):
            self._masks.append(mask)
        return number

    def _edges(self, mask: int, letters: dict[int, list[tuple[int, int]]]) -> Edges:
        positions = self._positions
        next_of: dict[int, int] = {}
        ends: set[int] = set()
        for at in bits(mask):
            matched = positions.set_of[at]
            next_of[matched] = next_of.get(matched, 0) | positions.follow[at]
            if self._whole.last >> at & 1:
                ends.add(matched)
            self._n_steps += 1
        if self._n_steps > MAX_STEPS:
            raise PatternError("there are too many ways to read it")
        edges: dict[int, list[tuple[int, int]]] = {}
        for sets, characters in letters.items():
            matching = [matched for matched in next_of if sets >> matched & 1]
            if matching:
                target = 0
                for matched in matching:
                    target |= next_of[matched]
                number = self._number(target, end=not ends.isdisjoint(matching))
                edges.setdefault(number, []).extend(characters)
        return {number: ranges(characters) for number, characters in edges.items()}


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _letters(sets: list[Ranges]) -> dict[int, list[tuple[int, int]]]:
    """Return the characters that no set tells apart, by the sets (bits) that they are in."""
    turns: dict[int, int] = {}
    for number, matched in enumerate(sets):
        for low, high in matched:
            turns[low] = turns.get(low, 0) ^ (1 << number)
            turns[high + 1] = turns.get(high + 1, 0) ^ (1 << number)
    letters: dict[int, list[tuple[int, int]]] = {}
    active, begun = 0, 0
    for at in sorted(turns):
        if active:
            letters.setdefault(active, []).append((begun, at - 1))
        active, begun = active ^ turns[at], at
    return letters


def trimmed(edges: list[Edges], ends: set[int]) -> Automaton:
    """Return the automaton without states from which no end can be reached."""
    before: list[list[int]] = [[] for _ in edges]
    for number, ways in enumerate(edges):
        for target in ways:
            before[target].append(number)
    alive, stack = set(ends), list(ends)
    while stack:
        for number in before[stack.pop()]:
            if number not in alive:
                alive.add(number)
                stack.append(number)
    if 0 not in alive:
        raise NoText("no text matches it")
    numbers = {old: new for new, old in enumerate(sorted(alive))}
    kept = [
        {numbers[target]: characters for target, characters in edges[old].items() if target in alive} for old in numbers
    ]
    return Automaton(kept, frozenset(numbers[end] for end in ends))
