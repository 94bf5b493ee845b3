"""How many values a schema has at most, where that is few. Any thread."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from llm_local.structured.exclusion import alternatives, types_of
from llm_local.structured.logic import Defs, Node, value_key
from llm_local.structured.pattern import PatternError
from llm_local.structured.texts import n_texts

COUNTS = {"null": 1, "boolean": 2}


def most_values(node: Node, defs: Defs) -> float:
    """Return how many values satisfy a canonical schema, or more than that; infinity where they are not counted."""
    ways = alternatives(node, defs)
    return math.inf if ways is None else sum(map(_of_way, ways))


def _of_way(way: list[dict[str, Any]]) -> float:
    listed = [{value_key(value) for value in part["enum"]} for part in way if "enum" in part]
    if listed:
        return len(set.intersection(*listed))
    return sum(_of_kind(kind, way) for kind in types_of(way))


def _of_kind(kind: str, way: list[dict[str, Any]]) -> float:
    if kind == "number":
        return min((_integers(part) for part in way), default=math.inf) if _are_integers(way) else math.inf
    if kind == "string":
        return min((_texts(part) for part in way), default=math.inf)
    return COUNTS.get(kind, math.inf)


def _are_integers(way: list[dict[str, Any]]) -> bool:
    kinds = [part["type"] if isinstance(part["type"], list) else [part["type"]] for part in way if "type" in part]
    return any("number" not in named for named in kinds)


def _integers(part: dict[str, Any]) -> float:
    lower, upper = part.get("minimum", -math.inf), part.get("maximum", math.inf)
    above, below = part.get("exclusiveMinimum", -math.inf), part.get("exclusiveMaximum", math.inf)
    if not math.isfinite(max(lower, above)) or not math.isfinite(min(upper, below)):
        return math.inf
    least = math.ceil(lower) if lower > above else math.floor(above) + 1
    most = math.floor(upper) if upper < below else math.ceil(below) - 1
    return float(max(most - least + 1, 0))


@lru_cache(256)
def _of_pattern(pattern: str) -> float:
    try:
        return n_texts(pattern)
    except PatternError:
        return math.inf


def _texts(part: dict[str, Any]) -> float:
    if part.get("maxLength") == 0:
        return 1
    return _of_pattern(str(part["pattern"])) if "pattern" in part else math.inf
