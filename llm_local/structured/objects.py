"""Keywords about objects. Any thread."""

from __future__ import annotations

from typing import Any

from llm_local.structured.ambiguity import check_ambiguity
from llm_local.structured.automaton import NoText
from llm_local.structured.complement import ALL_TEXTS, NO_TEXT
from llm_local.structured.exclusion import alternatives, types_of
from llm_local.structured.formats import NAME_PATTERNS
from llm_local.structured.joined_names import all_at_once, either, literal
from llm_local.structured.logic import Defs, Node, all_of, any_of, is_narrowed, narrowed
from llm_local.structured.name_patterns import NamePatterns
from llm_local.structured.pattern import PatternError
from llm_local.structured.property_counts import any_property, at_least, at_most
from llm_local.structured.rewriter import Handler, Subschema
from llm_local.structured.scalars import count

MAX_PROPERTIES = 4000


def _properties(schema: Subschema, key: str, value: Any) -> None:
    if len(schema.mapping(key, value)) > MAX_PROPERTIES:
        raise schema.bad(key, f"there are {len(value)}; at most {MAX_PROPERTIES} can be enforced.")
    _declare(schema, {name: schema.sub(node, key, name) for name, node in value.items()})


def _declare(schema: Subschema, nodes: dict[str, Node]) -> None:
    declared = schema.plain.setdefault("properties", {})
    for name, node in nodes.items():
        declared[name] = all_of([declared[name], node]) if name in declared else node


def _pattern_properties(schema: Subschema, key: str, value: Any) -> None:
    nodes = {name: schema.sub(node, key, name) for name, node in schema.mapping(key, value).items()}
    place = f"{schema.where}/{key}"
    found = NamePatterns(list(nodes), place, lambda: schema.rewriter.check_time(place))
    for source, names in found.lists().items():
        _declare(schema, dict.fromkeys(names, nodes[source]))
    rest = _rest(schema)
    declared = {
        **schema.mapping("properties", schema.source.get("properties") or {}),
        **schema.plain.get("properties", {}),
    }
    # A declared name is held to the patterns that any reader takes to match it.
    also = {
        name: all_of([nodes[source] for source in sources]) for name, sources in found.of_declared(declared).items()
    }
    if also:
        schema.parts.append(narrowed({"properties": also}))
    held: dict[str, list[Node]] = {}
    for one in found.exclusive(is_open=rest is True, is_closed=rest is False, declared=declared):
        parts = [nodes[source] for source in one.sources] if one.is_sure else [False]
        held[one.pattern] = held.get(one.pattern, []) + parts
    schema.plain[key] = {pattern: all_of(parts) for pattern, parts in held.items()}
    try:
        for name in schema.plain[key]:
            schema.rewriter.check_time(place)
            check_ambiguity(name)
    except PatternError as error:
        raise schema.bad(key, f"{error}.") from None


def _additional_properties(schema: Subschema, _key: str, _value: Any) -> None:
    _rest(schema)


def _rest(schema: Subschema) -> Node:
    """Return what other properties are held to, which is translated once."""
    value = schema.source.get("additionalProperties")
    if value is None:
        return True
    if "additionalProperties" not in schema.plain:
        schema.plain["additionalProperties"] = schema.sub(value, "additionalProperties")
    return schema.plain["additionalProperties"]


def _required(schema: Subschema, key: str, value: Any) -> None:
    if isinstance(value, bool):
        raise schema.bad(key, "must be a list of property names (a boolean is draft 3).")
    schema.plain[key] = schema.names(key, value)


def _min_properties(schema: Subschema, key: str, value: Any) -> None:
    """Keys that are not declared might be repeated, and then count once: as many must be there of the declared ones."""
    count(schema, key, value)
    least = schema.plain.pop(key)
    required, optional = _declared(schema)
    if least <= len(required):
        return
    if least == 1:
        ways = any_property(optional)
        if ways is None:
            schema.plain[key] = 1
        else:
            schema.parts.append(ways)
        return
    ways = at_least(least - len(required), optional)
    if ways is None or len(required) + len(optional) < least:
        raise schema.bad(key, f"at least {least} properties cannot be enforced unless so many are declared.")
    is_closed = schema.source.get("additionalProperties") is False and not schema.source.get("patternProperties")
    schema.parts.append(ways if is_closed else narrowed(ways))


def _max_properties(schema: Subschema, key: str, value: Any) -> None:
    """Engines count properties only where all that are declared must be there: see `property_counts.py`."""
    count(schema, key, value)
    required, optional = _declared(schema)
    ways = at_most(schema.plain[key], len(required), optional)
    if ways is not None:
        del schema.plain[key]
        schema.parts.append(ways)


