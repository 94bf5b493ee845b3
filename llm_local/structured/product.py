"""Several unions that must hold at once, as one. Any thread.

Each `if`/`then` of a list is a union: twelve about one property have 4096 combinations, of which all but thirteen
contradict themselves. llguidance would go through all of them, and says that the schema is too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llm_local.structured.exclusion import exclusive
from llm_local.structured.logic import Defs, Narrowed, Node, all_of, any_of

FEW = 32
"""So many combinations are left to the engine."""

MAX_WAYS = 100


def multiplied(node: Node, defs: Defs, check_time: Callable[[], None]) -> Node:
    """Return an intersection in which unions are multiplied out, where that leaves few combinations.

    Args:
        check_time: raises when it takes too long.
    """
    parts = node["allOf"] if isinstance(node, dict) and list(node) == ["allOf"] else []
    unions = [_options(part) for part in parts if _is_union(part)]
    if math.prod(map(len, unions)) <= FEW:
        return node
    single = [part for part in parts if not _is_union(part)]
    beside = all_of(single)
    ways: list[list[Node]] = [[]]
    for options in unions:
        longer = []
        for way in ways:
            for option in options:
                check_time()
                if not exclusive(all_of([beside, *way]), option, defs):
                    longer.append([*way, option])
        if len(longer) > MAX_WAYS:
            return node
        ways = longer
    return all_of([*single, any_of(list(map(all_of, ways)))])


def _is_union(node: Node) -> bool:
    return isinstance(node, dict) and list(node) == ["anyOf"] and not isinstance(node, Narrowed)


def _options(node: Node) -> list[Node]:
    if not _is_union(node):
        return [node]
    return [option for inner in node["anyOf"] for option in _options(inner)]
