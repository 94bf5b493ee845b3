"""`patternProperties` as patterns (Rust) that exclude each other, as engines want them. Any thread."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable

from llm_local.errors import InvalidSchema
from llm_local.structured.automaton import NoText
from llm_local.structured.complement import NO_TEXT, others, without
from llm_local.structured.joined_names import all_at_once
from llm_local.structured.look_ahead import Pattern, patterns
from llm_local.structured.pattern import to_rust, widest
from llm_local.structured.texts import listed, patterns_are_apart

MAX_LISTED = 64
"""Names of one pattern that are declared instead."""

MAX_PATTERNS = 64
"""Of one `patternProperties`, that are compared with each other."""

MAX_MEETING = 3
"""Patterns that overlap and are parted: into seven."""


class NamePatterns:
    """The patterns of one `patternProperties`.

    Args:
        sources: patterns (ECMA-262).
        place: where they stand.
        check_time: raises when it takes too long.
    """

    def __init__(self, sources: list[str], place: str, check_time: Callable[[], None]) -> None:
        self._place = place
        self._check_time = check_time
        self._sources = sources
        self._made: list[Pattern] = []
        if 1 < len(sources) <= MAX_PATTERNS:
            # (Where one has look-aheads, or is refused later, they are taken as they are.)
            with contextlib.suppress(InvalidSchema):
                self._made = [Pattern.of(source, place) for source in sources]

    def lists(self) -> dict[str, list[str]]:
        """Return the names of those patterns that list a few which other patterns match as well; they are taken out.

        A name that is declared may match any pattern.
        """
        found: dict[str, list[str]] = {}
        for pattern in list(self._made):
            if self._meets(pattern, [other for other in self._made if other is not pattern]):
                names = listed(pattern, MAX_LISTED)
                if names is not None:
                    found[pattern.source] = names
                    self._made.remove(pattern)
                    self._sources = [source for source in self._sources if source != pattern.source]
        return found

    def exclusive(self, *, is_open: bool) -> dict[str, list[str]]:
        """Return patterns (Rust) with the sources that match the same names; a few that overlap are parted.

        Args:
            is_open: whether names that none of them matches are free.

        Raises:
            InvalidSchema: there is no exact equivalent.
        """
        parted: dict[str, list[str]] = {}
        for group in self._meeting():
            cells = _parted(group, self._place, is_open=is_open) if 1 < len(group) <= MAX_MEETING else None
            for pattern, held in cells or [(_single(one, self._place, is_open=is_open), [one]) for one in group]:
                parted[pattern] = [*parted.get(pattern, []), *held]
        return parted

    def _meets(self, pattern: Pattern, some: Iterable[Pattern]) -> bool:
        for other in some:
            self._check_time()
            if not patterns_are_apart(pattern, other):
                return True
        return False

    def _meeting(self) -> list[list[str]]:
        """Return the patterns in groups that may overlap, directly or by others."""
        if not self._made:
            return [[source] for source in self._sources]
        groups: list[list[Pattern]] = []
        for pattern in self._made:
            met = [group for group in groups if self._meets(pattern, group)]
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
