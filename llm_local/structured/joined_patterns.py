"""How many patterns one string must match at once. Any thread.

llguidance 1.9 looks for a text that all of them match, and takes three times as long for each more of the worst kind:
eight are 20 ms, twelve are 3 s, sixteen are minutes that nothing interrupts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llm_local.structured.exclusion import alternatives
from llm_local.structured.logic import Defs, Node, all_of, parts_of

MAX_PATTERNS = 8
MAX_DEPTH = 4
MAX_STEPS = 20_000


def too_many_patterns(nodes: Iterable[Node], defs: Defs) -> bool:
    """Tell whether over `MAX_PATTERNS` patterns are joined anywhere in canonical schemas."""
    return _inside(nodes, defs, [MAX_STEPS])


def _inside(nodes: Iterable[Node], defs: Defs, steps: list[int]) -> bool:
    return any(
        isinstance(node, dict)
        and (("allOf" in node and _joined(node, defs, 0, steps)) or _inside(parts_of(node), defs, steps))
        for node in nodes
    )


def _joined(node: Node, defs: Defs, depth: int, steps: list[int]) -> bool:
    for way in alternatives(node, defs) or []:
        steps[0] -= len(way)
        if steps[0] < 0 or depth > MAX_DEPTH:
            return False
        if sum(("pattern" in part) + ("format" in part) for part in way) > MAX_PATTERNS:
            return True
        if len(way) > 1 and any(_joined(inner, defs, depth + 1, steps) for inner in _met(way)):
            return True
    return False


def _met(way: list[dict[str, Any]]) -> list[Node]:
    """Return the schemas of properties, and of items, that several parts speak of."""
    met: dict[str, list[Node]] = {}
    for part in way:
        for name, node in part.get("properties", {}).items():
            met.setdefault(f"/{name}", []).append(node)
        for key in ("items", "additionalProperties"):
            if key in part:
                met.setdefault(key, []).append(part[key])
    return [all_of(nodes) for nodes in met.values() if len(nodes) > 1]
