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
from llm_local.structured.texts import is_read_alike, listed, patterns_are_apart

MAX_LISTED = 64
"""Names of one pattern that are declared instead."""

MAX_PATTERNS = 64
"""Of one `patternProperties`, that are compared with each other."""

MAX_CHARACTERS = 5000
"""Of a pattern that is found for some of them."""

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

    def exclusive(self, *, is_open: bool, is_closed: bool) -> dict[str, list[str]]:
        """Return patterns (Rust) with the sources that match the same names; a few that overlap are parted.

        Args:
            is_open: whether names that none of them matches are free.
            is_closed: whether they are forbidden. (Else they are held to a schema of their own.)

        Raises:
            InvalidSchema: there is no exact equivalent.
        """
        parted: dict[str, list[str]] = {}
        for group in self._meeting():
            matching = {source: _single(source, self._place, is_open=is_open) for source in group}
            # (Where others are held to a schema, names about which readers differ would be held to one of two.)
            is_parted = 1 < len(group) <= MAX_MEETING and (is_open or is_closed or all(map(is_read_alike, group)))
            cells = self._parted(matching, is_closed=is_closed) if is_parted else None
            for pattern, held in cells or [(pattern, [source]) for source, pattern in matching.items()]:
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

    def _parted(self, matching: dict[str, str], *, is_closed: bool) -> list[tuple[str, list[str]]] | None:
        """Return a pattern for the names that some of these match and the others do not; None where one is long.

        Where other names are forbidden, so are names about which readers differ.

        Args:
            matching: the patterns of the sources.
        """
        opposites = {source: others(source) if is_closed else without(one) for source, one in matching.items()}
        cells = []
        for held in _subsets(list(matching)):
            self._check_time()
            parts = [one if source in held else opposites[source] for source, one in matching.items()]
            if None in parts:
                return None
            try:
                whole = all_at_once(tuple(map(str, parts)), all_readers=True)
            except NoText:
                continue
            if whole is None or len(whole) > MAX_CHARACTERS:
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
