"""A canonical schema as llguidance reads it, with what makes its reading exact. Any thread."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from llm_local.structured.formats import DAY
from llm_local.structured.logic import Node, has_all_of
from llm_local.structured.schema import Schema

# Dates that Python and JavaScript read, too: no 29 February in other years (which llguidance 1.9 admits), no leap
# second, at most nanoseconds. Numbers of durations end.
_CLOCK = r"[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,9})?[Zz+-]"
STRICTER_FORMATS = {
    "date": f"^{DAY}$",
    "date-time": f"^{DAY}.{_CLOCK}",
    "time": f"^{_CLOCK}",
    "duration": r"^P(?:T|[0-9]{1,9}[A-Z])+$",
}

MAX_INTEGER = 2**63 - 1024
"""Integers without bounds have 64 bits (less what a double rounds): a model lost in digits would never end one."""

NARROWED_BY = 1e-9

MAX_BOUND = 10**18
"""Of numbers, in both directions; llguidance 1.9 cannot write a bound beyond 64 bits."""


MAX_DECIMALS = 3
"""Of a multiple that is written with fewer, too: llguidance reads products of more wrong, or not at all."""


def document(schema: Schema) -> dict[str, Any]:
    """Return a canonical schema as llguidance reads it."""
    merges = has_all_of([schema.root, *schema.defs.values()])
    root = _emit(schema.root, merges)
    defs = {name: _emit(node, merges) for name, node in schema.defs.items()}
    return {**({"$defs": defs} if defs else {}), **(root if isinstance(root, dict) else {})}


def _emit(node: Node, merges: bool) -> Node:
    """Return a canonical node in llguidance's reading: a format that it knows is enforced, with what makes it safe.

    Args:
        merges: whether bounds of this node may be joined with those of another one.
    """
    if isinstance(node, list):
        return [_emit(item, merges) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "uniqueItems":
            # `distinct.py` sees to it.
            continue
        if key in ("properties", "patternProperties"):
            out[key] = {name: _emit(item, merges) for name, item in value.items()}
        else:
            out[key] = value if key in ("enum", "required", "type") else _emit(value, merges)
    if "integer" in (kinds := _kinds(node)) and "number" not in kinds:
        out["minimum"] = max(out.get("minimum", -MAX_INTEGER), -MAX_INTEGER)
        out["maximum"] = min(out.get("maximum", MAX_INTEGER), MAX_INTEGER)
    elif merges or _bounds_are_near(node):
        _narrow_bounds(out)
    _move_in_far_bounds(out)
    beside: list[Node] = []
    if "format" in node and node["format"] in STRICTER_FORMATS:
        beside.append({"pattern": STRICTER_FORMATS[node["format"]]})
    if len(multiples := _multiples(node.get("multipleOf", 1))) > 1:
        beside.append({"anyOf": [{"multipleOf": multiple} for multiple in multiples]})
    return {"allOf": [out, *beside]} if beside else out


def _multiples(value: float) -> list[float]:
    """Return a number and those multiples of it whose own multiples are written with fewer decimals.

    Of multiples of 0.25 llguidance 1.9 admits `2` and `2.50`, but not `2.5`, which is one of 0.5.
    """
    number = Decimal(repr(value)).normalize()
    n_decimals = max(-int(number.as_tuple().exponent), 0)
    count = int(number.scaleb(n_decimals))
    if count == 1 or n_decimals > MAX_DECIMALS:
        return [value]
    whole = [math.lcm(count, 10 ** (n_decimals - n)) for n in range(1, n_decimals)]
    fewer = [float(Decimal(multiple).scaleb(-n_decimals)) for multiple in whole]
    return [value, *filter(_is_read, fewer)]


def _is_read(value: float) -> bool:
    """Tell whether llguidance finds the digits of a `multipleOf`: it multiplies by 10 until nothing is left behind."""
    for _ in range(MAX_DECIMALS):
        if value.is_integer():
            break
        value *= 10
    return value.is_integer()


def _kinds(node: dict[str, Any]) -> list[str]:
    kinds = node.get("type", [])
    return kinds if isinstance(kinds, list) else [kinds]


def _move_in_far_bounds(node: dict[str, Any]) -> None:
    """Move bounds that llguidance cannot write to the nearest ones that it can; few numbers are left out."""
    for keyword, exclusive, furthest in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
        for key in (keyword, exclusive):
            if key in node and node[key] * furthest > MAX_BOUND:
                del node[key]
                node[keyword] = MAX_BOUND * furthest


def _bounds_are_near(node: dict[str, Any]) -> bool:
    lows = [node[key] for key in ("minimum", "exclusiveMinimum") if key in node]
    highs = [node[key] for key in ("maximum", "exclusiveMaximum") if key in node]
    return bool(lows and highs) and min(highs) - max(lows) < 1


def _narrow_bounds(node: dict[str, Any]) -> None:
    """Replace exclusive bounds that are whole numbers by inclusive ones beside them.

    llguidance 1.9 lets the bound itself pass where the other one is less than 1 away (`0 < x <= 0.5` admits 0).
    Elsewhere bounds stay as they are: it reads no `9.9` below 9.999999999, only `9.900000000`.
    """
    for exclusive, inclusive, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        bound = node.get(exclusive)
        if bound is None or bound != int(bound):
            continue
        nearest = bound + sign * max(NARROWED_BY, 2 * math.ulp(bound))
        del node[exclusive]
        other = node.get(inclusive, nearest)
        node[inclusive] = max(other, nearest) if sign > 0 else min(other, nearest)
