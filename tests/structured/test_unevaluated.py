"""`unevaluatedProperties` and `unevaluatedItems`: what branches speak of counts where they hold. jsonschema judges."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.errors import InvalidSchema
from llm_local.structured.schema import canonical
from tests.examples import examples
from tests.structured.test_json_schema import GUIDANCE, check_admits, compact
from tests.structured.vocabulary import walks


def needs(*names: str) -> dict[str, Any]:
    return {"required": list(names), "properties": {name: {"type": "number"} for name in names}}


CLOSED: dict[str, Any] = {"type": "object", "unevaluatedProperties": False}

LIST: dict[str, Any] = {"type": "array", "unevaluatedItems": False}
STRING, NUMBER = {"type": "string"}, {"type": "number"}

CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, what it admits, what it does not
    ({**CLOSED, "properties": {"x": True}, "oneOf": [needs("a"), needs("b")]},
     [{"a": 1}, {"x": 0, "b": 1}], [{}, {"a": 1, "b": 1}, {"a": 1, "c": 1}, {"a": "s"}]),
    ({**CLOSED, "anyOf": [needs("a"), needs("b"), needs("c")]},
     [{"a": 1}, {"a": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}], [{}, {"d": 1}, {"a": 1, "b": "s"}]),
    ({**CLOSED, "properties": {"k": {"enum": ["x", "y"]}}, "required": ["k"],
      "if": {"properties": {"k": {"const": "x"}}}, "then": needs("a"), "else": {"properties": {"b": True}}},
     [{"k": "x", "a": 1}, {"k": "y"}, {"k": "y", "b": 1}],
     [{"k": "x"}, {"k": "x", "a": 1, "b": 1}, {"k": "y", "a": 1}]),
    ({**CLOSED, "if": {"patternProperties": {"^x": {"type": "integer"}}}}, [{}, {"x1": 1}], [{"x1": "s"}, {"y": 1}]),
    ({**CLOSED, "properties": {"a": True}, "dependentSchemas": {"a": {"properties": {"b": {"type": "integer"}}}}},
     [{}, {"a": 1}, {"a": 1, "b": 1}], [{"b": 1}, {"a": 1, "b": "s"}, {"c": 1}]),
    ({**CLOSED, "properties": {"a": True, "b": True}, "dependentSchemas": {"a": {"not": {"required": ["b"]}}}},
     [{"a": 1}, {"b": 1}], [{"a": 1, "b": 1}, {"c": 1}]),
    ({"type": "object", "unevaluatedProperties": {"type": "null"}, "oneOf": [needs("a"), needs("b")]},
     [{"a": 1}, {"a": 1, "c": None}, {"b": 1, "a": None}], [{"a": 1, "c": 1}, {"a": 1, "b": 1}]),
    ({**CLOSED, "oneOf": [{**needs("a"), "additionalProperties": {"type": "null"}}, needs("b")]},
     [{"a": 1, "z": None}, {"b": 1}], [{"a": 1, "z": 1}, {"b": 1, "z": None}, {}]),
    ({**CLOSED, "properties": {"a": True}, "$dynamicRef": "#more",
      "$defs": {"d": {"$dynamicAnchor": "more", "properties": {"b": True}}}}, [{"a": 1, "b": 1}], [{"c": 1}]),
    ({**CLOSED, "allOf": [{"oneOf": [needs("a"), {"$ref": "#/$defs/d"}]}, {"$ref": "#/$defs/d/anyOf/0"}],
      "$defs": {"d": {"anyOf": [{"properties": {"x": True}}, needs("y")], "required": ["b"],
                      "properties": {"b": True}}}},
     [{"a": 1}, {"a": 1, "x": 1}, {"b": 1, "y": 1}, {"x": 1, "b": 1}],
     [{"a": 1, "y": 1}, {"b": 1, "z": 1}, {"b": 1, "y": "s"}, {"a": 1, "b": 1}]),
    (LIST, [[]], [[1]]),
    ({**LIST, "prefixItems": [STRING], "allOf": [{"prefixItems": [True, NUMBER]}]}, [[], ["a", 1]], [["a", 1, 1], [1]]),
    ({**LIST, "prefixItems": [STRING], "anyOf": [{"prefixItems": [True, NUMBER], "minItems": 2}, {"maxItems": 1}]},
     [["a"], ["a", 1], []], [["a", "b"], ["a", 1, 1]]),
    ({"type": "array", "unevaluatedItems": STRING, "prefixItems": [NUMBER]}, [[1, "a"], []], [[1, 1], ["a"]]),
    ({**LIST, "if": {"minItems": 2}, "then": {"items": NUMBER},
      "else": {"prefixItems": [STRING]}}, [[1, 2, 3], ["a"], []], [[1, "a"], ["a", "b"], [2]]),
    ({**LIST, "oneOf": [{"items": STRING, "minItems": 1}, {"prefixItems": [NUMBER], "minItems": 1}]},
     [["a", "b"], [1]], [[1, 1], [], ["a", 1]]),
    ({**LIST, "dependentSchemas": {"a": {"items": True}}}, [[]], [[1]]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[compact(case[0])[20:100] for case in CASES])
def test_what_branches_speak_of_counts_where_they_hold(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    check_admits(schema, valid, invalid)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({**CLOSED, "anyOf": [needs(name) for name in "abcdefg"]}, "over 64 ways"),
        ({**CLOSED, "allOf": [{"$ref": "#"}]}, "refers to itself"),
    ],
)
def test_too_many_ways_are_refused_by_name(schema: Any, says: str) -> None:
    with pytest.raises(InvalidSchema, match=says):
        canonical(schema)


def test_branches_that_speak_of_nothing_else_are_no_ways() -> None:
    names = "abcdefghij"
    any_name = {
        **CLOSED,
        "properties": dict.fromkeys(names, True),
        "anyOf": [{"required": [name]} for name in names],
    }
    check_admits(any_name, [{"j": 1}, {"a": 1, "b": 1}], [{}, {"a": 1, "z": 1}])


NAMES = st.sampled_from("abc")
VALUES = st.sampled_from([True, {"type": "integer"}, {"const": 1}, {"type": "string"}, False])
PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "properties": st.dictionaries(NAMES, VALUES, max_size=2),
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "d"]), VALUES, max_size=1),
        "required": st.lists(NAMES, max_size=1),
        "additionalProperties": VALUES,
    },
)


def _joined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(NAMES, VALUES, max_size=2),
            "allOf": some,
            "anyOf": some,
            "oneOf": some,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=2),
            "unevaluatedProperties": VALUES,
        },
    )


JOINED = st.recursive(PLAIN, _joined, max_leaves=4)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "ad"]), st.sampled_from([1, "s"]), max_size=3)


def check_nothing_invalid(document: Any, values: list[Any], seed: int) -> None:
    """Neither random answers nor these values are, where they are admitted."""
    try:
        compiled = GUIDANCE.json(canonical(document))
    except InvalidSchema:
        return
    judge = jsonschema.Draft202012Validator(document)
    for text in walks((compiled.start() for _ in range(4)), random.Random(seed)):
        assert judge.is_valid(json.loads(text)), text
    for value in values:
        if not judge.is_valid(value):
            assert not compiled.start().completes(compact(value)), value


@given(parts=JOINED, rest=VALUES, values=st.lists(OBJECTS, max_size=6), seed=st.integers(0, 2**32))
@examples(150)
def test_whatever_branches_there_are_nothing_invalid_is_an_answer(
    parts: Any, rest: Any, values: list[Any], seed: int
) -> None:
    check_nothing_invalid({**parts, "type": "object", "unevaluatedProperties": rest}, values, seed)


FIRST = st.lists(VALUES, max_size=2)
ARRAY = st.fixed_dictionaries({}, optional={"prefixItems": FIRST, "items": VALUES, "minItems": st.integers(0, 2)})


def _joined_arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "prefixItems": FIRST,
            "allOf": some,
            "anyOf": some,
            "oneOf": some,
            "if": inner,
            "then": inner,
            "else": inner,
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
            "unevaluatedItems": VALUES,
        },
    )


ARRAYS = st.lists(st.sampled_from([1, "s"]), max_size=3)


@given(
    parts=st.recursive(ARRAY, _joined_arrays, max_leaves=4),
    rest=VALUES,
    values=st.lists(ARRAYS, max_size=6),
    seed=st.integers(0, 2**32),
)
@examples(100)
def test_whatever_branches_of_arrays_there_are_nothing_invalid_is_an_answer(
    parts: Any, rest: Any, values: list[Any], seed: int
) -> None:
    check_nothing_invalid({**parts, "type": "array", "unevaluatedItems": rest}, values, seed)
