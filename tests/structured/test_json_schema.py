"""What a schema admits: checked by hand-written instances, and by random schemas with jsonschema as the judge."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.errors import InvalidSchema
from llm_local.structured import rewriter
from llm_local.structured.around import CompiledAround
from llm_local.structured.distinct import Distinct
from llm_local.structured.keys import Keys
from llm_local.structured.places import Places
from llm_local.structured.schema import canonical
from llm_local.structured.tokens import Tokens
from tests.examples import examples
from tests.structured.vocabulary import END, N_VOCAB, accepts, guidance, piece, walks

GUIDANCE = guidance()
TOKENS = Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END])
NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, "required": ["v"],
        "additionalProperties": False}  # fmt: skip


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@lru_cache(4)
def _compiled(schema: str) -> CompiledAround[Keys]:
    return CompiledAround(GUIDANCE.json(canonical(json.loads(schema))), lambda inner: Keys(inner, TOKENS))


def admits(schema: Any, value: Any) -> bool:
    """Whether an answer to this schema may be this value; a schema is compiled once for values that come in turn."""
    return accepts(_compiled(compact(schema)).start(), compact(value))


def check_admits(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    """What is valid by the specification is admitted, and what is not to be is not."""
    judge = jsonschema.Draft202012Validator(schema)
    for value in valid:
        assert judge.is_valid(value)
        assert admits(schema, value), value
    for value in invalid:
        assert not admits(schema, value), value


CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, what it admits, what it does not
    ({"type": "integer", "minimum": 3, "maximum": 120}, [3, 99, 120], [2, 121, 3.5, "3"]),
    ({"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5}, [-4, 0, 4], [-5, 5]),
    ({"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 2}, [0.25, 0.5, 1.0, 1.75, 2], [0.3, 2.25]),
    ({"type": "number", "multipleOf": 0.125}, [0.125, 0.25, 0.5, 2.0], [0.1, 0.2, 0.12]),
    ({"type": "number", "multipleOf": 2.719}, [2.719, 5.438], [2.7, 27]),
    ({"type": "number", "multipleOf": 0.065537}, [0.065537, 0.131074], [0.1, 3.3]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, [0.1, 0.5], [0, 0.6]),
    ({"allOf": [{"type": "number", "exclusiveMinimum": 1}, {"maximum": 1.5}]}, [1.25], [1, 2]),
    ({"type": "number", "exclusiveMaximum": 10}, [9.9, -3], [10]),
    ({"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3}, [2, 3], [1, 4]),
    ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "Прив"], ["a", "Привет"]),
    ({"type": "string", "pattern": "^[А-Яа-я]+$"}, ["Привет"], ["", "Hello", "Привет!"]),
    ({"type": "string", "pattern": "b"}, ["abc", "b"], ["ac", ""]),
    ({"type": "string", "format": "date"}, ["2026-11-24", "2024-02-29", "2000-02-29", "2026-02-28", "0004-02-29"],
     ["2026-13-01", "2026-02-30", "0000-01-01", "0000-02-29", "2026-02-29", "1900-02-29", "2026-04-31", "x"]),
    ({"type": "string", "format": "date-time"}, ["2024-02-29T12:00:00Z", "2026-12-31T23:59:59.5+03:00"],
     ["2026-02-29T12:00:00Z", "2100-02-29T12:00:00Z", "2024-02-30T12:00:00Z"]),
    ({"type": "string", "format": "no-such-format"}, ["x"], [1]),
    ({"enum": ["да", "нет", None, 3, {"a": [1]}]}, ["да", None, 3, {"a": [1]}], ["может", 4, {"a": [2]}]),
    ({"const": {"ключ": "значение"}}, [{"ключ": "значение"}], [{}, {"ключ": ""}]),
    ({"type": ["string", "null"]}, ["x", None], [1, True]),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, [[True], [True, False]],
     [[], [1], [True] * 3]),
    ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
     [["a", 1]], [["a"], ["a", 1, 2], [1, "a"]]),
    ({"items": [{"const": 1}], "additionalItems": {"const": 2}, "type": "array"}, [[], [1], [1, 2, 2]], [[2], [1, 1]]),
    ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, [[], [1], [2, 1]], [[1, 1]]),
    ({"type": "object", "properties": {"имя": {"type": "string"}}, "required": ["имя"], "additionalProperties": False},
     [{"имя": "Аня"}], [{}, {"имя": 1}, {"имя": "x", "y": 1}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": 2}], [{"a": "1"}]),
    ({"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
     [{}, {"xa": 1}], [{"a": 1}, {"xa": "1"}]),
    ({"type": "object", "propertyNames": {"type": "integer", "enum": ["a"]}}, [{}], [{"a": 1}]),
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, [{}, {"ab": 1}], [{"A": 1}]),
    ({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": False, "minProperties": 2},
     [{"a": 1, "b": 2}, {"b": 1, "c": 2}], [{}, {"a": 1}]),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, [{"a": 1}, {"b": 1}, {"x": 1}], [{}]),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, [{}, {"a": 1}, {"b": 1}, {"x": 1}],
     [{"a": 1, "b": 1}, {"a": 1, "x": 1}, {"x": 1, "y": 1}]),
    ({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"], "minProperties": 1,
      "maxProperties": 2}, [{"b": 1}, {"a": 1, "b": 1}, {"b": 1, "x": 1}], [{}, {"a": 1}, {"a": 1, "b": 1, "c": 1}]),
    ({"type": "object", "propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": {"pattern": "^[a-z]+$"}}},
     [{}, {"ab": 1}], [{"A": 1}]),
    ({"type": "object", "properties": {"card": {}, "address": {}}, "additionalProperties": False,
      "dependentRequired": {"card": ["address"]}}, [{}, {"address": 1}, {"card": 1, "address": 2}], [{"card": 1}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
      "additionalProperties": False, "dependencies": {"a": {"required": ["b"]}}}, [{"b": 1}, {"a": 1, "b": 1}],
     [{"a": 1}]),
    ({"anyOf": [{"type": "string", "maxLength": 1}, {"type": "integer"}]}, ["a", 5], ["ab", None]),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["ab", 5], [None, 1.5]),
    ({"oneOf": [{"type": "number", "minimum": 5}, {"type": "number", "maximum": 9}]}, [4, 10], [5, 7, 9]),
    ({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}, "x": {"type": "integer"}}, "required": ["k"],
                 "additionalProperties": False},
                {"type": "object", "properties": {"k": {"const": "b"}, "y": {"type": "string"}}, "required": ["k"],
                 "additionalProperties": False}]},
     [{"k": "a", "x": 1}, {"k": "b", "y": ""}], [{"k": "a", "y": ""}, {"k": "c"}]),
    ({"oneOf": [{"type": "object", "additionalProperties": False, "properties": {"env": {"type": "string"}}},
                {"type": "object", "additionalProperties": False, "properties": {"file": {"type": "string"}}}]},
     [{"env": ""}, {"file": ""}], [{}, {"env": "", "file": ""}]),
    ({"oneOf": [{"enum": ["none", "auto"]}, {"type": "string", "pattern": "^[0-9]+s$"}]}, ["none", "5s"], ["s"]),
    ({"oneOf": [{"type": "object", "additionalProperties": False, "properties": {"mail": {"type": "string"}, "if": {}}},
                {"type": "object", "additionalProperties": False, "properties": {"chat": {"type": "array", "items": {
                    "type": "string"}}, "if": {}}}]},
     [{"mail": "a", "if": 1}, {"chat": ["a"]}], [{"if": 1}, {}, {"mail": "a", "chat": []}]),
    ({"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "required": ["mode"], "type": "object", "$defs": {
        "a": {"properties": {"x": {"type": "null"}, "mode": {"const": "a"}}},
        "b": {"properties": {"x": {"type": "null"}, "mode": {"const": "b"}}}}},
     [{"x": None, "mode": "a"}, {"mode": "b"}], [{"x": None}, {"mode": "c"}]),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": "string"}}, "required": ["b"]}]}, [{"a": 1, "b": ""}], [{"a": 1}]),
    ({"type": "string", "not": {"enum": ["нет", "no"]}}, ["да", "n", "nop", ""], ["нет", "no"]),
    ({"type": ["string", "integer"], "not": {"type": "string"}}, [1], ["a"]),
    ({"type": "string", "not": {"minLength": 3}}, ["", "ab"], ["abc"]),
    ({"type": "array", "items": {"const": 1}, "not": {"maxItems": 1}}, [[1, 1]], [[], [1]]),
    ({"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
      "required": ["kind"], "additionalProperties": False,
      "if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["n"]}},
     [{"kind": "a", "n": 1}, {"kind": "b"}], [{"kind": "a"}]),
    ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}],
     [{}, {"v": 1, "next": {}}]),
    ({"type": "object", "properties": {"next": {"$dynamicRef": "#node"}}, "additionalProperties": False,
      "$dynamicAnchor": "node"}, [{}, {"next": {"next": {}}}], [{"next": 1}, {"next": {"x": 1}}]),
    ({"$schema": "https://json-schema.org/draft/2019-09/schema", "$recursiveAnchor": True, "type": "array",
      "items": {"$recursiveRef": "#"}}, [[], [[], [[]]]], [[1], [[1]]]),
    ({"type": "array", "items": {"$ref": "#"}, "maxItems": 2}, [[], [[], [[]]]], [[1], [[], [], []]]),
    ({"allOf": [{"$ref": "#/$defs/a"}], "properties": {"y": {"type": "null"}}, "unevaluatedProperties": False,
      "$defs": {"a": {"type": "object", "properties": {"x": {"type": "null"}}}}}, [{}, {"x": None, "y": None}],
     [{"z": 1}]),
    ({"allOf": [{"$ref": "#/$defs/a"}], "properties": {"y": {"type": "null"}}, "patternProperties": {"^x-": {}},
      "unevaluatedProperties": False, "type": "object", "$defs": {"a": {"properties": {"x": {"type": "null"}},
      "patternProperties": {"^n[0-9]$": {"type": "integer"}}}}},
     [{}, {"x": None, "y": None, "x-1": 3}, {"n1": 2}], [{"z": 1}, {"n1": "a"}, {"y": 1}]),
    ({"type": "object", "propertyNames": {"format": "uuid"}, "additionalProperties": {"type": "integer"}},
     [{}, {"123e4567-e89b-12d3-a456-426614174000": 1}], [{"a": 1}, {"123e4567-e89b-12d3-a456-426614174000": "1"}]),
    ({"type": "object", "propertyNames": {"type": "string", "format": "date"}}, [{"2024-02-28": 1}, {"2026-12-31": 0}],
     [{"2024-02-30": 1}, {"2024-13-01": 1}, {"24-01-01": 1}, {"": 1}]),
    ({"type": "object", "propertyNames": {"not": {"enum": ["when", "if"]}}}, [{"whe": 1}, {"i": 1}], [{"when": 1}]),
    ({"type": "object", "propertyNames": {"not": {"pattern": "^_"}}}, [{"a_": 1}, {"": 1}], [{"_a": 1}]),
    ({"type": "array", "contains": {"type": "integer"}}, [[1], ["a", 1], [[], 1, "x"]], [[], ["a"]]),
    ({"type": "array", "items": {"type": ["string", "null"]}, "contains": {"const": None}, "maxItems": 3},
     [[None], ["a", "b", None]], [[], ["a"], ["a", "b", "c", None], [1, None]]),
    ({"type": "array", "prefixItems": [{"type": "string"}], "contains": {"type": "boolean"}}, [["a", True]],
     [[True], ["a"]]),
    ({"type": "array", "contains": {"const": 1}, "minContains": 0}, [[], [2]], []),
    ({"type": "array", "contains": {"const": 1}, "minContains": 2.0}, [[1, 1], [0, 1, 1, 1, 0], [0] * 6 + [1, 1]],
     [[], [1], [1, 0]]),
    ({"type": "array", "contains": {"const": 1}, "minContains": 12}, [[1] * 12, [1] * 12 + [0]], [[1] * 11]),
    ({"type": "array", "contains": {"const": 1}, "maxContains": 1}, [[1], [0, 1], [1] + [0] * 20], [[], [1, 1], [0]]),
    ({"type": "array", "contains": {"const": 1}, "minContains": 0, "maxContains": 0}, [[], [0]], [[1], [0, 1]]),
    ({"type": "array", "contains": {"const": 1}, "minContains": 1, "maxContains": 3, "items": {"type": "integer"}},
     [[1], [1, 0, 1, 1], [1, 1]], [[0], [1, 1, 1, 1], [1, "x"]]),
    ({"type": "array", "contains": {"type": "string"}, "maxItems": 20}, [[*range(19), "x"]], [[*range(20)], []]),
    ({"contains": {"const": 1}, "minContains": 2}, [5, {"a": 1}, [1, 1]], [[1]]),
    ({"type": "array", "contains": {"pattern": "^(?:a{9}|b{60}|c{60}|d{60})$"}, "minContains": 0, "maxContains": 1,
      "items": {"type": "string"}}, [[], ["a" * 9, "a"], ["b" * 59, "d" * 60]],
     [["a" * 9, "a" * 9], ["b" * 60, "c" * 60]]),
    ({"contains": {"const": 1}}, [5, {"a": 1}, [1]], [[2]]),
    ({"type": "object", "propertyNames": False}, [{}], [{"a": 1}]),
    # Names about which nothing is said beside names that are listed: patterns of both would meet.
    ({"type": "object", "propertyNames": {"anyOf": [{"const": ""}, {"type": "string", "format": "no-such-format"}]},
      "patternProperties": {"^.*$": {"type": "integer"}}, "additionalProperties": False},
     [{"": 1, "a": 2}], [{"a": "b"}]),
    # A definition that nothing satisfies: what refers to it is forbidden, all else is not.
    ({"type": "object", "properties": {"old": {"$ref": "#/$defs/removed"}, "new": {"$ref": "#/$defs/more"}},
      "$defs": {"removed": {"not": {}}, "more": {"type": "array", "items": {"$ref": "#/$defs/endless"}},
                "endless": {"type": "object", "properties": {"x": {"$ref": "#/$defs/endless"}}, "required": ["x"]}}},
     [{}, {"new": []}], [{"old": 1}, {"new": [{}]}]),
    # Patterns that both match: one of them lists names.
    ({"type": "object", "patternProperties": {"^[A-Z0-9]+$": {"maxLength": 4}, "^(MD5|SHA)$": {"minLength": 3}},
      "additionalProperties": False},
     [{"MD5": "abc", "X": "a"}, {"SHA": 1}, {}], [{"MD5": "ab"}, {"SHA": "abcde"}, {"X": "abcde"}, {"x": 1}]),
    ({"type": "object", "patternProperties": {"^a[bc]$": {"type": "integer"}, "^a": {"minimum": 3}},
      "properties": {"ab": {"maximum": 5}}, "additionalProperties": {"type": "string"}},
     [{"ab": 4, "ac": 9, "ad": "x", "b": "x"}], [{"ab": 2}, {"ab": 6}, {"ac": 2}, {"ac": "x"}, {"ad": 1}, {"b": 1}]),
    # (NUL is a name, too.)
    ({"type": "object", "patternProperties": {"^[\u0000a]$": {"type": "integer"}, "a": {}}},
     [{"a": 2}, {"ba": "x"}], [{"\u0000": "x"}, {"a": "x"}]),
    # A name that one pattern matches for all readers, the other for some.
    ({"type": "object", "patternProperties": {"^[é1x]{1,9}$": {"type": "integer"}, "^\\w{1,9}$": {"maximum": 5}},
      "additionalProperties": False}, [{"1": 5, "a": "x"}], [{"1": 6}, {"é": "x"}, {"-": 1}, {"é1": 6}]),
    # Patterns without end that both match: names of both, of one and of the other are parted.
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}, "z$": {"minimum": 5}}},
     [{"az": 5, "a": 1, "z": "x", "m": "x"}, {"z": 7}], [{"az": 4}, {"az": "x"}, {"a": "x"}, {"z": 4}]),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b": {"minimum": 5}, "z$": {"maximum": 9}},
      "additionalProperties": False},
     [{"a": 1, "abz": 6, "az": 9, "b": "x", "bz": 7}], [{"abz": 4}, {"abz": 10}, {"az": 10}, {"bz": 4}, {"m": 1}]),
    ({"type": "object", "patternProperties": {"a*": {"type": "integer"}, "aaa*": {"maximum": 20}}},
     [{"a": 21, "foo": 18, "aaaa": 18}, {"a\u00a0": 1}], [{"a": "bar"}, {"aaaa": 31}, {"baab": 21}, {"a\u0000": "x"}]),
    # What tells the branches apart is a list, and each also admits whatever is no object.
    ({"oneOf": [{"required": ["changes"], "properties": {"changes": {"enum": [["deleted"]]}}},
                {"required": ["changes"],
                 "properties": {"changes": {"type": "array", "items": {"enum": ["size", "mode"]}, "minItems": 1}}}]},
     [{"changes": ["deleted"]}, {"changes": ["size", "mode"]}], [1, [], {}, {"changes": []}, {"changes": ["x"]}]),
    # The whole opposite cannot be written (numbers that are no integers).
    ({"type": "object", "properties": {"kind": {"enum": ["file", "link"]}}, "required": ["kind"],
      "not": {"required": ["size"], "properties": {"size": {"type": "integer"}}}},
     [{"kind": "file"}, {"kind": "link", "size": "5"}, {"kind": "link", "user": 5}], [{"kind": "file", "size": 5}, {}]),
    ({"type": "object", "if": {"properties": {"size": {"type": "integer"}}, "required": ["size"]},
      "then": {"required": ["user"]}},
     [{}, {"size": 1, "user": 2}, {"size": "1"}], [{"size": 1}]),
    (True, [None, {"a": [1, "x"]}], []),
    ({"description": "annotations only", "x-unknown": 3, "default": 1}, [1, "a"], []),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[compact(case[0])[:70] for case in CASES])
def test_a_schema_admits_what_is_valid_and_nothing_else(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    for value in valid:
        assert admits(schema, value), value
    for value in invalid:
        assert not admits(schema, value), value


REFUSED: list[tuple[Any, str, str]] = [
    # schema, where, what is said
    ({"type": "array", "contains": {"type": "integer"}, "maxContains": 2}, "#/maxContains", "cannot be enforced"),
    ({"type": "array", "contains": {"type": "integer"}, "minContains": 101}, "#/minContains", "at most 100"),
    ({"type": "array", "contains": True, "minContains": "2"}, "#/minContains", "whole number"),
    ({"type": "array", "contains": True, "maxContains": -1}, "#/maxContains", "whole number"),
    ({"type": "array", "contains": {"const": 1}, "minContains": 2, "maxContains": 1}, "#", "no value satisfies"),
    ({"not": {"contains": {"type": "integer"}}}, "#/not", "say what is allowed"),
    ({"type": "string", "allOf": [{"pattern": f"[ab]*a[ab]{{{n}}}"} for n in range(16)]}, "#/allOf", "patterns"),
    ({"allOf": [{"properties": {"x": {"pattern": f"[ab]*a[ab]{{{n}}}"}}} for n in range(16)]}, "#/allOf", "patterns"),
    ({"type": "array", "contains": True, "unevaluatedItems": False}, "#/unevaluatedItems", "cannot be enforced"),
    (
        {
            "properties": {
                "x": {
                    "anyOf": [
                        {"type": "array", "uniqueItems": True},
                        {"type": "array", "items": {"const": 1}, "minItems": 2},
                    ]
                }
            }
        },
        "#/properties/x/anyOf",
        "'uniqueItems' of one branch",
    ),
    (
        {
            "anyOf": [
                {"properties": {"t": {"uniqueItems": True, "type": "array"}}},
                {"properties": {"t": {"type": "array", "items": {"type": "boolean"}, "minItems": 3}}},
            ]
        },
        "#/anyOf",
        "the array at /t must repeat",
    ),
    ({"type": "array", "items": {"enum": ["a"]}, "uniqueItems": True, "minItems": 2}, "#/uniqueItems", "no 2 distinct"),
    (
        {"type": "array", "items": {"type": "string", "pattern": "^(да|нет)$"}, "uniqueItems": True, "minItems": 3},
        "#/uniqueItems",
        "no 3 distinct",
    ),
    (
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2},
            "uniqueItems": True,
            "minItems": 4,
        },
        "#/uniqueItems",
        "no 4 distinct",
    ),
    (
        {"type": "array", "items": {"type": ["null", "boolean"]}, "uniqueItems": True, "minItems": 4},
        "#/uniqueItems",
        "no 4 distinct",
    ),
    ({"properties": {"a": {"$ref": "https://example.com/x.json"}}}, "#/properties/a/$ref", "nothing is fetched"),
    ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "#/properties/a/$ref", "points to nothing"),
    (
        {"items": {"$dynamicRef": "#a"}, "$dynamicAnchor": "a", "$defs": {"b": {"$id": "b", "$dynamicAnchor": "a"}}},
        "#/items/$dynamicRef",
        "several anchors",
    ),
    (
        {"items": {"$recursiveRef": "#"}, "$recursiveAnchor": True, "$defs": {"b": {"$recursiveAnchor": True}}},
        "#/items/$recursiveRef",
        "several anchors",
    ),
    ({"$dynamicRef": "#missing"}, "#/$ref", "no $anchor"),
    ({"$ref": "other", "$id": "https://example.com/x"}, "#/$ref", "$schema"),
    ({"type": "strnig"}, "#/type", "types are"),
    ({"type": []}, "#/type", "empty"),
    ({"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}, "#/properties/a/pattern", "look-around"),
    ({"type": "string", "pattern": r"(a)\1"}, "#/pattern", "back-references"),
    ({"oneOf": [{"pattern": "[ab]*a[ab]{7}"}, {"pattern": "[ab]*b[ab]{7}"}]}, "#/oneOf", "exclusive"),
    ({"not": {"type": "string", "pattern": "[ab]*a[ab]{7}"}}, "#/not", "say what is allowed"),
    ({"minLength": -1}, "#/minLength", "whole number"),
    ({"required": "a"}, "#/required", "list of property names"),
    ({"enum": []}, "#/enum", "at least one"),
    ({"multipleOf": 0}, "#/multipleOf", "greater than 0"),
    ({"items": 5}, "#/items", "object or a boolean"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "#", "leads back to itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "#", "leads back to itself"),
    ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "#", "no value satisfies"),
    (False, "#", "no value satisfies"),
    ({"multipleOf": 1000003}, "#/multipleOf", "100000"),
    ({"type": "integer", "multipleOf": 5000000}, "#/multipleOf", "100000"),
    ({"allOf": [{"type": "integer", "multipleOf": n} for n in (7, 11, 13, 17, 19, 23)]}, "#", "least common multiple"),
    ({"properties": {f"p{n}": {} for n in range(4001)}}, "#/properties", "at most 4000"),
    ({"format": ["date"]}, "#/format", "must be a string"),
    ({"minimum": 10**400}, "#", "too large"),
    ({"minItems": 10**400}, "#", "too large"),
    ({"enum": [json.loads("[" * 600 + "]" * 600)]}, "#", "too deep"),
    ({"not": {"enum": ["a" * 1500]}}, "#", "too deep"),
    (
        {"$ref": "#/$defs/0", "$defs": {str(n): {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(300)}},
        "#",
        "too deep",
    ),
    ({"uniqueItems": True, "minItems": -1, "items": {"enum": [1, 2]}}, "#/minItems", "whole number"),
    ({"maxLength": float("inf")}, "#", "infinite"),
    ({"const": "\ud800"}, "#", "surrogate"),
    ({"allOf": None, "properties": [], "unevaluatedProperties": False}, "#/properties", "must be an object"),
]


@pytest.mark.parametrize(("schema", "where", "says"), REFUSED, ids=[compact(case[0])[:70] for case in REFUSED])
def test_what_cannot_be_enforced_is_refused_by_name_and_place(schema: Any, where: str, says: str) -> None:
    with pytest.raises(InvalidSchema) as caught:
        GUIDANCE.json(canonical(schema))
    assert caught.value.message.startswith(where)
    assert says in caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "string", "minLength": 5, "maxLength": 3},
        {"type": "string", "enum": ["a"], "pattern": "^b$"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"oneOf": [{"type": "string"}, {"type": "string"}]},
    ],
    ids=compact,
)
def test_a_schema_that_nothing_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidSchema, match=r"no value satisfies|cannot be enforced|[Uu]nsatisfiable"):
        GUIDANCE.json(canonical(schema))


def test_a_schema_that_is_too_deep_or_too_large_is_refused() -> None:
    deep: Any = {"type": "string"}
    for _ in range(60):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidSchema, match="nested over"):
        canonical(deep)
    wide = {"anyOf": [{"type": "string", "minLength": n} for n in range(30_000)]}
    with pytest.raises(InvalidSchema, match="over 20000 parts"):
        canonical(wide)


@pytest.mark.parametrize(("cpu_s", "elapsed_s", "served"), [(0.01, 1.0, True), (1.0, 1.0, False), (0.01, 10.0, False)])
def test_a_schema_has_time_of_its_own_and_waits_for_others_do_not_count(
    monkeypatch: pytest.MonkeyPatch, cpu_s: float, elapsed_s: float, served: bool
) -> None:
    """Each look at a clock is so much later: on a busy machine much time goes by in which the worker does not run."""
    cpu, clock = itertools.count(0, cpu_s), itertools.count(0, elapsed_s)
    clocks = SimpleNamespace(thread_time=cpu.__next__, monotonic=clock.__next__)
    monkeypatch.setattr(rewriter, "time", clocks)
    document = {"type": "object", "properties": {name: {"type": "null"} for name in "abc"}}
    if served:
        canonical(document)
    else:
        with pytest.raises(InvalidSchema, match=r"takes over 1\.5 s to translate"):
            canonical(document)


def test_definitions_to_which_many_ways_lead_are_looked_at_once() -> None:
    """Each refers to the next one twice: a million ways lead to the last."""
    defs: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2, "properties": {f"p{n}": {}}} for n in range(20)
    }
    defs["d20"] = {"type": "object", "properties": {"last": {"type": "null"}}}
    began = time.monotonic()
    schema = canonical({"$ref": "#/$defs/d0", "unevaluatedProperties": False, "$defs": defs})
    assert time.monotonic() - began < 0.5
    assert "last" in json.dumps(schema.root)


def test_an_enum_of_thousands_is_enforced() -> None:
    names = [f"код-{n}" for n in range(5000)]
    compiled = GUIDANCE.json(canonical({"enum": names}))
    assert accepts(compiled.start(), '"код-4999"')
    assert not accepts(compiled.start(), '"код-5000"')


def test_answers_are_compact_unless_switched_off() -> None:
    schema = canonical({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert not accepts(GUIDANCE.json(schema).start(), '{"a": 1}')
    assert accepts(guidance(compact=False).json(schema).start(), '{"a": 1}')
    assert accepts(guidance(compact=False).json(schema).start(), '{"a":1}')


def test_properties_come_in_the_order_of_the_schema() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}, "required": ["a", "b"]}
    assert admits(schema, {"b": 1, "a": 2})
    assert not admits(schema, {"a": 2, "b": 1})


def test_strings_hold_no_raw_control_characters() -> None:
    compiled = GUIDANCE.json(canonical({"type": "string"}))
    for text in ('"a\nb"', '"\t"', '"\x00"', '"\x1f"'):
        assert not accepts(compiled.start(), text)
    assert accepts(compiled.start(), r'"a\nb"')


# -- random schemas -------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "имя", "x y", 'q"q', "c\\d"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-50, 50), st.sampled_from([0.5, -1.25, 3.0]), st.sampled_from(NAMES)
)
COUNTS = st.integers(0, 3)


def _with(base: dict[str, Any], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.just(value) for name, value in base.items()}, optional=optional)


LEAVES = st.one_of(
    st.booleans(),
    st.just({}),
    _with({"type": "integer"}, minimum=st.integers(-20, 20), maximum=st.integers(-20, 20), multipleOf=st.just(3)),
    _with({"type": "number"}, exclusiveMinimum=st.integers(-9, 9), maximum=st.sampled_from([1.5, 20])),
    _with({"type": "string"}, minLength=COUNTS, maxLength=st.integers(0, 6)),
    _with({"type": "string"}, pattern=st.sampled_from(["^a+$", "b", r"^\d{2}-\w$", "^[^x]?$", r"\s", "^(да|нет)$"])),
    _with(
        {"type": "string"},
        format=st.sampled_from(
            ["date", "uuid", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "colour"]
        ),
    ),
    st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    SCALARS.map(lambda value: {"const": value}),
    st.lists(st.sampled_from(["null", "boolean", "string", "integer"]), min_size=1, max_size=3, unique=True).map(
        lambda kinds: {"type": kinds}
    ),
    st.just({"$ref": "#/$defs/d"}),
)


def _inner(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    properties = st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    names = st.lists(st.sampled_from(NAMES), max_size=2, unique=True)
    return st.one_of(
        _with({"type": "array"}, items=inner, minItems=COUNTS, maxItems=COUNTS, uniqueItems=st.booleans()),
        _with({"type": "array"}, prefixItems=some, items=inner, minItems=COUNTS),
        _with({"type": "object"}, properties=properties, required=names, additionalProperties=inner),
        _with({"type": "object", "additionalProperties": False}, properties=properties, required=names),
        _with({"type": "object"}, properties=properties, minProperties=COUNTS, maxProperties=COUNTS),
        _with({"type": "object"}, patternProperties=st.dictionaries(st.sampled_from(["^a", "b$"]), inner, max_size=2)),
        _with({}, properties=properties, dependentRequired=st.just({"a": ["b"]}), required=names),
        _with({"type": "array"}, items=inner, contains=inner, maxItems=COUNTS),
        _with({"type": "array"}, contains=inner, minContains=COUNTS, maxContains=COUNTS, minItems=COUNTS, items=inner),
        _with(
            {"type": "object", "additionalProperties": {"type": "integer"}},
            properties=properties,
            patternProperties=st.dictionaries(st.sampled_from(["^a", "b$"]), inner, max_size=1),
        ),
        _with(
            {"type": "object"},
            propertyNames=st.sampled_from([{"pattern": "^[a-c]+$"}, {"maxLength": 3}, {"enum": NAMES[:3]}, False]),
            properties=properties,
            minProperties=st.integers(0, 1),
        ),
        _with(
            {"type": "object"},
            dependentSchemas=st.dictionaries(st.sampled_from(NAMES), inner, max_size=1),
            properties=properties,
        ),
        some.map(lambda options: {"anyOf": options}),
        some.map(lambda options: {"oneOf": options}),
        some.map(lambda options: {"allOf": options}),
        inner.map(lambda node: {"not": node}),
        st.tuples(inner, inner, inner).map(lambda three: dict(zip(("if", "then", "else"), three, strict=True))),
    )


SCHEMAS = st.recursive(LEAVES, _inner, max_leaves=8)
DOCUMENTS = st.tuples(SCHEMAS, SCHEMAS).map(
    lambda two: {**(two[0] if isinstance(two[0], dict) else {"allOf": [two[0]]}), "$defs": {"d": two[1]}}
)


@given(document=DOCUMENTS, seed=st.integers(0, 2**32))
@examples(120)
def test_whatever_comes_back_is_valid(document: Any, seed: int) -> None:
    """Each random answer to a random schema is valid; a schema that is refused is refused with a reason."""
    try:
        schema = canonical(document)
        places = Places([schema])
        compiled = CompiledAround(GUIDANCE.json(schema), lambda inner: Distinct(inner, places, TOKENS))
    except InvalidSchema as refused:
        if len(refused.message) < 20:
            pytest.fail(refused.message)
        return
    judge = jsonschema.Draft202012Validator(document, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for text in walks((compiled.start() for _ in range(4)), random.Random(seed)):
        with contextlib.suppress(RecursionError):
            # The judge cannot follow {"anyOf": [true, {"$ref": itself}]}.
            judge.validate(json.loads(text))


def test_the_random_schemas_are_not_all_refused_or_endless() -> None:
    """Guards the property test above."""
    outcomes = {"served": 0, "refused": 0, "ended": 0}

    @given(document=DOCUMENTS, seed=st.integers(0, 2**32))
    @examples(60)
    def count(document: Any, seed: int) -> None:
        try:
            compiled = GUIDANCE.json(canonical(document))
        except InvalidSchema:
            outcomes["refused"] += 1
            return
        outcomes["served"] += 1
        outcomes["ended"] += bool(walks([compiled.start()], random.Random(seed)))

    count()
    assert outcomes["served"] > outcomes["refused"] / 2
    assert outcomes["ended"] > outcomes["served"] / 2


KEYWORDS = [
    "type",
    "properties",
    "items",
    "required",
    "$ref",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "minimum",
    "multipleOf",
    "minLength",
    "pattern",
    "format",
    "minItems",
    "maxItems",
    "uniqueItems",
    "prefixItems",
    "additionalItems",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "minProperties",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contains",
    "maxContains",
    "$dynamicRef",
    "$dynamicAnchor",
    "$id",
    "id",
    "$schema",
    "$anchor",
    "$defs",
]
JUNK = st.recursive(
    SCALARS | st.sampled_from([-1, 1e308, 10**30, "#", "#/$defs/d", "(", "https://x/y", "\ud800", float("nan")]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=3),
    max_leaves=6,
)


@given(schema=st.dictionaries(st.sampled_from(KEYWORDS), JUNK, min_size=1, max_size=4))
@examples(150)
def test_no_junk_is_an_internal_error(schema: Any) -> None:
    with contextlib.suppress(InvalidSchema):
        GUIDANCE.json(canonical(schema)).start()


@pytest.mark.slow
def test_an_object_of_the_most_properties_is_followed() -> None:
    """llguidance would say that they are too many only when the answer is at them."""
    properties = {f"p{n}": {"const": n} for n in range(4000)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    assert admits(schema, {"p3999": 3999})
