"""How many properties an object has, in words that engines know: which of the optional ones are there. Any thread.

llguidance counts properties only where all that are declared must be there. So each choice of the optional ones becomes
a way of its own, which is exact: an object has one of these choices.
"""

from __future__ import annotations

import itertools
import math

from llm_local.structured.logic import TYPES, Node, any_of

MAX_CHOICES = 2000
MAX_WAYS = 100
"""Ways that are intersected with the whole schema, which costs more than names that are required."""

_OTHERS: Node = {"type": [name for name in TYPES if name != "object"]}


def any_property(optional: list[str]) -> Node | None:
    """Return what has a property at all: one that is declared, or another one. None where nothing need be said."""
    if not 0 < len(optional) <= MAX_WAYS:
        return None
    other = {"properties": dict.fromkeys(optional, False), "minProperties": 1}
    return any_of([_OTHERS, *({"required": [name]} for name in optional), other])


def at_least(n: int, optional: list[str]) -> Node | None:
    """Return what has at least `n` of these properties, or None where there are too many choices."""
    if math.comb(len(optional), n) > MAX_CHOICES:
        return None
    return any_of([_OTHERS, *({"required": list(names)} for names in itertools.combinations(optional, n))])


def at_most(most: int, n_required: int, optional: list[str]) -> Node | None:
    """Return what has at most `most` properties beside `n_required` that must be there; None where it stays as it is.

    Each way says which optional properties are there and which are not, and leaves the rest to the count.
    """
    sizes = range(min(most - n_required, len(optional)) + 1)
    if not optional or not sizes or sum(math.comb(len(optional), size) for size in sizes) > MAX_WAYS:
        return None
    ways: list[Node] = [_OTHERS]
    for names in itertools.chain.from_iterable(itertools.combinations(optional, size) for size in sizes):
        absent = dict.fromkeys((name for name in optional if name not in names), False)
        ways.append({"type": "object", "properties": absent, "required": list(names), "maxProperties": most})
    return any_of(ways)
