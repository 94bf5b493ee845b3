"""What stands for more than it admits: `contains`, `not` of `items`, branches less what cannot be written wholly.

It may be part of an answer's schema, but nothing is proved with it, and its opposite is that of what it stands for.
"""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest

from llm_local.errors import InvalidSchema
from llm_local.structured.schema import canonical
from tests.structured.test_json_schema import GUIDANCE, admits, compact
from tests.structured.vocabulary import walks

TUPLE = {"type": "array", "prefixItems": [{"type": "integer"}]}
TREES = [
    {"type": "object", "required": [name], "properties": {name: {"$ref": "#/$defs/tree"}}} for name in ("or", "not")
]

CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, what it admits, what it does not
    ({"not": {"items": {"type": "string"}}}, [[1], ["a", 1]], [[], ["a"], 5]),
    ({"not": {"not": {"items": {"type": "string"}}}}, [[], ["a"], 5], [[1], ["a", 1]]),
    ({"not": {"type": "array", "contains": {"const": "a"}}}, [[], ["b"], 5], [["a"], ["b", "a"], ["b"] * 9 + ["a"]]),
    (
        {"type": "array", "if": {"contains": {"const": "a"}}, "then": {"maxItems": 1}},
        [["a"], ["b", "b"]],
        [["a", "b"], ["b"] * 9 + ["a"]],
    ),
    (
        {"oneOf": [{"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "number"}}]},
        [["a"], [1]],
        [[], ["a", 1]],
    ),
    (
        {
            "oneOf": [
                {"type": "array", "items": {"type": "object", "required": ["a"]}},
                {"type": "array", "items": {"type": "object", "properties": {"a": False}}, "minItems": 1},
            ]
        },
        [[], [{"a": 1}], [{"b": 1}]],
        [[{"a": 1}, {"b": 1}]],
    ),
    (
        {"oneOf": [{"required": [name], "properties": {name: TUPLE}} for name in ("a", "b")]},
        [{"a": [1]}, {"b": [1]}],
        [{"a": [1], "b": [1]}, {"a": ["x"]}, {}, 5],
    ),
    (
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"oneOf": [{"type": "null"}, *TREES]}}},
        [None, {"or": None}, {"not": {"or": None}}],
        [{"or": None, "not": None}, {"or": 1}, {}],
    ),
    ({"type": "object", "properties": {"a": True, "b": True}, "minProperties": 2}, [{"a": 1, "b": 1}], [{"a": 1}]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[compact(case[0])[:70] for case in CASES])
def test_less_than_is_valid_is_admitted_and_nothing_else(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    judge = jsonschema.Draft202012Validator(schema)
    assert [value for value in valid if not judge.is_valid(value)] == []
    assert [value for value in invalid if judge.is_valid(value)] == []
    for value in valid:
        assert admits(schema, value), value
    for value in invalid:
        assert not admits(schema, value), value


@pytest.mark.parametrize("schema", [case[0] for case in CASES], ids=[compact(case[0])[:70] for case in CASES])
def test_every_answer_is_valid(schema: Any) -> None:
    compiled = GUIDANCE.json(canonical(schema))
    judge = jsonschema.Draft202012Validator(schema)
    for text in walks((compiled.start() for _ in range(10)), random.Random(1)):
        judge.validate(json.loads(text))


NINTH = [0] * 8 + [1]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"oneOf": [{"type": "array", "contains": {"const": 1}}, {"enum": [NINTH]}]}, NINTH),
        ({"not": {"oneOf": [{"required": [n], "properties": {n: TUPLE}} for n in ("a", "b")]}}, {"a": [1], "b": ["x"]}),
        (
            {"not": {"type": "object", "properties": {"a": True, "b": True}, "minProperties": 2}},
            {"a": 1, "c": 1},
        ),
        (
            {
                "oneOf": [
                    {"not": {"items": {"type": "string"}}},
                    {"type": "array", "prefixItems": [{"type": "string"}] * 8, "minItems": 9},
                ]
            },
            [*"abcdefgh", 1],
        ),
        (
            {
                "oneOf": [
                    {
                        "oneOf": [
                            {"required": ["a"], "properties": {"a": {"type": "string"}}},
                            {"required": ["b"], "properties": {"b": TUPLE}},
                        ]
                    },
                    {"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "string"}}},
                ]
            },
            {"a": "s", "b": ["x"]},
        ),
    ],
)
def test_what_is_not_admitted_of_a_part_is_not_taken_for_invalid(schema: Any, value: Any) -> None:
    assert not jsonschema.Draft202012Validator(schema).is_valid(value)
    with contextlib.suppress(InvalidSchema):
        assert not admits(schema, value)
