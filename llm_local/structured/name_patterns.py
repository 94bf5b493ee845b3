"""`patternProperties` as patterns (Rust) that exclude each other, as engines want them. Any thread.

Readers of regular expressions differ on some names (`pattern.py`): a name may match for one of them and be one of the
others' for another. Such a name is allowed only with a value that is valid for all of them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from llm_local.errors import InvalidSchema
from llm_local.structured.automaton import NoText
from llm_local.structured.complement import NO_TEXT, others, without
from llm_local.structured.joined_names import all_at_once
from llm_local.structured.look_ahead import OtherTexts, Pattern, patterns
from llm_local.structured.pattern import LAST_NEWLINE, coarsest, to_rust, widest
from llm_local.structured.texts import listed, patterns_are_apart

MAX_LISTED = 64
"""Names of one pattern that are declared instead."""

MAX_PATTERNS = 64
"""Of one `patternProperties`, that are compared with each other."""

MAX_CHARACTERS = 5000
"""Of a pattern that is found for some of them."""

MAX_CHARACTERS_ANCHORED = 60_000
"""Of a pattern for what only some readers take one to match that says how names begin: engines see where they part."""

MAX_MEETING = 3
"""Patterns that overlap and are parted: into seven."""


@dataclass(frozen=True, slots=True)
class Names:
    """Some names of properties.

    Attributes:
        pattern: of these names (Rust), or a name.
        sources: those patterns (ECMA-262) that any reader takes to match them.
        is_sure: whether all readers take all of those to match.
    """

    pattern: str
    sources: tuple[str, ...]
    is_sure: bool = True


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

    def lists(self) -> list[Names]:
        """Return the names of those patterns that list a few which other patterns match as well; they are taken out.

        A name that is declared may match any pattern.
        """
        found: list[Names] = []
        for pattern in list(self._made):
            if self._meets(pattern, [other for other in self._made if other is not pattern]):
                sure, possible = listed(pattern, MAX_LISTED), listed(widest(pattern.source), MAX_LISTED)
                if sure is None or possible is None:
                    continue
                found += [Names(name, (pattern.source,), name in sure) for name in possible]
                self._made.remove(pattern)
                self._sources = [source for source in self._sources if source != pattern.source]
        return found

    def exclusive(self, *, is_open: bool, is_closed: bool) -> list[Names]:
        """Return patterns that exclude each other; a few that overlap are parted.

        Args:
            is_open: whether names that none of them matches are free.
            is_closed: whether they are forbidden. (Else they are held to a schema of their own.)

        Raises:
            InvalidSchema: there is no exact equivalent.
        """
        return [
            names
            for group in self._meeting()
            for names in (self._closed(group) if is_closed else self._among_others(group, is_open=is_open))
        ]

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

    def _closed(self, group: list[str]) -> list[Names]:
        """Part a group where other names are forbidden: so are those about which readers differ."""
        narrow = {source: self._narrowest(source) for source in group}
        if 1 < len(group) <= MAX_MEETING:
            cells = self._parted(narrow, {source: others(source) for source in group})
            if cells is not None:
                return cells
        return self._as_they_are(narrow)

    def _among_others(self, group: list[str], *, is_open: bool) -> list[Names]:
        """Part a group where other names are allowed: those about which readers differ are names of their own."""
        narrow = {source: self._narrowest(source) for source in group}
        wide = {source: self._widest(source) for source in group}
        if len(group) == 1 and wide == narrow:
            return self._as_they_are(narrow)
        found: list[Names] | None = None
        if len(group) <= MAX_MEETING and None not in wide.values():
            found = self._parted_with_unsure(
                narrow, {source: str(one) for source, one in wide.items()}, is_open=is_open
            )
        if found is None and len(group) == 1:
            unsure = self._simply_unsure(group[0], narrow[group[0]], is_open=is_open)
            found = None if unsure is None else [*self._as_they_are(narrow), unsure]
        if found is None and (wide == narrow or is_open):
            found = self._as_they_are(wide)
        if found is None:
            raise self._read_differently(next(source for source in group if wide[source] != narrow[source]))
        return found

    def _parted_with_unsure(
        self, narrow: Mapping[str, str], wide: Mapping[str, str], *, is_open: bool
    ) -> list[Names] | None:
        """Return the names that all readers take to match some patterns, and those that only some do."""
        opposites = {source: without(one) for source, one in wide.items()} if len(wide) > 1 else {}
        is_plain = len(narrow) == 1 and all(map(_says_plainly_how_names_begin, narrow.values()))
        most = MAX_CHARACTERS_ANCHORED if is_plain and not is_open else MAX_CHARACTERS
        sure = self._parted(narrow, opposites)
        unsure = None if sure is None else self._unsure(wide, opposites, sure, most)
        if sure is not None and unsure is not None:
            return [*sure, *unsure]
        # (Where others are free, all names that any reader takes to match may be held alike.)
        return self._parted(wide, opposites) if is_open and len(wide) > 1 else None

    def _as_they_are(self, matching: Mapping[str, str | None]) -> list[Names]:
        found = []
        for source, pattern in matching.items():
            if pattern is None:
                raise self._read_differently(source)
            found.append(Names(pattern, (source,)))
        return found

    def _read_differently(self, source: str) -> InvalidSchema:
        return InvalidSchema(
            f"{self._place}: which names match {source[:100]!r} is read differently by different readers, and others "
            "are allowed beside them. Write classes of ASCII characters ([0-9A-Za-z_] for \\w, [0-9] for \\d), or "
            "forbid others with additionalProperties: false."
        )

    def _parted(self, matching: Mapping[str, str], opposites: Mapping[str, str | None]) -> list[Names] | None:
        """Return the names that some of these match and the others do not, whoever reads them; None where it is long.

        Args:
            matching: the patterns of the sources.
            opposites: the patterns of the names that a source does not match.
        """
        cells = []
        for held in _subsets(list(matching)):
            pattern = self._all([one if source in held else opposites[source] for source, one in matching.items()])
            if pattern is None:
                return None
            if pattern != NO_TEXT:
                cells.append(Names(pattern, tuple(held)))
        return cells

    def _unsure(
        self, wide: Mapping[str, str], opposites: Mapping[str, str | None], sure: list[Names], most: int
    ) -> list[Names] | None:
        """Return the names that some of these match for some readers only; None where there is no short pattern.

        Args:
            wide: the patterns of all names that any reader takes a source to match.
            opposites: as above.
            sure: those that all readers agree about.
            most: characters of a short pattern.
        """
        known = {names.sources: names.pattern for names in sure}
        cells = []
        for held in _subsets(list(wide)):
            parts = [one if source in held else opposites[source] for source, one in wide.items()]
            pattern = self._all([*parts, without(known[tuple(held)])] if tuple(held) in known else parts, most)
            if pattern is None:
                return None
            if pattern != NO_TEXT:
                cells.append(Names(pattern, tuple(held), is_sure=False))
        return cells

    def _simply_unsure(self, source: str, narrow: str, *, is_open: bool) -> Names | None:
        """Return the names that only some readers take to match a long pattern, or more of them; None if not known."""
        if len(patterns(source, self._place)) > 1:
            return None
        if widest(source) == narrow[:-1] + LAST_NEWLINE:
            # (Where the pattern itself may end with a newline, engines find that the two overlap, and it is refused.)
            return Names(f"{narrow[:-1]}\\n$", (source,), is_sure=False)
        if is_open or len(self._sources) > 1:
            return None
        opposite, coarse = without(narrow), coarsest(source)
        pattern = None if coarse is None else self._all([coarse, opposite])
        return None if pattern is None else Names(pattern, (source,), is_sure=False)

    def _all(self, patterns_: list[str | None], most: int = MAX_CHARACTERS) -> str | None:
        """Return one pattern for several (`NO_TEXT` when no name matches), or None where it is long."""
        self._check_time()
        known = [one for one in patterns_ if one is not None]
        if len(known) < len(patterns_):
            return None
        try:
            whole = all_at_once(tuple(known), all_readers=True)
        except NoText:
            return NO_TEXT
        return None if whole is None or len(whole) > most else whole

    def _narrowest(self, source: str) -> str:
        """Return the pattern of the names that all readers take to match one, where there may be look-aheads."""
        try:
            found = all_at_once(tuple(patterns(source, self._place)))
        except NoText:
            return NO_TEXT
        return to_rust(source, self._place) if found is None else found

    def _widest(self, source: str) -> str | None:
        """Return the pattern of the names that any reader takes to match one, or None where it is long."""
        parts: list[str] = []
        for part in patterns(source, self._place):
            whole = without(part.pattern) if isinstance(part, OtherTexts) else widest(part.source)
            if whole is None:
                return None
            parts.append(whole)
        try:
            return all_at_once(tuple(parts), all_readers=True)
        except NoText:
            return NO_TEXT


def _says_plainly_how_names_begin(pattern: str) -> bool:
    return isinstance(pattern, Pattern) and pattern.startswith("^") and r"\p" not in pattern


def _subsets(sources: list[str]) -> Iterator[list[str]]:
    for n in range(1, len(sources) + 1):
        yield from map(list, itertools.combinations(sources, n))
