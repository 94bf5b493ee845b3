"""Regular expressions for a whole answer: the same texts in Rust's syntax for llguidance and in GBNF for llama.cpp.

Any thread.
"""

from __future__ import annotations

from collections import Counter

from llm_local.errors import InvalidGrammar, InvalidSchema
from llm_local.structured.ambiguity import check_ambiguity
from llm_local.structured.automaton import Automaton, automaton
from llm_local.structured.characters import Ranges
from llm_local.structured.expression import Expression, anchors, outer_anchors, parse
from llm_local.structured.pattern import PatternError, source_of, to_rust
from llm_local.structured.symbols import in_set, literal

MAX_INLINE = 8
"""Ranges of a set that is written where it stands; others get a rule of their own."""


class Regular:
    """A regular expression (ECMA-262) that matches a whole text.

    Anchors at the ends of the text are allowed and mean nothing.

    Args:
        pattern: as the client wrote it.

    Raises:
        InvalidGrammar: it is none, or uses what finite automata cannot do; says what, and at which character.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        try:
            self._rust = to_rust(pattern, "guided_regex")
        except InvalidSchema as error:
            raise InvalidGrammar(error.message) from None
        self._expression = self._checked()

    def _checked(self) -> Expression:
        try:
            found = parse(self._rust)
        except PatternError as error:
            raise self._refused(str(error)) from None
        self._outer = sorted(anchor.at for anchor in outer_anchors(found))
        for anchor in anchors(found):
            if anchor.at not in self._outer:
                side = "start" if anchor.char == "^" else "end"
                place = source_of(self._pattern, anchor.at) + 1
                raise self._refused(f"the anchor {anchor.char} at character {place} is not at the {side} of the text")
        return found

    def rust(self) -> str:
        """Return it in Rust's syntax, without anchors.

        Raises:
            InvalidGrammar: there are too many ways to read a text along it.
        """
        try:
            check_ambiguity(self._rust)
        except PatternError as error:
            raise self._refused(str(error)) from None
        ends = [*self._outer, len(self._rust)]
        starts = [0, *(at + 1 for at in self._outer)]
        return "".join(self._rust[start:end] for start, end in zip(starts, ends, strict=True))

    def gbnf(self) -> str:
        """Return it as a grammar in which at each character there is one way on.

        Raises:
            InvalidGrammar: no text matches, it is too large, or has a property of characters that is not known here.
        """
        try:
            return "\n".join(_rules(automaton(self._expression)))
        except PatternError as error:
            raise self._refused(str(error)) from None

    def _refused(self, why: str) -> InvalidGrammar:
        return InvalidGrammar(f"guided_regex: {why} (in the pattern {self._pattern[:100]!r}).")


def _rules(found: Automaton) -> list[str]:
    entered = Counter(target for edges in found.edges for target in edges)
    entered[0] += 1
    sets: dict[Ranges, str] = {}
    lines = []
    for number, edges in enumerate(found.edges):
        if number and (not edges or _is_passed(number, found, entered)):
            continue
        ways = [_way(characters, target, found, entered, sets) for target, characters in edges.items()]
        if number in found.ends:
            ways.append('""')
        lines.append(f"{_name(number)} ::= {' | '.join(ways)}")
    return lines + [f"{name} ::= {_set(characters)}" for characters, name in sets.items()]


def _name(number: int) -> str:
    return f"s{number}" if number else "root"


def _is_passed(number: int, found: Automaton, entered: Counter[int]) -> bool:
    """Whether a state is entered in one place and left in one way: it needs no rule of its own."""
    return entered[number] == 1 and len(found.edges[number]) == 1 and number not in found.ends


def _way(characters: Ranges, target: int, found: Automaton, entered: Counter[int], sets: dict[Ranges, str]) -> str:
    """Return a character and what follows it, as far as there is one way."""
    parts = [_symbol(characters, sets)]
    while _is_passed(target, found, entered):
        ((target, characters),) = found.edges[target].items()
        parts.append(_symbol(characters, sets))
    if found.edges[target]:
        parts.append(_name(target))
    return " ".join(parts)


def _symbol(characters: Ranges, sets: dict[Ranges, str]) -> str:
    if len(characters) == 1 and characters[0][0] == characters[0][1]:
        return literal(chr(characters[0][0]))
    if len(characters) <= MAX_INLINE:
        return _set(characters)
    return sets.setdefault(characters, f"set-{len(sets)}")


def _set(characters: Ranges) -> str:
    pairs = (in_set(chr(low)) + (f"-{in_set(chr(high))}" if high > low else "") for low, high in characters)
    return f"[{''.join(pairs)}]"
