"""Sets of characters as ranges of code points. Any thread.

A set that depends on the version of Unicode, or on how an implementation folds case, is known between two bounds:
what is surely in it, and what may be. Its complement is known just so.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

Ranges = tuple[tuple[int, int], ...]
"""Ranges with both ends, in order and apart from each other."""

EVERYTHING: Ranges = ((0, 0xD7FF), (0xE000, sys.maxunicode))
"""All characters; halves of surrogate pairs are none."""


def ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in order, those that meet made one."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def complement(of: Ranges) -> Ranges:
    """Return all other characters."""
    out = []
    for first, last in EVERYTHING:
        at = first
        for low, high in of:
            if high < at or low > last:
                continue
            if low > at:
                out.append((at, low - 1))
            at = high + 1
        if at <= last:
            out.append((at, last))
    return tuple(out)


def common(one: Ranges, other: Ranges) -> Ranges:
    """Return the characters that are in both sets."""
    return complement(ranges((*complement(one), *complement(other))))


@dataclass(frozen=True, slots=True)
class Characters:
    """A set between two bounds: what is surely in it, and what may be."""

    sure: Ranges
    possible: Ranges

    def __invert__(self) -> Characters:
        return Characters(complement(self.possible), complement(self.sure))

    def __or__(self, other: Characters) -> Characters:
        return Characters(ranges(self.sure + other.sure), ranges(self.possible + other.possible))

    def in_any_case(self) -> Characters:
        """Return the set with the other cases of its letters."""
        sure, possible = _other_cases()
        return Characters(_with_cases(self.sure, sure), _with_cases(self.possible, possible))


def between(low: int, high: int) -> Characters:
    """Return the characters of a range."""
    return Characters(((low, high),), ((low, high),))


NONE = Characters((), ())


def category(name: str) -> Characters | None:
    """Return the characters of a general category by its short name (`L`, `Lu`); None when there is none.

    What this version of Unicode does not know yet may be in any of them.
    """
    tables = _categories()
    sure = ranges(itertools.chain.from_iterable(table for key, table in tables.items() if key.startswith(name)))
    return Characters(sure, ranges((*sure, *tables["Cn"]))) if sure and 0 < len(name) <= 2 else None


@lru_cache(1)
def _categories() -> dict[str, Ranges]:
    """Return the ranges of each general category (0.2 s, once)."""
    tables: dict[str, list[tuple[int, int]]] = {}
    code = 0
    for name, run in itertools.groupby(map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))):
        length = sum(1 for _ in run)
        tables.setdefault(name, []).append((code, code + length - 1))
        code += length
    del tables["Cs"]
    return {name: tuple(found) for name, found in tables.items()}


@lru_cache(1)
def _other_cases() -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """Return the other cases of each letter: those that all readers agree on, and those that some take for one."""
    agreed: dict[int, set[int]] = {}
    kin: dict[str, set[int]] = {}
    letters = ("Lu", "Ll", "Lt", "Mn", "Nl", "So")
    for low, high in itertools.chain.from_iterable(_categories()[name] for name in letters):
        for code in range(low, high + 1):
            char = chr(code)
            forms = {char.lower(), char.upper(), char.title(), char.casefold()} - {char}
            if not forms:
                continue
            for form in forms:
                kin.setdefault(form.casefold(), set()).update({code, *([ord(form)] if len(form) == 1 else [])})
            swapped = char.swapcase()
            if len(swapped) == 1 and swapped != char and swapped.swapcase() == char:
                agreed[code] = {ord(swapped)}
    alike: dict[int, set[int]] = {}
    for group in kin.values():
        for code in group:
            alike.setdefault(code, set()).update(group)
    return agreed, alike


def _with_cases(of: Ranges, cases: dict[int, set[int]]) -> Ranges:
    other = [form for low, high in of for code in cases if low <= code <= high for form in cases[code]]
    return ranges((*of, *((code, code) for code in other)))
