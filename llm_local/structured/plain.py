"""A canonical schema in the part of JSON Schema that llama-cpp-python's converter enforces, or a refusal. Workers.

Where the converter is stricter than the schema (declared properties only, tuples of full length), an answer is valid
all the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.logic import REF, TYPES, Node, type_of
from llm_local.structured.schema import Schema

MAX_REPEAT = 500
UNKNOWN = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Literals that the converter's escaping leaves intact, in JSON's ASCII form.
SAFE_JSON = re.compile(r'[^\\"\x00-\x1f\x7f]|\\u(?!d[89a-f])[0-9a-f]{3}[0-9a-f]', re.IGNORECASE)
SAFE_PATTERN = re.compile(r"(?:[A-Za-z0-9 _:;,@/-]|\[[A-Za-z0-9 _-]+\]|[()*+?]|\{\d{1,3}(?:,\d{1,3})?\})*")


class PlainSchema:
    """Writes one.

    Args:
        schema: to be written.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        # The converter mixes names of definitions and of properties: this prefix is no property's.
        digest = hashlib.sha256(json.dumps([schema.root, dict(schema.defs)]).encode())
        self._prefix = f"def-{digest.hexdigest()[:16]}-"

    def document(self) -> dict[str, Any]:
        """Return the schema with its definitions, and no `$ref` at the root (which the converter cannot resolve)."""
        root = self._schema.root
        for _ in self._schema.defs:
            if isinstance(root, dict) and "$ref" in root:
                root = self._schema.defs[root["$ref"].removeprefix(REF)]
        defs = {f"{self._prefix}{name}": self.node(node, f"#/$defs/{name}") for name, node in self._schema.defs.items()}
        anything = {"$ref": f"{REF}{self._prefix}any"}
        defs[f"{self._prefix}any"] = {
            "anyOf": [
                *({"type": kind} for kind in ("string", "number", "boolean", "null")),
                {"type": "array", "items": anything},
                {"type": "object", "additionalProperties": anything},
            ]
        }
        written = self.node(root, "#")
        return {**(defs[f"{self._prefix}any"] if written == anything else written), "$defs": defs}

    def node(self, node: Node, where: str) -> dict[str, Any]:
        """Return one schema."""
        if node is True or node == {}:
            return {"$ref": f"{REF}{self._prefix}any"}
        if node is False:
            raise InvalidSchema(f"{where}: LlamaGrammar cannot express a schema that nothing satisfies.")
        if "$ref" in node:
            return {"$ref": f"{REF}{self._prefix}{node['$ref'].removeprefix(REF)}"}
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
        for value in values:
            self._check_literal(value, f"{where}/enum")
        return {"enum": values}

    @staticmethod
    def _check_literal(value: Any, where: str) -> None:
        """Refuse what the converter does not escape: it would be another text, or other rules."""
        text = json.dumps(value)
        if SAFE_JSON.sub("", text.replace('"', "") if '\\"' not in text else text):
            raise InvalidSchema(f"{where}: LlamaGrammar cannot write {text[:60]} (an escape in JSON) safely.")

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
        first = node.get("prefixItems")
        if first:
            n = len(first)
            if not counts.get("minItems", 0) <= n <= counts.get("maxItems", n):
                raise InvalidSchema(f"{where}/prefixItems: LlamaGrammar knows only tuples of full length.")
            return {"type": "array", "prefixItems": [self.node(item, f"{where}/prefixItems") for item in first]}
        items = node.get("items", True)
        if items is False:
            if counts.get("minItems", 0):
                raise InvalidSchema(f"{where}/minItems: no items are allowed.")
            counts, items = {"maxItems": 0}, {"type": "null"}
        return {"type": "array", "items": self.node(items, f"{where}/items"), **counts}

    def _object(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        for key in ("patternProperties", "minProperties", "maxProperties"):
            if key in node:
                raise InvalidSchema(f"{where}/{key}: LlamaGrammar does not enforce it.")
        rest = node.get("additionalProperties", True)
        declared = {name: item for name, item in node.get("properties", {}).items() if item is not False}
        required = node.get("required", [])
        for name in required:
            if name not in declared and (rest is False or name in node.get("properties", {})):
                raise InvalidSchema(f"{where}/required: '{name}' is required and forbidden.")
            declared.setdefault(name, rest)
        for name in declared:
            self._check_literal(name, f"{where}/properties")
        properties = {name: self.node(item, f"{where}/properties/{name}") for name, item in declared.items()}
        if "properties" in node or properties or rest is False:
            # Further keys could be declared ones.
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return {"type": "object", "additionalProperties": self.node(rest, f"{where}/additionalProperties")}


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
