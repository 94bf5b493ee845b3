"""`unevaluatedProperties`, `unevaluatedItems`: what no other keyword speaks of, in each way in which those may hold.

What branches speak of counts where they hold, so each choice of them that holds becomes a way of its own, with
`additionalProperties` or `items` for what is left. Any thread.

Source: JSON Schema 2020-12, core, 11.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.logic import Node, all_of, any_of
from llm_local.structured.negation import negate
from llm_local.structured.pattern import to_rust
from llm_local.structured.rewriter import MAX_DEPTH, Handler, Subschema

MAX_WAYS = 64
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

Evaluated = dict[tuple[str, str], None]
"""Keywords (`properties`, `patternProperties`, `prefixItems`) and names, patterns (Rust) or places they speak of."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way in which a schema may hold.

    Attributes:
        holds: what makes sure that it holds so, beside the schema itself.
        evaluated: what it speaks of then; None for all properties or items.
    """

    holds: tuple[Node, ...] = ()
    evaluated: Evaluated | None = None

    def also(self, other: Way) -> Way:
        """Return the way in which both hold."""
        return Way((*self.holds, *other.holds), _both(self.evaluated, other.evaluated))


def _both(one: Evaluated | None, other: Evaluated | None) -> Evaluated | None:
    return None if one is None or other is None else {**one, **other}


NOTHING = Way((), {})
"""Counts on no branch: what it leaves is little, and so valid whichever hold."""


def _unevaluated_properties(schema: Subschema, key: str, value: Any) -> None:
    def rest(evaluated: Evaluated, node: Node) -> Node:
        made: dict[str, Any] = {"properties": {}, "additionalProperties": node}
        for keyword, name in evaluated:
            made.setdefault(keyword, {})[name] = True
        return made

    _add(schema, key, value, _of_object, rest)


def _unevaluated_items(schema: Subschema, key: str, value: Any) -> None:
    def rest(evaluated: Evaluated, node: Node) -> Node:
        return {"prefixItems": [True] * len(evaluated), "items": node}

    _add(schema, key, value, _of_array, rest)


def _add(schema: Subschema, key: str, value: Any, own: Own, rest: Callable[[Evaluated, Node], Node]) -> None:
    """Add the ways in which a schema may hold, each with what is said about the rest."""
    if value is True:
        return
    node, options = schema.sub(value, key), []
    for way in _Search(schema, key, own).ways(schema.source, schema.where, 0):
        options.append(all_of([*way.holds, *([] if way.evaluated is None else [rest(way.evaluated, node)])]))
    schema.parts.append(any_of(options))


Own = Callable[[Subschema, dict[str, Any], str], Evaluated | None]
"""Returns what the keywords of one schema object speak of, without those of schemas in it; None for all."""


def _of_object(schema: Subschema, source: dict[str, Any], where: str) -> Evaluated | None:
    if "additionalProperties" in source:
        return None
    evaluated: Evaluated = {}
    for keyword in ("properties", "patternProperties"):
        for name in schema.mapping(keyword, source.get(keyword) or {}):
            as_key = name if keyword == "properties" else to_rust(name, f"{where}/{keyword}")
            evaluated[keyword, as_key] = None
    return evaluated


def _of_array(schema: Subschema, source: dict[str, Any], where: str) -> Evaluated | None:
    if "contains" in source:
        raise schema.bad("unevaluatedItems", "beside 'contains' it cannot be enforced; use 'items'.")
    is_old = isinstance(source.get("items"), list)
    if ("additionalItems" if is_old else "items") in source:
        return None
    first = source.get("items" if is_old else "prefixItems")
    return {("prefixItems", str(at)): None for at in range(len(first) if isinstance(first, list) else 0)}


@dataclass(frozen=True, slots=True)
class _Found:
    """What a schema speaks of in any case, and its branches that may speak of more.

    Attributes:
        choices: by where they stand, so that a definition that is referred to twice counts once.
    """

    always: Evaluated | None
    choices: dict[tuple[int, str], list[Way]]


class _Search:
    """Looks at all keywords that are about the same value.

    Args:
        schema: that has the keyword.
        key: the keyword.
        own: see above.
    """

    def __init__(self, schema: Subschema, key: str, own: Own) -> None:
        self._schema = schema
        self._key = key
        self._own = own
        self._known: dict[int, _Found | None] = {}

    def ways(self, source: Any, where: str, depth: int) -> list[Way]:
        """Return the ways in which a schema may hold."""
        found = self._found(source, where, depth)
        ways = [Way((), found.always)]
        for options in found.choices.values():
            more = [way for way in options if _speaks_of_more(way.evaluated, found.always)]
            if more:
                ways = self._few([way.also(option) for way in ways for option in (NOTHING, *more)])
        return ways

    def _few(self, ways: list[Way]) -> list[Way]:
        if len(ways) > MAX_WAYS:
            raise self._bad(f"its branches may hold in over {MAX_WAYS} ways; say in each of them what there may be.")
        return ways

    def _bad(self, why: str) -> InvalidSchema:
        return self._schema.bad(self._key, why)

    def _found(self, source: Any, where: str, depth: int) -> _Found:
        if not isinstance(source, dict):
            return _Found({}, {})
        self._schema.rewriter.check_time(where)
        found = self._known.get(id(source))
        if found is None:
            if id(source) in self._known or depth > MAX_DEPTH:
                raise self._bad("beside what refers to itself it cannot be enforced.")
            self._known[id(source)] = None
            found = self._known[id(source)] = self._look(source, where, depth)
        return found

    def _look(self, source: dict[str, Any], where: str, depth: int) -> _Found:
        if depth and self._key in source:
            return _Found(None, {})
        always = self._own(self._schema, source, where)
        choices: dict[tuple[int, str], list[Way]] = {}
        for part, place in self._parts(source, where):
            inner = self._found(part, place, depth + 1)
            always = _both(always, inner.always)
            choices |= inner.choices
        for keyword, options in self._choices(source, where, depth + 1, always):
            choices[id(source), keyword] = options
        return _Found(always, choices)

    def _parts(self, source: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
        parts = source.get("allOf")
        for at, part in enumerate(parts if isinstance(parts, list) else []):
            yield part, f"{where}/allOf/{at}"
        for key in (key for key in REFERENCES if key in source):
            yield self._schema.rewriter.original(source[key], source, where), f"{where}/{key}"

    def _choices(
        self, source: dict[str, Any], where: str, depth: int, always: Evaluated | None
    ) -> Iterator[tuple[str, list[Way]]]:
        """Yield the ways in which branches speak of more than `always`; of each list one holds at most."""
        for keyword in ("oneOf", "anyOf"):
            branches = source.get(keyword)
            found = [
                self._branch(branch, f"{where}/{keyword}/{at}", depth, always)
                for at, branch in enumerate(branches if isinstance(branches, list) else [])
            ]
            yield keyword, list(itertools.chain(*found)) if keyword == "oneOf" else self._any_of(found)
        if "if" in source:
            yield "if", list(self._if(source, where, depth))
        # (Which says nothing about arrays.)
        dependent = source.get("dependentSchemas") if self._own is _of_object else None
        for name, part in dependent.items() if isinstance(dependent, dict) else ():
            ways = self.ways(part, f"{where}/dependentSchemas/{name}", depth)
            yield f"dependentSchemas/{name}", [Way(({"required": [name]},), {}).also(way) for way in ways]

    def _branch(self, branch: Any, where: str, depth: int, always: Evaluated | None) -> list[Way]:
        more = [way for way in self.ways(branch, where, depth) if _speaks_of_more(way.evaluated, always)]
        return [Way((self._node(branch, where, depth),), {}).also(way) for way in more]

    def _any_of(self, branches: list[list[Way]]) -> list[Way]:
        """Return the ways in which at least one of the branches holds."""
        ways = [NOTHING]
        for options in filter(None, branches):
            ways = self._few([way.also(option) for way in ways for option in (NOTHING, *options)])
        return ways[1:]

    def _if(self, source: dict[str, Any], where: str, depth: int) -> Iterator[Way]:
        condition = self._node(source["if"], f"{where}/if", depth)
        then = self.ways(source.get("then", True), f"{where}/then", depth)
        for way in self.ways(source["if"], f"{where}/if", depth):
            yield from (Way((condition,), {}).also(way).also(other) for other in then)
        opposite = negate(condition, self._schema.rewriter.defs)
        if opposite is not None:
            ways = self.ways(source.get("else", True), f"{where}/else", depth)
            yield from (Way((opposite,), {}).also(way) for way in ways)

    def _node(self, source: Any, where: str, depth: int) -> Node:
        return self._schema.rewriter.node(source, where, self._schema.depth + depth)


def _speaks_of_more(evaluated: Evaluated | None, than: Evaluated | None) -> bool:
    return than is not None and (evaluated is None or not evaluated.keys() <= than.keys())


HANDLERS: dict[str, Handler] = {
    "unevaluatedProperties": _unevaluated_properties,
    "unevaluatedItems": _unevaluated_items,
}
