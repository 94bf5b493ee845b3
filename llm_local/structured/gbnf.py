"""A guard before llama.cpp's grammar parser, which native limits do not protect: it reads the shape of a grammar.

What it keeps out: repetitions that exhaust memory, nesting that exhausts the C stack, grammars whose check for left
recursion takes exponential time (llama.cpp walks every leftmost path anew), and many parts in a row that may all be
empty, each of which doubles the ways to go on (minutes for one token). Any thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from llm_local.errors import InvalidGrammar
from llm_local.structured.symbols import symbols

MAX_BYTES = 2**18
MAX_NESTING = 600
MAX_REPEAT = 1000
MAX_SYMBOLS = 50_000
MAX_VISITS = 200_000
"""Steps that llama.cpp's check for left recursion may take."""

MAX_EMPTY = 48
"""Parts in a row that may all match nothing, those inside of them counted."""

MAX_PATH = 600
"""Rules that it may be inside of at once."""


@dataclass(slots=True)
class _Item:
    """Something in a sequence: what it refers to (a rule or a group), and whether it may match nothing."""

    name: str | None
    empty: bool = False
    times: int = 1


@dataclass(slots=True)
class _Rule:
    """Alternatives of sequences."""

    ways: list[list[_Item]] = field(default_factory=lambda: [[]])


def check_gbnf(grammar: str) -> frozenset[str]:
    """Let a grammar pass that llama.cpp can be given; return the tokens that it names (`<tool_call>`).

    Raises:
        InvalidGrammar: it cannot be read, refers to rules that are not there, is left-recursive, or too large.
    """
    if len(grammar.encode()) > MAX_BYTES:
        raise InvalidGrammar(f"The grammar has over {MAX_BYTES} bytes.")
    if "\0" in grammar:
        raise InvalidGrammar("The grammar contains a NUL character.")
    reader = _Reader(grammar)
    rules = reader.read()
    if "root" not in rules:
        raise InvalidGrammar("The grammar has no rule named 'root', which is where it starts.")
    for name, rule in rules.items():
        for item in (item for way in rule.ways for item in way):
            if item.name is not None and item.name not in rules:
                raise InvalidGrammar(f"The rule '{name.split(' ')[0]}' uses '{item.name}', which is not defined.")
    _check_leftmost(rules)
    _check_empty(rules)
    return frozenset(reader.named)


class _Reader:
    """Reads rules; a group becomes a rule of its own, as in llama.cpp."""

    def __init__(self, grammar: str) -> None:
        self._grammar = grammar
        self._rules: dict[str, _Rule] = {}
        self._stack: list[tuple[str, _Rule]] = []
        self._n_groups = 0
        self._n_symbols = 0
        self.named: set[str] = set()

    def read(self) -> dict[str, _Rule]:
        """Return all rules."""
        for kind, text in symbols(self._grammar):
            self._take(kind, text)
        if len(self._stack) > 1:
            raise InvalidGrammar("A parenthesis is not closed in the grammar.")
        return self._rules

    def _take(self, kind: str, text: str) -> None:
        if kind == "space":
            return
        if kind == "define":
            self._define(text.removesuffix("::=").strip())
            return
        if not self._stack:
            raise InvalidGrammar(f"The grammar must begin with a rule (NAME ::= ...), not with {text[:20]!r}.")
        way = self._stack[-1][1].ways[-1]
        self._n_symbols += len(text) if kind == "literal" else 1
        if kind == "repeat" or text in ("*", "+", "?"):
            self._repeat(way, text)
        elif text == "(":
            self._open()
        elif text == ")":
            self._close()
        elif text == "|":
            self._stack[-1][1].ways.append([])
        else:
            way.append(_Item(text if kind == "name" else None, empty=text == '""'))
            if kind == "token" and not text.startswith("!"):
                self.named.add(text)
        if self._n_symbols > MAX_SYMBOLS:
            raise InvalidGrammar(f"The grammar has over {MAX_SYMBOLS} symbols, repetitions counted.")

    def _define(self, name: str) -> None:
        if len(self._stack) > 1:
            raise InvalidGrammar(f"A parenthesis is not closed before the rule '{name}'.")
        rule = self._rules[name] = _Rule()
        self._stack = [(name, rule)]

    def _open(self) -> None:
        self._n_groups += 1
        name, rule = f"{self._stack[0][0]} ({self._n_groups})", _Rule()
        self._rules[name] = rule
        self._stack[-1][1].ways[-1].append(_Item(name))
        self._stack.append((name, rule))
        if len(self._stack) > MAX_NESTING:
            raise InvalidGrammar(f"The grammar is nested over {MAX_NESTING} deep.")

    def _close(self) -> None:
        if len(self._stack) < 2:
            raise InvalidGrammar("A parenthesis is closed in the grammar that was not opened.")
        self._stack.pop()

    def _repeat(self, way: list[_Item], text: str) -> None:
        if not way:
            raise InvalidGrammar(f"There is nothing to repeat before {text!r} in the grammar.")
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if numbers and max(numbers) > MAX_REPEAT:
            raise InvalidGrammar(f"A repetition of over {MAX_REPEAT} ({text}) is too large.")
        self._n_symbols += max(numbers, default=1)
        if len(numbers) == 2 and numbers[1] < numbers[0]:
            raise InvalidGrammar(f"The repetition {text} in the grammar is out of order.")
        least = numbers[0] if numbers else (1 if text == "+" else 0)
        way[-1].times *= max(least, *numbers, 1)
        way[-1].empty = way[-1].empty or least == 0


