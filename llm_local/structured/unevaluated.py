"""`unevaluatedProperties`: about properties that no other keyword speaks of, in each way in which those may hold.

What branches speak of counts where they hold, so each choice of them that holds becomes a way of its own, with
`additionalProperties` for what is left. Any thread.

Source: JSON Schema 2020-12, core, 11.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.logic import Node, all_of, any_of
from llm_local.structured.negation import negate
from llm_local.structured.pattern import to_rust
from llm_local.structured.rewriter import MAX_DEPTH, Subschema

MAX_WAYS = 64
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

Evaluated = dict[tuple[str, str], None]
"""Keywords (`properties`, `patternProperties`) and what they speak of: names, and patterns (Rust)."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way in which a schema may hold.

    Attributes:
        holds: what makes sure that it holds so, beside the schema itself.
        evaluated: what it speaks of then; None for all properties.
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


def unevaluated_properties(schema: Subschema, key: str, value: Any) -> None:
    """Take `unevaluatedProperties` in: one of the ways, with `additionalProperties` for what it does not speak of."""
    if value is True:
        return
    rest = schema.sub(value, key)
    options = []
    for way in _Search(schema).ways(schema.source, schema.where, 0):
        part: dict[str, Any] = {"properties": {}, "additionalProperties": rest}
        for keyword, name in way.evaluated or ():
            part.setdefault(keyword, {})[name] = True
        options.append(all_of([*way.holds, *([] if way.evaluated is None else [part])]))
    schema.parts.append(any_of(options))


@dataclass(frozen=True, slots=True)
class _Found:
    """What a schema speaks of in any case, and its branches that may speak of more.

    Attributes:
        choices: by where they stand, so that a definition that is referred to twice counts once.
    """

    always: Evaluated | None
    choices: dict[tuple[int, str], list[Way]]


class _Search:
    """Looks at all keywords that are about the same value."""

    def __init__(self, schema: Subschema) -> None:
        self._schema = schema
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
            raise self._bad(f"its branches may hold in over {MAX_WAYS} ways; use 'additionalProperties' in them.")
        return ways

    def _bad(self, why: str) -> InvalidSchema:
        return self._schema.bad("unevaluatedProperties", why)

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
        if "additionalProperties" in source or (depth and "unevaluatedProperties" in source):
            return _Found(None, {})
        always: Evaluated | None = {}
        choices: dict[tuple[int, str], list[Way]] = {}
        for part, place in self._parts(source, where):
            inner = self._found(part, place, depth + 1)
            always = _both(always, inner.always)
            choices |= inner.choices
        for keyword in ("properties", "patternProperties"):
            for name in self._schema.mapping(keyword, source.get(keyword) or {}):
                as_key = name if keyword == "properties" else to_rust(name, f"{where}/{keyword}")
                always = _both(always, {(keyword, as_key): None})
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
        dependent = source.get("dependentSchemas")
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