def _declared(schema: Subschema) -> tuple[list[str], list[str]]:
    """Return the names of properties that must be there, and those of other declared ones."""
    required = schema.names("required", schema.source.get("required") or [])
    declared = schema.mapping("properties", schema.source.get("properties") or {})
    return required, [name for name in declared if name not in required]


def _property_names(schema: Subschema, key: str, value: Any) -> None:
    """Names that a pattern or a list allows: all others are forbidden."""
    whole = schema.sub(value, key)
    names = _of_names(schema.rewriter.target(whole))
    if names is True or names == {"type": "string"}:
        return
    kinds = names.get("type", "string") if isinstance(names, dict) else "string" if names else []
    if "string" not in (kinds if isinstance(kinds, list) else [kinds]):
        # No name is a number, or none is allowed: there is no property.
        schema.parts.append({"properties": {}, "additionalProperties": False})
        return
    if isinstance(names, dict) and set(names) <= {"type", "enum"} and "enum" in names:
        allowed = {name: True for name in names["enum"] if isinstance(name, str)}
        schema.parts.append({"properties": allowed, "additionalProperties": False})
    else:
        found = _pattern_of_names(whole, schema.rewriter.defs)
        if found == [ALL_TEXTS]:
            return
        if found is None:
            raise schema.bad(key, "only short patterns, lengths, common formats and enums of names can be enforced.")
        part = {"properties": {}, "patternProperties": dict.fromkeys(found, True), "additionalProperties": False}
        schema.parts.append(narrowed(part) if is_narrowed(schema.rewriter.target(whole)) else part)


def _pattern_of_names(node: Node, defs: Defs) -> list[str] | None:
    """Return patterns for the names that a schema allows, at most one; None where there is no short one."""
    patterns = []
    for way in alternatives(node, defs) or [[{"unknown": True}]]:
        parts = [_patterns_of_part(part) for part in way]
        if any(part is None for part in parts):
            return None
        try:
            pattern = all_at_once(tuple(dict.fromkeys(one for part in parts for one in part or []))) if parts else ""
        except NoText:
            continue
        if pattern is None:
            return None
        patterns.append(pattern)
    if {ALL_TEXTS, ""} & set(patterns):
        return [ALL_TEXTS]
    return [either(patterns)] if patterns else []


def _patterns_of_part(part: dict[str, Any]) -> list[str] | None:
    """Return patterns that must all be found in a string that a plain schema allows; None where that is not all."""
    found = []
    kinds = part.get("type", "string")
    if "string" not in (kinds if isinstance(kinds, list) else [kinds]):
        return [NO_TEXT]
    if "enum" in part:
        texts = [text for text in part["enum"] if isinstance(text, str)]
        found.append(either([literal(text) for text in texts]) if texts else NO_TEXT)
    if "pattern" in part:
        found.append(str(part["pattern"]))
    if part.get("format") in NAME_PATTERNS:
        found.append(NAME_PATTERNS[part["format"]])
    if "minLength" in part or "maxLength" in part:
        found.append(f"^[\\s\\S]{{{part.get('minLength', 0)},{part.get('maxLength', '')}}}$")
    known = part.keys() <= {"type", "enum", "pattern", "format", "minLength", "maxLength"}
    return (found or [ALL_TEXTS]) if known and ("format" not in part or part["format"] in NAME_PATTERNS) else None


def _of_names(node: Node) -> Node:
    """Return a schema without the branches that are about other types: a name is a string."""
    if not isinstance(node, dict) or "anyOf" not in node:
        return node
    ways = [way for way in node["anyOf"] if "string" in types_of([way] if isinstance(way, dict) else [])]
    return any_of(ways)


def _dependent_required(schema: Subschema, key: str, value: Any) -> None:
    for name, needed in schema.mapping(key, value).items():
        _depend(schema, name, {"required": [name, *schema.names(f"{key}/{name}", needed)]})


def _dependent_schemas(schema: Subschema, key: str, value: Any) -> None:
    for name, node in schema.mapping(key, value).items():
        _depend(schema, name, schema.sub(node, key, name))


def _dependencies(schema: Subschema, key: str, value: Any) -> None:
    for name, needed in schema.mapping(key, value).items():
        single = [needed] if isinstance(needed, str) else needed
        (_dependent_required if isinstance(single, list) else _dependent_schemas)(schema, key, {name: single})


def _depend(schema: Subschema, name: str, then: Node) -> None:
    schema.parts.append(any_of([{"properties": {name: False}}, then]))


HANDLERS: dict[str, Handler] = {
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "required": _required,
    "minProperties": _min_properties,
    "maxProperties": _max_properties,
    "propertyNames": _property_names,
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "dependencies": _dependencies,
}
