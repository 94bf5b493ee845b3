"""Keywords that combine schemas about one value: references, `allOf`, `anyOf`, `oneOf`, `not`, `if`. Any thread."""

from __future__ import annotations

from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.difference import difference
from llm_local.structured.exclusion import exclusive, told_apart
from llm_local.structured.logic import Node, all_of, any_of, narrowed
from llm_local.structured.negation import closed_names, negate
from llm_local.structured.repetition import contradicted
from llm_local.structured.rewriter import Handler, Subschema
from llm_local.structured.tags import Tag, names_are_apart, tag_of, types_are_apart

MAX_BRANCHES = 64


def _ref(schema: Subschema, key: str, value: Any) -> None:
    if key == "$recursiveRef" and value != "#":
        raise schema.bad(key, "must be '#'.")
    if key != "$ref" and schema.rewriter.depends_on_use(value):
        raise schema.bad(key, "there are several anchors that it may mean, which cannot be enforced; use '$ref'.")
    schema.parts.append(schema.rewriter.reference(schema.source, key, schema.where))


def _all_of(schema: Subschema, key: str, value: Any) -> None:
    schema.parts += schema.subs(key, value)


def _any_of(schema: Subschema, key: str, value: Any) -> None:
    schema.parts.append(_union(schema, key, schema.subs(key, value)))


def _union(schema: Subschema, key: str, branches: list[Node]) -> Node:
    if not schema.rewriter.has_unique_items:
        return any_of(branches)
    place = contradicted(branches, schema.rewriter.defs)
    if place is not None:
        what = f"the array at {place}" if place else "an array"
        raise schema.bad(
            key,
            f"'uniqueItems' of one branch cannot be enforced beside another branch in which {what} must repeat items.",
        )
    return any_of(branches)


def _one_of(schema: Subschema, key: str, value: Any) -> None:
    """Branches that exclude each other are alternatives; others are, less what also satisfies another one."""
    defs = schema.rewriter.defs
    found = zip(schema.subs(key, value), value, strict=True)
    branches, sources = _unzipped([(branch, source) for branch, source in found if branch is not False])
    tag = tag_of(schema, value)
    if (tag is not None and tag.certain) or types_are_apart(schema, value) or told_apart(branches, defs):
        schema.parts.append(_union(schema, key, branches))
        return
    if tag is not None and tag.declared:
        schema.parts.append(_tagged(schema, key, branches, tag))
        return
    try:
        ways = _exclusive_ways(schema, key, branches, sources)
    except InvalidSchema:
        if tag is None:
            raise
        schema.parts.append(_tagged(schema, key, branches, tag))
        return
    schema.parts.append(_union(schema, key, ways))


def _tagged(schema: Subschema, key: str, branches: list[Node], tag: Tag) -> Node:
    """Branches told apart by a property that may be left out: it is always there, as what reads the answer needs it."""
    has_tag = {"type": "object", "required": [tag.name]}
    return narrowed(_union(schema, key, [all_of([branch, has_tag]) for branch in branches]))


def _unzipped(pairs: list[tuple[Node, Any]]) -> tuple[list[Node], list[Any]]:
    return [branch for branch, _ in pairs], [source for _, source in pairs]


def _exclusive_ways(schema: Subschema, key: str, branches: list[Node], sources: list[Any]) -> list[Node]:
    """Return each branch less what also satisfies another one.

    Args:
        sources: the branches as they were written.
    """
    defs = schema.rewriter.defs
    if len(branches) > MAX_BRANCHES:
        raise schema.bad(
            key,
            f"over {MAX_BRANCHES} branches need a property that tells them apart (required, with a 'const' of its "
            "own in each); or use 'anyOf'.",
        )
    beside = _beside(schema)
    ways = []
    for at, branch in enumerate(branches):
        opposites, is_narrowed = [], False
        names = closed_names(branch, defs)
        for other_at, other in enumerate(branches):
            schema.rewriter.check_time(schema.where)
            if other_at == at or exclusive(branch, other, defs) or exclusive(all_of([beside, branch]), other, defs):
                continue
            pair = sources[at], sources[other_at]
            if types_are_apart(schema, pair) or names_are_apart(schema, *pair):
                continue
            opposite = negate(other, defs, names=names)
            if opposite is None:
                opposite, is_narrowed = difference(all_of([beside, branch]), other, defs, names), True
            if opposite is None:
                raise schema.bad(
                    key,
                    f"branches {at} and {other_at} may both match, which cannot be enforced. Make them exclusive "
                    "(types, a const, a required property that the other forbids), or use 'anyOf'.",
                )
            opposites.append(opposite)
        way = all_of([branch, *opposites])
        ways.append(narrowed(way) if is_narrowed else way)
    return ways


def _beside(schema: Subschema) -> Node:
    """Return what holds besides the branches: it may make them exclusive."""
    told = {key: schema.source[key] for key in ("type", "required", "properties") if key in schema.source}
    return schema.sub(told) if told else True


def _opposite(schema: Subschema, node: Node) -> Node | None:
    """Return a schema of other values, of all or of many beside what else is said here; None where too few are left."""
    defs = schema.rewriter.defs
    opposite = negate(node, defs)
    if opposite is not None:
        return opposite
    opposite = difference(_beside(schema), node, defs)
    return None if opposite is None else narrowed(opposite)


def _not(schema: Subschema, key: str, value: Any) -> None:
    opposite = _opposite(schema, schema.sub(value, key))
    if opposite is None:
        raise schema.bad(key, "the opposite of this schema cannot be enforced; say what is allowed instead.")
    schema.parts.append(opposite)


def _if(schema: Subschema, key: str, value: Any) -> None:
    if "then" not in schema.source and "else" not in schema.source:
        return
    condition = schema.sub(value, key)
    opposite = _opposite(schema, condition)
    if opposite is None:
        raise schema.bad(key, "the opposite of this condition cannot be enforced; use 'anyOf' with exclusive branches.")
    then = schema.sub(schema.source.get("then", True), "then")
    otherwise = schema.sub(schema.source.get("else", True), "else")
    schema.parts.append(any_of([all_of([condition, then]), all_of([opposite, otherwise])]))


HANDLERS: dict[str, Handler] = {
    "$ref": _ref,
    "$dynamicRef": _ref,
    "$recursiveRef": _ref,
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
}
