r"""Regular expressions as trees, read from what `pattern.py` writes for Rust. Any thread.

So both engines mean the same by a pattern: one is given that text, the other what is read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_local.structured.characters import EVERYTHING, NONE, Characters, between, category
from llm_local.structured.pattern import PatternError

MAX_DEPTH = 100

_CODE = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|x([0-9a-f]{2}))")
_CATEGORY = re.compile(r"\\([pP])\{([^}]*)\}")
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")
_SIMPLE = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_CONTROL = {"t": "\t", "n": "\n", "r": "\r"}


@dataclass(frozen=True, slots=True)
class One:
    """One character of a set."""

    characters: Characters


@dataclass(frozen=True, slots=True)
class Anchor:
    """`^` or `$`, and its offset in what was read."""

    char: str
    at: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """One part after the other."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some ways."""

    ways: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part again and again; `most` is None where there is no limit."""

    part: Expression
    least: int
    most: int | None


Expression = One | Anchor | Sequence | Choice | Repeat


def parse(rust: str) -> Expression:
    """Return the tree of a pattern that `pattern.to_rust` returned.

    Raises:
        PatternError: something in it has no exact equivalent here.
    """
    reader = _Reader(rust)
    found = reader.choice(0)
    if reader.at < len(rust):
        raise PatternError("a parenthesis is closed that was not opened")
    return found


def anchors(expression: Expression) -> list[Anchor]:
    """Return all anchors."""
    match expression:
        case Anchor():
            return [expression]
        case One():
            return []
        case Repeat(part):
            return anchors(part)
        case Sequence(parts) | Choice(parts):
            return [anchor for part in parts for anchor in anchors(part)]


def outer_anchors(expression: Expression, *, starts: bool = True, ends: bool = True) -> set[Anchor]:
    """Return the anchors that mean nothing where the whole text is matched: they stand at its start, or its end."""
    match expression:
        case Anchor(char):
            return {expression} if (starts and char == "^") or (ends and char == "$") else set()
        case Choice(ways):
            return set().union(*(outer_anchors(way, starts=starts, ends=ends) for way in ways))
        case Repeat(part, _, most) if most == 1:
            return outer_anchors(part, starts=starts, ends=ends)
        case Sequence(parts):
            found: set[Anchor] = set()
            for at, part in enumerate(parts):
                before = starts and all(isinstance(other, Anchor) for other in parts[:at])
                behind = ends and all(isinstance(other, Anchor) for other in parts[at + 1 :])
                found |= outer_anchors(part, starts=before, ends=behind)
            return found
    return set()


class _Reader:
    """Reads from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0
        self._any_case = text.startswith("(?i)")
        if self._any_case:
            self.at = 4

    def _peek(self) -> str:
        return self._text[self.at : self.at + 1]

    def choice(self, depth: int) -> Expression:
        """Read alternatives up to a parenthesis that is closed, or to the end."""
        if depth > MAX_DEPTH:
            raise PatternError(f"it is nested over {MAX_DEPTH} deep")
        ways = [self._sequence(depth)]
        while self._peek() == "|":
            self.at += 1
            ways.append(self._sequence(depth))
        return ways[0] if len(ways) == 1 else Choice(tuple(ways))

    def _sequence(self, depth: int) -> Expression:
        parts = []
        while (char := self._peek()) and char not in "|)":
            parts.append(self._repeated(self._atom(char, depth)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self, part: Expression) -> Expression:
        char = self._peek()
        if char in _SIMPLE and char:
            least, most = _SIMPLE[char]
            self.at += 1
        elif found := _COUNT.match(self._text, self.at):
            least = int(found[1])
            most = (int(found[3]) if found[3] else None) if found[2] else least
            self.at = found.end()
        else:
            return part
        if self._peek() == "?":
            # Which way is tried first does not matter to what matches as a whole.
            self.at += 1
        return Repeat(part, least, most)

    def _atom(self, char: str, depth: int) -> Expression:
        start = self.at
        if char == "(":
            self.at += 3 if self._text.startswith("(?:", self.at) else 1
            inner = self.choice(depth + 1)
            if self._peek() != ")":
                raise PatternError("a parenthesis is not closed")
            self.at += 1
            return inner
        if char in "^$":
            self.at += 1
            return Anchor(char, start)
        return One(self._cased(self._class() if char == "[" else self._one()))

    def _cased(self, characters: Characters) -> Characters:
        return characters.in_any_case() if self._any_case else characters

    def _class(self) -> Characters:
        self.at += 1
        negated = self._peek() == "^"
        self.at += negated
        found = NONE
        while self._peek() != "]":
            if self._text.startswith(("\\s", "\\S"), self.at):
                # Only as `[\s\S]` and `[^\s\S]`.
                self.at += 2
                found = Characters(EVERYTHING, EVERYTHING)
            elif self._peek() == "[":
                found |= self._class()
            else:
                found |= self._range()
        self.at += 1
        if not negated:
            return found
        # Case is folded before a class is negated.
        return ~self._cased(found)

    def _range(self) -> Characters:
        low = self._one()
        follows = self._text[self.at : self.at + 2]
        if follows[:1] != "-" or follows[1:] == "]":
            return low
        self.at += 1
        first, last = low.sure[0][0], self._one().sure[0][0]
        if last < first:
            raise PatternError(f"the range {chr(first)}-{chr(last)} is out of order")
        return between(first, last)

    def _one(self) -> Characters:
        if found := _CODE.match(self._text, self.at):
            code = int(found[1] or found[2], 16)
        elif found := _CATEGORY.match(self._text, self.at):
            self.at = found.end()
            return _category(found[2], negated=found[1] == "P")
        else:
            escaped = self._peek() == "\\"
            self.at += escaped
            char = self._peek()
            self.at += 1
            code = ord(_CONTROL.get(char, char) if escaped else char)
            return between(code, code)
        self.at = found.end()
        return between(code, code)


def _category(name: str, *, negated: bool) -> Characters:
    short = name.removeprefix("General_Category=").removeprefix("gc=")
    found = category(short)
    if found is None:
        raise PatternError(f"of \\p{{{name}}} only general categories are known here, by their short names (L, Lu, Nd)")
    return ~found if negated else found
