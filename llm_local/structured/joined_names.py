"""One pattern for the names of properties that several patterns are about. Any thread."""

from __future__ import annotations

from functools import lru_cache

from llm_local.structured.automaton import Automaton, Edges, NoText, trimmed
from llm_local.structured.characters import common
from llm_local.structured.complement import MAX_KEPT, automaton_of, expression_of, set_of
from llm_local.structured.pattern import PatternError

MAX_STATES = 300


def either(patterns: list[str]) -> str:
    """Return a pattern (Rust) that is found where any of these is."""
    return patterns[0] if len(patterns) == 1 else "|".join(f"(?:{pattern})" for pattern in patterns)


def literal(text: str) -> str:
    """Return the pattern of one text."""
    codes = "".join(f"\\u{{{ord(char):x}}}" for char in text)
    return f"^{codes}$"


@lru_cache(MAX_KEPT)
def all_at_once(patterns: tuple[str, ...], *, all_readers: bool = False) -> str | None:
    """Return a pattern of the texts in which all of these (Rust) are found; None where it is long.

    Args:
        all_readers: by any reader, and not by all of them.

    Raises:
        NoText: there are no such texts.
    """
    if len(patterns) == 1:
        return patterns[0]
    try:
        whole = automaton_of(patterns[0], all_readers=all_readers)
        for pattern in patterns[1:]:
            whole = _product(whole, automaton_of(pattern, all_readers=all_readers))
    except NoText:
        raise
    except PatternError:
        return None
    edges = [{target: set_of(characters) for target, characters in ways.items()} for ways in whole.edges]
    text = expression_of(edges, set(whole.ends))
    return None if text is None else f"^(?:{text})$"


def _product(one: Automaton, other: Automaton) -> Automaton:
    numbers = {(0, 0): 0}
    pairs = [(0, 0)]
    edges: list[Edges] = []
    for at, beside in pairs:
        leaving: Edges = {}
        for target, characters in one.edges[at].items():
            for other_target, others in other.edges[beside].items():
                both = common(characters, others)
                if not both:
                    continue
                pair = target, other_target
                if pair not in numbers:
                    numbers[pair] = len(pairs)
                    pairs.append(pair)
                leaving[numbers[pair]] = both
        if len(pairs) > MAX_STATES:
            raise PatternError("it is too long")
        edges.append(leaving)
    ends = {number for (at, beside), number in numbers.items() if at in one.ends and beside in other.ends}
    return trimmed(edges, ends)