def _check_leftmost(rules: dict[str, _Rule]) -> None:
    """Count what llama.cpp visits when it looks for left recursion; refuse cycles and explosions."""
    empty = _may_be_empty(rules)
    visits: dict[str, int] = {}
    heights: dict[str, int] = {}
    for start in rules:
        stack: list[tuple[str, bool]] = [(start, False)]
        on_path: set[str] = set()
        while stack:
            name, leaving = stack.pop()
            if leaving:
                on_path.discard(name)
                inner = _leftmost(rules[name], empty)
                # A repetition makes rules in between: twice the visits is on the safe side.
                visits[name] = 1 + 2 * sum(visits[other] for other in inner)
                heights[name] = 2 + max((heights[other] for other in inner), default=0)
                if visits[name] > MAX_VISITS or heights[name] > MAX_PATH:
                    raise InvalidGrammar(f"The rule '{name.split(' ')[0]}' is too complex: too many ways to begin.")
                continue
            if name in visits:
                continue
            if name in on_path:
                raise InvalidGrammar(f"The rule '{name.split(' ')[0]}' is left-recursive, which is not supported.")
            on_path.add(name)
            stack.append((name, True))
            stack += [(other, False) for other in _leftmost(rules[name], empty)]


def _check_empty(rules: dict[str, _Rule]) -> None:
    """Refuse what has too many parts in a row that may be empty. (There are no cycles of them: see above.)"""
    empty = _may_be_empty(rules)
    widths: dict[str, int] = {}
    for start in rules:
        stack = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                widths[name] = max(1, *(_width(way, empty, widths) for way in rules[name].ways))
                if widths[name] > MAX_EMPTY:
                    shown = name.split(" ", maxsplit=1)[0]
                    raise InvalidGrammar(
                        f"The rule '{shown}' has over {MAX_EMPTY} parts in a row that may all be empty."
                    )
            elif name not in widths:
                widths[name] = 1
                inner = [str(item.name) for way in rules[name].ways for item in way if item.name in empty]
                stack += [(name, True), *((other, False) for other in inner)]


def _width(way: list[_Item], empty: set[str], widths: dict[str, int]) -> int:
    """Return the most parts in a row that may be empty."""
    total = longest = 0
    for item in way:
        if item.name is not None and item.name in empty:
            # Repeating what may be empty is the same as writing it so often.
            total += item.times * widths.get(item.name, 1)
        elif item.empty:
            total += 1
        else:
            total = 0
        longest = max(longest, total)
    return longest


def _leftmost(rule: _Rule, empty: set[str]) -> list[str]:
    found = []
    for way in rule.ways:
        for item in way:
            if item.name is not None:
                found.append(item.name)
            if not (item.empty or (item.name in empty)):
                break
    return found


def _may_be_empty(rules: dict[str, _Rule]) -> set[str]:
    """Return the rules that may match nothing."""
    empty: set[str] = set()
    # Ways that are empty if others are: the rule, and how many of the others are not known to be so yet.
    waiting: dict[str, list[list[Any]]] = {}
    found: list[str] = []
    for name, rule in rules.items():
        for way in rule.ways:
            needed = [item.name for item in way if not item.empty]
            if None in needed:
                continue
            counted: list[Any] = [name, len(needed)]
            for other in needed:
                waiting.setdefault(str(other), []).append(counted)
            if not needed:
                found.append(name)
    while found:
        name = found.pop()
        if name in empty:
            continue
        empty.add(name)
        for counted in waiting.get(name, []):
            counted[1] -= 1
            if counted[1] == 0:
                found.append(counted[0])
    return empty
