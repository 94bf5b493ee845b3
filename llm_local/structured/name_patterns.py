"""`patternProperties` as patterns (Rust) that exclude each other, as engines want them. Any thread."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from llm_local.errors import InvalidSchema
from llm_local.structured.automaton import NoText
from llm_local.structured.complement import NO_TEXT, others, without
from llm_local.structured.joined_names import all_at_once
from llm_local.structured.look_ahead import Pattern, patterns
from llm_local.structured.pattern import to_rust, widest
from llm_local.structured.texts import listed, patterns_are_apart

MAX_LISTED = 64
"""Names of one pattern that are declared instead."""

MAX_MEETING = 3
"""Patterns that overlap and are parted: into seven."""


def overlapping_lists(sources: list[str], place: str) -> dict[str, list[str]]:
    """Return the names of those patterns that list a few which other patterns match as well.

    A name that is declared may match any pattern.
    """
    found: dict[str, list[str]] = {}
    made = _made(sources, place)
    for pattern in made:
        rest = [other for other in made if other is not pattern and other.source not in found]
        if not all(patterns_are_apart(pattern, other) for other in rest):
            names = listed(pattern, MAX_LISTED)
            if names is not None:
                found[pattern.source] = names
    return found


def exclusive_patterns(sources: list[str], place: str, *, is_open: bool) -> dict[str, list[str]]:
    """Return patterns with the sources that match the same names; a few that overlap are parted.

    Args:
        sources: patterns (ECMA-262).
        is_open: whether names that none of them matches are free.

    Raises:
        InvalidSchema: there is no exact equivalent.
    """
    parted: dict[str, list[str]] = {}
    for group in _meeting(sources, place):
        cells = _parted(group, place, is_open=is_open) if 1 < len(group) <= MAX_MEETING else None
        for pattern, held in cells or [(_single(source, place, is_open=is_open), [source]) for source in group]:
            parted[pattern] = [*parted.get(pattern, []), *held]
    return parted


def _made(sources: list[str], place: str) -> list[Pattern]:
    try:
        return [Pattern.of(source, place) for source in sources] if len(sources) > 1 else []
    except InvalidSchema:
        # (It has look-aheads, or is refused later.)
        return []


def _meeting(sources: list[str], place: str) -> list[list[str]]:
    """Return the patterns in groups that may overlap, directly or by others."""
    made = _made(sources, place)
    if not made:
        return [[source] for source in sources]
    groups: list[list[Pattern]] = []
    for pattern in made:
        met = [group for group in groups if not all(patterns_are_apart(pattern, other) for other in group)]
        groups = [group for group in groups if group not in met] + [[*itertools.chain(*met), pattern]]
    return [[pattern.source for pattern in group] for group in groups]


def _parted(sources: list[str], place: str, *, is_open: bool) -> list[tuple[str, list[str]]] | None:
    """Return a pattern for the names that some of these match and the others do not; None where one is long.

    Names about which readers differ are forbidden where others are, and are else held to all that any reader asks.
    """
    matching = {source: _single(source, place, is_open=is_open) for source in sources}
    opposites = {source: without(matching[source]) if is_open else others(source) for source in sources}
    cells = []
    for held in _subsets(sources):
        parts = [matching[source] if source in held else opposites[source] for source in sources]
        if None in parts:
            return None
        try:
            whole = all_at_once(tuple(map(str, parts)), all_readers=True)
        except NoText:
            continue
        if whole is None:
            return None
        cells.append((whole, held))
    return cells


def _subsets(sources: list[str]) -> Iterable[list[str]]:
    for n in range(1, len(sources) + 1):
        yield from map(list, itertools.combinations(sources, n))


def _single(source: str, place: str, *, is_open: bool) -> str:
    """Return one pattern of names, where there may be look-aheads.

    Where readers differ on what matches, other names are either forbidden, or it is about all that any reader matches.
    """
    parts = patterns(source, place)
    if is_open and len(parts) == 1:
        # (Not for the last newline that `$` lets be in Python: open and closed objects shall have the same patterns.)
        return widest(source).replace(r"\n?$", "$")
    try:
        found = all_at_once(tuple(parts))
    except NoText:
        return NO_TEXT
    return to_rust(source, place) if found is None else found
