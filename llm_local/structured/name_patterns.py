"""`patternProperties` as patterns (Rust) that exclude each other, as engines want them. Any thread.

Readers of regular expressions differ on some names (`pattern.py`; not on `$` and `.`, as `keys.py` sees to it): a name
may match for one of them and be one of the others' for another. It is allowed only with what is valid for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from llm_local.errors import InvalidSchema
from llm_local.structured.automaton import NoText
from llm_local.structured.complement import NO_TEXT, without
from llm_local.structured.joined_names import all_at_once, either, literal
from llm_local.structured.keys import can_be_written
from llm_local.structured.look_ahead import OtherTexts, patterns
from llm_local.structured.other_strings import other_strings
from llm_local.structured.pattern import (
    DOT,
    LAST_NEWLINE,
    WIDEST_DOT,
    coarsest,
    doubtful_characters,
    to_rust,
    widest,
)
from llm_local.structured.texts import are_apart, listed

MAX_LISTED = 64
"""Names of one pattern that are declared instead."""

MAX_PATTERNS = 64
"""Of one `patternProperties`, that are compared with each other."""

MAX_CHARACTERS = 5000
"""Of a pattern that is found for some of them."""

MAX_MEETING = 3
"""Patterns that overlap and are parted: into seven."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names that some patterns match, and the others do not.

    Attributes:
        pattern: of these names (Rust).
        sources: the patterns (ECMA-262).
        is_sure: whether all readers take them to match; else only some do.
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

    Raises:
        InvalidSchema: one of them has no exact equivalent.
    """

    def __init__(self, sources: list[str], place: str, check_time: Callable[[], None]) -> None:
        self._place = place
        self._check_time = check_time
        self._narrow = {source: self._narrowest(source) for source in sources}
        self._wide = {
            source: self._widest(source) if doubtful_characters(source) else narrow
            for source, narrow in self._narrow.items()
        }

    def lists(self) -> dict[str, list[str]]:
        """Return the names of those patterns that list a few which other patterns match as well; they are taken out.

        A name that is declared may match any pattern.
        """
        found: dict[str, list[str]] = {}
        if len(self._narrow) > MAX_PATTERNS:
            return found
        for source in list(self._narrow):
            if not doubtful_characters(source) and self._meets(source, [one for one in self._narrow if one != source]):
                names = listed(self._narrow[source], MAX_LISTED)
                if names is not None:
                    found[source] = list(filter(can_be_written, names))
                    del self._narrow[source], self._wide[source]
        return found

    def of_declared(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the patterns that any reader takes to match each of these names, where readers may differ about it."""
        found: dict[str, list[str]] = {}
        if not any(map(doubtful_characters, self._narrow)):
            return found
        # (What readers disagree about is beyond ASCII.)
        for name, source in itertools.product([name for name in names if not name.isascii()], self._narrow):
            self._check_time()
            if self._matches(self._wide[source], name):
                found.setdefault(name, []).append(source)
        return found

    def exclusive(self, *, is_open: bool, is_closed: bool, declared: Iterable[str]) -> list[Names]:
        """Return patterns that exclude each other; a few that overlap are parted.

        Args:
            is_open: whether names that none of them matches are free. Then those that only some readers take to match
                are held to what all of these say.
            is_closed: whether they are forbidden, and so are those. (Else they are held to a schema of their own.)
            declared: names that have a schema of their own beside.

        Raises:
            InvalidSchema: there is no exact equivalent.
        """
        groups = self._meeting()
        if is_open:
            return [names for group in groups for names in self._parted_or_not(group, self._wide)]
        doubtful = list(filter(doubtful_characters, self._narrow))
        doubts, certain = self._certain(groups, doubtful, is_closed=is_closed)
        found = [names for group in groups for names in self._parted_or_not(group, certain)]
        if doubts != NO_TEXT and not is_closed:
            beyond = [name for name in declared if not name.isascii() and self._matches(doubts, name)]
            pattern = self._all([doubts, other_strings(beyond)]) if beyond else doubts
            if pattern is None:
                raise self._read_differently(doubtful[0])
            found.append(Names(pattern, tuple(doubtful), is_sure=False))
        return found

    # -- groups of patterns -------------------------------------------------------------------------------------

    def _meets(self, source: str, some: Iterable[str]) -> bool:
        """Tell whether some reader may take a name to match a pattern and one of some others."""
        one = self._wide[source]
        for other in (self._wide[other] for other in some):
            self._check_time()
            if one is None or other is None or not are_apart(one, other):
                return True
        return False

    def _meeting(self) -> list[list[str]]:
        """Return the patterns in groups that may overlap, directly or by others."""
        if len(self._narrow) > MAX_PATTERNS:
            return [list(self._narrow)]
        groups: list[list[str]] = []
        for source in self._narrow:
            met = [group for group in groups if self._meets(source, group)]
            groups = [group for group in groups if group not in met] + [[*itertools.chain(*met), source]]
        return groups

    def _certain(
        self, groups: list[list[str]], doubtful: list[str], *, is_closed: bool
    ) -> tuple[str, Mapping[str, str | None]]:
        """Return a pattern of names about which readers may differ, and the patterns of all sources without these.

        Args:
            groups: sources that may meet.
            doubtful: sources that readers differ about.
            is_closed: where that matters only to those that may meet them.
        """
        if not doubtful:
            return NO_TEXT, self._narrow
        touched = [one for group in groups if not is_closed or set(group) & set(doubtful) for one in group]
        some = f"[{''.join(dict.fromkeys(part for source in doubtful for part in doubtful_characters(source)))}]"
        certain: Mapping[str, str | None] = {}
        for doubts in (either([self._doubts(source) for source in doubtful]), some):
            certain = self._narrow | {source: self._but(source, doubts) for source in touched}
            if None not in certain.values():
                return doubts, certain
        return some, certain

    def _doubts(self, source: str) -> str:
        """Return a pattern of names among which are all that only some readers take to match a source."""
        some = f"[{''.join(doubtful_characters(source))}]"
        parts = [
            without(one.pattern) if isinstance(one, OtherTexts) else coarsest(one.source)
            for one in patterns(source, self._place)
        ]
        known = [_for_names(one) for one in parts if one is not None]
        return (self._all([*known, some]) if len(known) == len(parts) else None) or some

    def _but(self, source: str, doubts: str) -> str | None:
        """Return the pattern of a source without some names, or None where it is long."""
        narrow = self._narrow[source]
        return narrow if are_apart(doubts, narrow) else self._all([narrow, without(doubts)])

    def _parted_or_not(self, group: list[str], matching: Mapping[str, str | None]) -> list[Names]:
        """Part a group, or leave its patterns to engines, which refuse what overlaps.

        Args:
            group: the sources.
            matching: their patterns.
        """
        known: dict[str, str] = {}
        for source in group:
            pattern = matching[source]
            if pattern is None:
                raise self._read_differently(source)
            known[source] = pattern
        if 1 < len(group) <= MAX_MEETING:
            cells = self._parted(known, {source: without(one) for source, one in known.items()})
            if cells is not None:
                return cells
        return [Names(pattern, (source,)) for source, pattern in known.items() if pattern != NO_TEXT]

    def _read_differently(self, source: str) -> InvalidSchema:
        return InvalidSchema(
            f"{self._place}: readers of regular expressions differ on the names that {source[:100]!r} matches, and "
            "what they say cannot be enforced together. Write classes of ASCII characters ([0-9A-Za-z_] for \\w, [0-9] "
            "for \\d), and patterns that do not overlap."
        )

    # -- parts of a group ---------------------------------------------------------------------------------------

    def _parted(self, matching: Mapping[str, str], opposites: Mapping[str, str | None]) -> list[Names] | None:
        """Return the names that some of these match and the others do not; None where a pattern is long."""
        cells = []
        for held in _subsets(list(matching)):
            pattern = self._all([one if source in held else opposites[source] for source, one in matching.items()])
            if pattern is None:
                return None
            if pattern != NO_TEXT:
                cells.append(Names(pattern, tuple(held)))
        return cells

    def _all(self, some: list[str | None]) -> str | None:
        """Return one pattern for several (`NO_TEXT` when no name matches), or None where it is long."""
        self._check_time()
        known = [one for one in some if one is not None]
        if len(known) < len(some):
            return None
        try:
            whole = all_at_once(tuple(known), all_readers=True)
        except NoText:
            return NO_TEXT
        return None if whole is None or len(whole) > MAX_CHARACTERS else whole

    # -- one pattern --------------------------------------------------------------------------------------------

    def _matches(self, pattern: str | None, name: str) -> bool:
        return pattern is None or self._all([pattern, literal(name)]) != NO_TEXT

    def _narrowest(self, source: str) -> str:
        """Return the pattern of the names that all readers take to match one, where there may be look-aheads."""
        try:
            found = all_at_once(tuple(patterns(source, self._place)))
        except NoText:
            return NO_TEXT
        return _for_names(to_rust(source, self._place) if found is None else found)

    def _widest(self, source: str) -> str | None:
        """Return the pattern of the names that any reader takes to match one, or None where it is long."""
        parts: list[str] = []
        for part in patterns(source, self._place):
            whole = without(part.pattern) if isinstance(part, OtherTexts) else widest(part.source)
            if whole is None:
                return None
            parts.append(_for_names(whole))
        try:
            return all_at_once(tuple(parts), all_readers=True)
        except NoText:
            return NO_TEXT


def _for_names(pattern: str) -> str:
    """Return a pattern that matches the same names: no name ends with a newline, or has another end of a line."""
    return pattern.replace(LAST_NEWLINE, "$").replace(DOT, WIDEST_DOT)


def _subsets(sources: list[str]) -> Iterator[list[str]]:
    for n in range(1, len(sources) + 1):
        yield from map(list, itertools.combinations(sources, n))
