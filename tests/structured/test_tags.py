"""`oneOf` of objects that one property tells apart: discriminated unions, as Pydantic and OpenAPI write them."""

from __future__ import annotations

import json
import random
import time
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from llm_local.structured.schema import canonical
from tests.examples import rest_is_slow
from tests.structured.test_json_schema import GUIDANCE, admits, check_admits, compact
from tests.structured.vocabulary import walks


class Number(BaseModel):
    kind: Literal["number"]
    value: float


class Sum(BaseModel):
    kind: Literal["sum"]
    left: Term
    right: Term


Term = Annotated[Number | Sum, Field(discriminator="kind")]


class Calculation(BaseModel):
    term: Term


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


@pytest.mark.parametrize("model", [Calculation, Owner])
def test_a_discriminated_union_is_served_and_read_back(model: type[BaseModel]) -> None:
    """Also where it contains itself, and where tags have defaults: Pydantic reads no answer without a tag."""
    schema = model.model_json_schema()
    compiled = GUIDANCE.json(canonical(schema))
    answers = walks((compiled.start() for _ in range(40)), random.Random(1))
    assert answers
    for answer in answers:
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer))
        model.model_validate_json(answer)


def test_terms_of_a_recursive_union_are_all_admitted() -> None:
    one: Any = {"kind": "number", "value": 1}
    two: Any = {"kind": "sum", "left": one, "right": {"kind": "sum", "left": one, "right": one}}
    schema = Calculation.model_json_schema()
    assert admits(schema, {"term": two})
    assert not admits(schema, {"term": {**two, "right": {"kind": "sum"}}})
    assert not admits(schema, {"term": {**one, "left": 1, "kind": "sum"}})


ANIMAL = {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        # A tag that may be left out, and nothing says that it is one: without it both may match.
        ({"oneOf": [{"properties": {"k": {"const": "a"}, "x": {"pattern": "^x"}}},
                    {"properties": {"k": {"enum": ["b", "c"]}, "x": {"pattern": "y$"}}}]},
         [{"k": "a", "x": "x"}, {"k": "c"}], [{}, {"x": "xy"}, {"k": "d"}, 5]),
        # OpenAPI: what all animals have, and what one of them has besides.
        ({"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "discriminator": {"propertyName": "kind"},
          "$defs": {"animal": ANIMAL,
                    "cat": {"allOf": [{"$ref": "#/$defs/animal"}, {"properties": {"kind": {"const": "cat"}}}]},
                    "dog": {"allOf": [{"$ref": "#/$defs/animal"}, {"properties": {"kind": {"$ref": "#/$defs/dogs"}}}]},
                    "dogs": {"enum": ["dog", "wolf"]}}},
         [{"kind": "cat"}, {"kind": "wolf"}], [{"kind": "fox"}, {}]),
        # Values that meet tell nothing apart: what both admit is left out.
        ({"oneOf": [{"type": "object", "properties": {"k": {"enum": [1, 2]}}, "required": ["k"]},
                    {"type": "object", "properties": {"k": {"enum": [2.0, 3]}}, "required": ["k"]}]},
         [{"k": 1}, {"k": 3}], [{"k": 2}, {}]),
        ({"oneOf": [{"type": "object", "properties": {"k": {"const": 1}}},
                    {"type": "object", "properties": {"k": {"const": True}}}],
          "discriminator": {"propertyName": "k"}}, [{"k": 1}, {"k": True}], [{}, {"k": False}]),
    ],
    ids=lambda value: compact(value)[:60],
)  # fmt: skip
def test_what_a_tag_tells_apart(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    check_admits(schema, valid, invalid)


def test_branches_of_a_recursive_union_that_have_types_of_their_own_exclude_each_other() -> None:
    schema = {
        "$ref": "#/$defs/list",
        "$defs": {
            "list": {"type": "array", "items": {"oneOf": [{"$ref": "#/$defs/list"}, {"type": ["integer", "null"]}]}}
        },
    }
    assert admits(schema, [1, [None, []]])
    assert not admits(schema, [1.5])


REFERENCE = {"type": "object", "required": ["$ref"], "patternProperties": {r"^\$ref$": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        # One branch forbids what another one needs, and the third one has a type of its own.
        ({"type": "object", "properties": {"of": {"oneOf": [{"$ref": "#"}, REFERENCE, {"type": "boolean"}]}},
          "patternProperties": {"^x-": {}}, "additionalProperties": False},
         [{"of": {"$ref": "a"}}, {"of": {"of": True}}], [{"of": {"$ref": 1}}, {"of": {"of": 1}}, {"of": {"y": 1}}]),
        # What one branch needs has another type in the other one.
        ({"type": "object", "patternProperties": {"^x-": {}},
          "additionalProperties": {"type": "object", "properties": {"of": {"oneOf": [{"$ref": "#"}, REFERENCE]}}}},
         [{"a": {"of": {"$ref": "a"}}}, {"a": {"of": {"b": {"of": {}}}}}, {"a": {"of": {"$ref": {"of": {}}}}}],
         [{"a": {"of": {"$ref": 1}}}, {"a": {"of": {"b": 1}}}]),
    ],
    ids=["forbidden", "another type"],
)  # fmt: skip
def test_branches_of_a_recursive_union_are_told_apart_in_pairs(
    schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    """As in OpenAPI's own schema: a schema, a reference, or a boolean."""
    check_admits(schema, valid, invalid)


@pytest.mark.parametrize(("union", "n_kinds"), rest_is_slow([("oneOf", 12), ("oneOf", 30), ("anyOf", 30)]))
def test_a_syntax_tree_of_many_kinds_is_translated_quickly(union: str, n_kinds: int) -> None:
    """Each property of each node may be any node: looking at all of them in each other would take minutes."""
    names = [f"N{n}" for n in range(n_kinds)]
    anything = {union: [{"$ref": f"#/$defs/{name}"} for name in names]}
    nodes = {
        name: {
            "type": "object",
            "properties": {
                "kind": {"const": name},
                **{f"f{n}": anything for n in range(5)},
                "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            },
            "required": ["kind"],
            "additionalProperties": False,
        }
        for name in names
    }
    began = time.thread_time()
    schema = {**anything, "$defs": nodes}
    assert admits(schema, {"kind": "N1", "f4": {"kind": names[-1], "f0": {"kind": "N3"}}, "tags": ["a"]})
    assert time.thread_time() - began < 5


def test_a_schema_of_schemas_is_translated_quickly() -> None:
    """Its properties refer to itself in many ways, and some arrays are distinct: each place is looked at once."""
    began = time.thread_time()
    canonical(jsonschema.Draft4Validator.META_SCHEMA)
    assert time.thread_time() - began < 0.2
