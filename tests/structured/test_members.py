"""What LlamaGrammar admits of objects, tuples and values: all that is valid, and nothing else.

The converter is llama-cpp-python's own; its grammars run on llguidance here, and on llama.cpp in tests/model.
"""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.errors import InvalidSchema
from llm_local.structured.native import NativeEngine
from llm_local.structured.schema import canonical
from tests.examples import examples
from tests.structured.native import FakeNative
from tests.structured.test_json_schema import DOCUMENTS, GUIDANCE, compact
from tests.structured.vocabulary import accepts, walks

NATIVE = NativeEngine(FakeNative(GUIDANCE), compact=True)
FLEXIBLE = NativeEngine(FakeNative(GUIDANCE), compact=False)
PAIR = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}]}

CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, what it admits, what it does not
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}},
     [{}, {"a": 1}, {"b": None}, {"a": 1, "b": None, "c": "x", "d": {}}, {"": 1}, {"aa": "x"}, {"A": "x"}],
     [{"a": "x"}, {"c": 1, "a": "x"}, {"b": 1}, 5]),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"],
      "additionalProperties": {"type": "integer"}},
     [{"b": 2}, {"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 3, "d": 9, "bb": 8}],
     [{}, {"a": 1}, {"b": 2, "d": "x"}, {"b": 3}]),
    ({"type": "object", "properties": {"a": True, "no": False}}, [{"a": 1}, {"n": 1}, {"not": 1}], [{"no": 1}]),
    ({"type": "object", "required": ["x"], "properties": {}, "additionalProperties": {"type": "null"}},
     [{"x": None}, {"x": None, "y": None}], [{}, {"x": 1}, {"y": None}]),
    ({"type": "object", "properties": {}, "additionalProperties": False}, [{}], [{"a": 1}]),
    ({"type": "object",
      "properties": {'q"q': {"const": 1}, "c\\d": {"const": 2}, "имя": {"const": 3}, "a/b": {"const": 4}}},
     [{'q"q': 1, "c\\d": 2, "имя": 3, "a/b": 4}, {'q"': 5, "c/d": 5, "a/": 5, "им": 5, "c\nd": 1}],
     [{'q"q': 5}, {"c\\d": 5}, {"имя": 5}, {"a/b": 5}]),
    (PAIR, [[], [1], [1, True], [1, True, "x"]], [["x"], [1, 2]]),
    ({**PAIR, "items": False}, [[], [1], [1, True]], [[1, True, 1]]),
    ({**PAIR, "minItems": 1, "maxItems": 3}, [[1], [1, True, None]], [[], [1, True, 1, 1]]),
    ({**PAIR, "minItems": 4, "items": {"type": "null"}}, [[1, True, None, None]],
     [[1, True, None], [1, True, None, 1]]),
    ({**PAIR, "maxItems": 1}, [[], [1]], [[1, True]]),
    ({"enum": [{"a": [1, {}]}, [], "x", [[]], None]}, [{"a": [1, {}]}, [], "x", [[]], None],
     [{"a": [1]}, [[], []], {}]),
    ({"enum": ['a"b', "a\\b", "a\nb", "\x01", "é", "a::=b"]}, ['a"b', "a\\b", "a\nb", "\x01", "é", "a::=b"], ["a", ""]),
    ({"type": "object", "properties": {"\x01": {"const": 1}}, "required": ["\x01"]}, [{"\x01": 1}], [{"\x01": 2}]),
    ({"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}}}},
     [{}, {"next": {}}, {"next": {"next": {"x": 1}}}], [{"next": 1}, {"next": {"next": 1}}]),
]  # fmt: skip


def admits(schema: Any, text: str, engine: NativeEngine = NATIVE) -> bool:
    return accepts(engine.json(canonical(schema)).start(), text)


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[compact(case[0])[:60] for case in CASES])
def test_llama_grammar_admits_what_is_valid_and_nothing_else(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    judge = jsonschema.Draft202012Validator(schema)
    assert all(map(judge.is_valid, valid))
    assert not any(map(judge.is_valid, invalid))
    assert [value for value in valid if not admits(schema, compact(value))] == []
    assert [value for value in invalid if admits(schema, compact(value))] == []


def test_another_key_is_not_a_declared_one_in_another_spelling() -> None:
    schema = {"type": "object", "properties": {"a/b": {"const": 1}, 'c"': {"const": 1}}}
    assert admits(schema, r'{"a\/c":2}')
    assert not admits(schema, r'{"a\/b":2}')
    assert not admits(schema, r'{"c\"":2}')
    assert not admits(schema, r'{"a\u002fb":2}')


def test_no_control_character_of_a_schema_is_written_as_it_is() -> None:
    for schema, text in (
        ({"enum": ["\x01"]}, '"\x01"'),
        ({"properties": {"\x01": True}, "type": "object"}, '{"\x01":1}'),
    ):
        assert not admits(schema, text)


def test_whitespace_stands_between_all_parts_or_none() -> None:
    schema = {"type": "object", "properties": {"a": PAIR, "b": {"enum": [[1, 2]]}}}
    spaced = '{ "a" : [ 1 , true ] , "b" : [ 1 , 2 ] , "c" : 1 }'
    assert admits(schema, spaced, FLEXIBLE)
    assert not admits(schema, spaced)
    assert admits(schema, spaced.replace(" ", ""))


def test_an_object_may_have_many_optional_properties() -> None:
    properties = {f"property{n}": {"const": n} for n in range(40)}
    assert admits({"type": "object", "properties": properties}, '{"property3":3,"property39":39,"other":1}')


def test_a_name_without_end_is_refused_and_no_fault_of_the_server() -> None:
    with pytest.raises(InvalidSchema):
        NATIVE.json(canonical({"type": "object", "properties": {"a" * 3000: True}}))


@given(document=DOCUMENTS, seed=st.integers(0, 2**32))
@examples(100)
def test_whatever_llama_grammar_lets_through_is_valid(document: Any, seed: int) -> None:
    try:
        compiled = NATIVE.json(canonical(document))
    except InvalidSchema:
        return
    judge = jsonschema.Draft202012Validator(document, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for text in walks((compiled.start() for _ in range(4)), random.Random(seed)):
        with contextlib.suppress(RecursionError):
            judge.validate(json.loads(text))
