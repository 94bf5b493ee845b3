"""A canonical schema in the part of JSON Schema that llama-cpp-python's converter enforces, or a refusal. Workers.

What it does not enforce, but its grammar can (`members.py`), are rules of our own. For the converter, a union of the
values in them stands in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.logic import REF, TYPES, Node, type_of
from llm_local.structured.members import Member, object_rules, tuple_rule, value_rule
from llm_local.structured.schema import Schema

MAX_REPEAT = 500
ANYTHING = "any"
"""The definition of all values."""

SHARED = frozenset(
    (
        "space",
        "char",
        "escaped",
        "string",
        "number",
        "integral",
        "decimal",
        "integer",
        "boolean",
        "null",
        "uuid",
        ANYTHING,
    )
)
"""First words of the names of rules that are the same for all schemas."""

UNKNOWN = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
SAFE_PATTERN = re.compile(r"(?:[A-Za-z0-9 _:;,@/-]|\[[A-Za-z0-9 _-]+\]|[()*+?]|\{\d{1,3}(?:,\d{1,3})?\})*")


class PlainSchema:
    """Writes one.

    Args:
        schema: to be written.

    Attributes:
        rules: bodies of our own rules, by names that the converter gives to what stands in their place.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._defs: dict[str, Any] = {}
        self._n_own = 0
        self.rules: dict[str, str] = {}

    def document(self) -> dict[str, Any]:
        """Return the schema with its definitions, and no `$ref` at the root (which the converter cannot resolve)."""
        for name, node in self._schema.defs.items():
            self._defs[name] = {"anyOf": [self.node(node, f"#/$defs/{name}")]}
        anything = {"$ref": f"{REF}{ANYTHING}"}
        self._defs[ANYTHING] = {
            "anyOf": [
                *({"type": kind} for kind in ("string", "number", "boolean", "null")),
                {"type": "array", "items": anything},
                {"type": "object", "additionalProperties": anything},
            ]
        }
        written = self.node(self._schema.root, "#")
        return {**({"anyOf": [written]} if "$ref" in written else written), "$defs": self._defs}

    def node(self, node: Node, where: str) -> dict[str, Any]:
        """Return one schema."""
        if node is True or node == {}:
            return {"$ref": f"{REF}{ANYTHING}"}
        if node is False:
            raise InvalidSchema(f"{where}: LlamaGrammar cannot express a schema that nothing satisfies.")
        if "$ref" in node:
            return {"$ref": node["$ref"]}
        if "allOf" in node:
            raise InvalidSchema(f"{where}/allOf: LlamaGrammar cannot enforce several schemas at once.")
        if "anyOf" in node:
            options = [option for option in node["anyOf"] if option is not False]
            return {"anyOf": [self.node(option, f"{where}/anyOf") for option in options]}
        kinds = node.get("type", [*TYPES])
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if "enum" in node:
            return self._enum(node, kinds, where)
        # JSON Schema's keywords concern one type each; the converter looks at the first that it knows.
        options = [self._kind(kind, node, where) for kind in kinds]
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _enum(self, node: dict[str, Any], kinds: list[str], where: str) -> dict[str, Any]:
        if set(node) - {"enum", "type"}:
            other = min(set(node) - {"enum", "type"})
            raise InvalidSchema(f"{where}/{other}: LlamaGrammar cannot enforce it beside an enum.")
        values = [value for value in node["enum"] if type_of(value) in kinds or _is_integer(value, kinds)]
        if not values:
            raise InvalidSchema(f"{where}/enum: no value of the enum has the type.")
        options = [self._parts_of(value, where) for value in values if isinstance(value, list | dict)]
        single = [value for value in values if not isinstance(value, list | dict)]
        if single:
            options.append(self._ruled([], lambda rule: {rule: value_rule(single)}))
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _parts_of(self, value: list[Any] | dict[str, Any], where: str) -> dict[str, Any]:
        """Return the schema of one array or object. (The converter would write spaces in it.)"""
        if isinstance(value, list):
            first = [{"enum": [item]} for item in value]
            return self._array({"prefixItems": first, "items": False, "minItems": len(first)}, where)
        properties = {name: {"enum": [item]} for name, item in value.items()}
        return self._object({"properties": properties, "required": [*value], "additionalProperties": False}, where)

    def _kind(self, kind: str, node: dict[str, Any], where: str) -> dict[str, Any]:
        if kind in ("number", "integer"):
            for key in UNKNOWN:
                if key in node:
                    raise InvalidSchema(f"{where}/{key}: LlamaGrammar does not enforce it.")
            return {"type": kind}
        builders = {"string": self._string, "array": self._array, "object": self._object}
        return builders[kind](node, where) if kind in builders else {"type": kind}

    def _string(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        if "pattern" in node:
            return self._pattern(node, where)
        if "format" in node and node["format"] != "uuid":
            raise InvalidSchema(f"{where}/format: LlamaGrammar does not enforce '{node['format']}' wholly.")
        if "format" in node and ("minLength" in node or "maxLength" in node):
            raise InvalidSchema(f"{where}/format: LlamaGrammar does not enforce lengths beside it.")
        lengths: dict[str, Any] = {key: node[key] for key in ("minLength", "maxLength") if key in node}
        _check_counts(lengths, where)
        return {"type": "string", **lengths, **({"format": "uuid"} if "format" in node else {})}

    @staticmethod
    def _pattern(node: dict[str, Any], where: str) -> dict[str, Any]:
        pattern = node["pattern"]
        body = pattern[1:-1]
        safe = pattern[:1] == "^" and pattern[-1:] == "$" and SAFE_PATTERN.fullmatch(body) and "(?" not in body
        if not safe or {"minLength", "maxLength", "format"} & set(node):
            raise InvalidSchema(
                f"{where}/pattern: LlamaGrammar enforces only anchored patterns (^...$) of plain characters, sets and "
                "repetitions, without lengths beside them."
            )
        return {"type": "string", "pattern": pattern}

    def _array(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        counts: dict[str, Any] = {key: node[key] for key in ("minItems", "maxItems") if key in node}
        _check_counts(counts, where)
        if node.get("prefixItems"):
            return self._tuple(node, where)
        items = node.get("items", True)
        if items is False:
            if counts.get("minItems", 0):
                raise InvalidSchema(f"{where}/minItems: no items are allowed.")
            counts, items = {"maxItems": 0}, {"type": "null"}
        return {"type": "array", "items": self.node(items, f"{where}/items"), **counts}

    def _tuple(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        first, behind = node["prefixItems"], node.get("items", True)
        least, most = node.get("minItems", 0), node.get("maxItems")
        if behind is False and least > len(first):
            raise InvalidSchema(f"{where}/minItems: there are {len(first)} items at most.")
        items = [self._value(item, f"{where}/prefixItems/{at}") for at, item in enumerate(first)]
        rest = None if behind is False else self._value(behind, f"{where}/items")
        return self._ruled([*items, rest], lambda rule: {rule: tuple_rule(items, rest, least, most)})

    def _object(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        for key in ("patternProperties", "minProperties", "maxProperties"):
            if key in node:
                raise InvalidSchema(f"{where}/{key}: LlamaGrammar does not enforce it.")
        behind, properties = node.get("additionalProperties", True), node.get("properties", {})
        required = node.get("required", [])
        for name in required:
            if properties.get(name, behind) is False:
                raise InvalidSchema(f"{where}/required: '{name}' is required and forbidden.")
        declared = {**properties, **{name: behind for name in required if name not in properties}}
        if not declared and behind is not False:
            return {"type": "object", "additionalProperties": self.node(behind, f"{where}/additionalProperties")}
        members = [
            Member(name, self._value(item, f"{where}/properties/{name}"), name in required)
            for name, item in declared.items()
            if item is not False
        ]
        rest = None if behind is False else self._value(behind, f"{where}/additionalProperties")
        values = [*(member.value for member in members), rest]
        return self._ruled(values, lambda rule: object_rules(rule, members, rest, declared))

    def _value(self, node: Node, where: str) -> str:
        """Return the name of a rule of values. (The converter makes none of a definition that is not an `anyOf`.)"""
        written = self.node(node, where)
        if "$ref" in written:
            return str(written["$ref"]).removeprefix(REF)
        name = self._own_name()
        self._defs[name] = {"anyOf": [written]}
        return name

    def _ruled(self, values: Iterable[str | None], rules: Callable[[str], dict[str, str]]) -> dict[str, Any]:
        """Return what becomes a rule of our own, made by its name, with these values in it."""
        name = self._own_name()
        self.rules |= rules(name)
        inside = [{"$ref": f"{REF}{value}"} for value in values if value is not None]
        self._defs[name] = {"anyOf": inside or [{"type": "null"}]}
        return {"$ref": f"{REF}{name}"}

    def _own_name(self) -> str:
        self._n_own += 1
        return f"o{self._n_own}"


def _is_integer(value: Any, kinds: list[str]) -> bool:
    return "integer" in kinds and type_of(value) == "number" and float(value).is_integer()


def _check_counts(counts: dict[str, int], where: str) -> None:
    for key, count in counts.items():
        if count > MAX_REPEAT:
            raise InvalidSchema(f"{where}/{key}: LlamaGrammar takes at most {MAX_REPEAT}.")
    low, high = (counts.get(key, default) for key, default in _limits(counts))
    if low > high:
        raise InvalidSchema(f"{where}: no value satisfies it ({low} is more than {high}).")


def _limits(counts: dict[str, int]) -> list[tuple[str, int]]:
    kind = "Items" if any(key.endswith("Items") for key in counts) else "Length"
    return [(f"min{kind}", 0), (f"max{kind}", MAX_REPEAT)]
