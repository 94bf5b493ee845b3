"""`uniqueItems` over items that cannot be listed: nothing comes twice, and no answer is led into a dead end."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonschema
import pytest

from llm_local.errors import InvalidSchema
from llm_local.structured.around import CompiledAround
from llm_local.structured.calls import CallGrammars
from llm_local.structured.closing import Closing
from llm_local.structured.distinct import Distinct
from llm_local.structured.lark import Lark
from llm_local.structured.places import Places, has_unique_items
from llm_local.structured.schema import canonical
from llm_local.structured.spec import CallFormat
from llm_local.structured.tokens import Compiled, Tokens
from tests.examples import few
from tests.structured.test_closing import rambling
from tests.structured.test_json_schema import compact
from tests.structured.vocabulary import END, N_VOCAB, accepts, guidance, piece, walk

GUIDANCE = guidance()
TOKENS = Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END])


def distinct(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True, **more}


def around(compiled: Compiled, places: Places) -> CompiledAround[Distinct]:
    return CompiledAround(compiled, lambda inner: Distinct(inner, places, TOKENS))


def compiled(schema: Any) -> CompiledAround[Distinct]:
    found = canonical(schema)
    assert has_unique_items([found.root, *found.defs.values()])
    return around(GUIDANCE.json(found), Places([found]))


def start(schema: Any) -> Distinct:
    return compiled(schema).start()


PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 3}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, what it admits, what it does not
    (distinct({"type": "string"}), [[], ["a", "b"], ["a", "ab", "aб"]], [["a", "a"], ["a", "b", "a"]]),
    (distinct({"type": "integer"}), [[1, 2, 11]], [[1, 1], [10, 1, 10]]),
    (distinct({"type": "number"}), [[1, 1.5]], [[1, 1.0], [0.5, 0.5]]),
    (distinct({"type": "string", "maxLength": 1}, minItems=4), [["a", "b", "c", ""]], [["a", "b", "c", "a"]]),
    (distinct({"type": "integer", "minimum": 0, "maximum": 12}, minItems=9), [list(range(9))], [[1, *range(8)]]),
    (distinct({"enum": [f"город {n}" for n in range(12)]}, minItems=9), [[f"город {n}" for n in range(9)]],
     [["город 1"] * 9]),
    (distinct(PAIR, minItems=4), [[{"a": a, "b": b} for a in (1, 2) for b in "xy"]], [[{"a": 1, "b": "x"}] * 4]),
    (distinct(distinct({"type": "integer", "minimum": 0, "maximum": 3}, minItems=2, maxItems=2), minItems=3),
     [[[0, 1], [1, 0], [2, 3]]], [[[0, 1], [0, 1], [2, 3]], [[0, 0], [1, 0], [2, 3]]]),
    (distinct({"type": "string", "pattern": "^[ab]c?$"}, minItems=4), [["a", "ac", "b", "bc"]], [["a", "b", "a", "b"]]),
    (distinct({"type": "integer", "minimum": 1, "exclusiveMinimum": 0, "maximum": 3}, minItems=3), [[3, 1, 2]], [[1]]),
    (distinct({"type": "integer", "exclusiveMinimum": 0.5, "exclusiveMaximum": 4}, minItems=3), [[3, 1, 2]], [[1, 2]]),
    (distinct({"type": "string", "pattern": "^a{1,1200}$"}, minItems=3), [["a", "aa", "aaa"]], [["a", "aa", "a"]]),
    (distinct({"type": "string", "pattern": "^a+b$"}, minItems=2), [["ab", "aab"]], [["ab", "ab"]]),
    (distinct({"type": "string", "format": "date"}), [["2024-01-01", "2024-01-02"]], [["2024-01-01"] * 2]),
    ({"type": "object", "properties": {"tags": distinct({"type": "string", "maxLength": 2}), "free": {"type": "array"}},
      "required": ["tags", "free"]}, [{"tags": ["a"], "free": [1, 1]}], [{"tags": ["a", "a"], "free": []}]),
    ({"type": "array", "items": {"$ref": "#/$defs/s"}, "$defs": {"s": distinct({"type": "integer"})}},
     [[[1], [1]]], [[[1, 1]]]),
    ({"anyOf": [{"type": "null"}, distinct({"type": ["boolean", "null"]}, minItems=1, maxItems=9), {"type": "string"}]},
     [[True, False], "a"], [[True, True]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "uniqueItems": True, "items": {"type":
      "integer"}}, [[1, "1", 2]], [[1, "1", 1]]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), SCHEMAS, ids=[compact(case[0])[:60] for case in SCHEMAS])
def test_items_differ(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    one = compiled(schema)
    for value in valid:
        assert accepts(one.start(), compact(value)), value
    for value in invalid:
        assert not accepts(one.start(), compact(value)), value


@pytest.mark.parametrize("schema", [case[0] for case in SCHEMAS], ids=[compact(case[0])[:60] for case in SCHEMAS])
def test_no_random_answer_repeats_an_item_or_finds_no_way_on(schema: Any) -> None:
    one, ended = compiled(schema), 0
    for seed in range(few(8, 4)):
        text = walk(one.start(), random.Random(seed), 200)
        if text is not None:
            ended += 1
            jsonschema.validate(json.loads(text), schema)
    assert ended > 1


def led(constraint: Distinct, wanted: bytes) -> str:
    """What a model that wants to say this is led to say; where it is refused, it takes the first other way."""
    out = b""
    while not constraint.must_end:
        forced = list(constraint.forced())
        if not forced:
            bytes_ = wanted[len(out) : len(out) + 1] + b'"]}'
            token = next((one for one in (TOKENS.byte_tokens[b] for b in bytes_) if constraint.allows(one)), None)
            if token is None:
                token = next(one for one in map(int, constraint.allowed().nonzero()[0]) if constraint.allows(one))
            forced = [token]
        for token in forced:
            constraint.accept(token)
            out += piece(token)
    return out.decode()


def test_a_model_that_repeats_itself_is_led_on() -> None:
    """It wants to say the same item again and again, and is refused the same way for every token that begins so."""
    schema = distinct({"type": "string", "maxLength": 3}, minItems=5, maxItems=5)
    items = json.loads(led(start(schema), b'["a","a","a","a","a"]'))
    assert len(set(items)) == len(items) == 5


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (distinct({"type": "string", "maxLength": 1}, minItems=2), r'["\n","\u000a"]'),
        (distinct({"type": "string", "maxLength": 2}, minItems=2), r'["\u0009x","\tx"]'),
        (distinct({"type": "string", "pattern": "^[ab]$"}, minItems=2, maxItems=2), r'["a","\u0061"]'),
        (distinct({"type": "object", "additionalProperties": {"const": 1}, "minProperties": 1}, minItems=2),
         '[{"a":1,"b":1},{"b":1,"a":1}]'),
    ],
)  # fmt: skip
def test_what_is_equal_but_written_differently_leads_to_no_dead_end(schema: Any, wanted: str) -> None:
    items = json.loads(led(start(schema), wanted.encode()))
    jsonschema.validate(items, schema)
    assert items[0] == json.loads(wanted)[0]


def test_arguments_are_watched_by_the_schema_of_their_own_function() -> None:
    """`loose` may say an item twice, `strict` may not; in whichever call of an answer they stand."""
    tags = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}
    tools = {
        name: (canonical({"type": "object", "properties": {"tags": {**tags, "uniqueItems": unique}},
                          "required": ["tags"], "additionalProperties": False}), "tools.0")
        for name, unique in (("loose", False), ("strict", True))
    }  # fmt: skip
    form = CallFormat("<tool_call>", "</tool_call>", "\n", "arguments", "\n")
    grammars = CallGrammars(Lark(GUIDANCE), tools, form, parallel=True)
    arguments = {name: schema for name, (schema, _) in tools.items()}

    def call(name: str, items: str) -> str:
        return f'<tool_call>\n{{"name": "{name}", "arguments": {{"tags": {items}}}}}\n</tool_call>'

    same, other = '["a", "a"]', '["a", "b"]'
    required = around(grammars.required(), Places([], arguments))
    for text, good in (
        (call("loose", same), True), (call("strict", other), True), (call("strict", same), False),
        (f"{call('loose', same)}\n{call('strict', same)}", False),
        (f"{call('strict', other)}\n{call('loose', same)}", True),
    ):  # fmt: skip
        assert accepts(required.start(), text) == good, text
    for name, good in (("loose", True), ("strict", False)):
        opened = around(grammars.opened()[name], Places([], arguments, name))
        more = f'; {{"name": "loose", "arguments": {{"tags": {same}}}}}'
        assert accepts(opened.start(), f', "arguments": {{"tags": {same}}}}}{more}') == good
        assert accepts(opened.start(), f', "arguments": {{"tags": {other}}}}}{more}')


def test_what_any_branch_keeps_distinct_is_kept_distinct_and_still_ends() -> None:
    """Which branch an answer takes is not known while it is written: that is stricter than the schema."""
    schema = {"anyOf": [distinct({"type": "integer"}), {"type": "array", "items": {"type": "integer"}, "minItems": 2}]}
    assert accepts(start(schema), "[1,2]")
    assert not accepts(start(schema), "[1,1]")
    apart = {"anyOf": [distinct({"type": "integer"}), {"type": "string"}, {"type": "object"}]}
    for text, good in (("[1,1]", False), ("[1]", True), ('"a"', True), ('{"a":[1,1]}', True)):
        assert accepts(start(apart), text) == good


def test_both_schemas_of_an_all_of_hold() -> None:
    schema = {"allOf": [distinct({"type": "integer"}), {"type": "array", "minItems": 2}]}
    assert accepts(start(schema), "[1,2]")
    assert not accepts(start(schema), "[1,1]")


def test_too_few_values_are_refused_at_once() -> None:
    for items in (
        {"enum": ["a", "b"]}, {"type": "string", "pattern": "^(да|нет)$"}, {"type": "string", "maxLength": 0},
        {"type": "integer", "minimum": 0, "exclusiveMaximum": 2}, {"anyOf": [{"type": "null"}, {"const": 5}]},
    ):  # fmt: skip
        with pytest.raises(InvalidSchema, match="no 3 distinct items"):
            canonical(distinct(items, minItems=3))


def test_it_works_inside_closing() -> None:
    schema = distinct({"type": "string"}, minItems=3)
    for seed in range(5):
        text, ended = rambling(Closing(start(schema), TOKENS, 40), random.Random(seed), 40)
        assert ended
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "item",
    [
        pytest.param("1" * 4301, id="digits", marks=pytest.mark.slow),
        pytest.param("[" * 200 + "]" * 200, id="brackets", marks=pytest.mark.slow),
        pytest.param('"' + "x" * 1500 + '"', id="text"),
    ],
)
def test_items_of_any_length_are_compared(item: str) -> None:
    constraint = start({"type": "array", "uniqueItems": True, "items": {}})
    assert not accepts(constraint, f"[{item},{item}]")
    assert accepts(start({"type": "array", "uniqueItems": True}), f"[{item},1]")


def test_a_property_may_be_called_anything() -> None:
    schema = {"type": "object", "properties": {"enum": distinct({"type": "number"})}, "required": ["enum"]}
    assert accepts(start(schema), '{"enum":[1,2]}')
    assert not accepts(start(schema), '{"enum":[1,1]}')


def test_definitions_that_refer_to_two_others_each_are_followed_once() -> None:
    defs = {
        f"{x}{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/b{n + 1}"}]}
        for n in range(30)
        for x in "ab"
    }
    defs |= {"a30": {"type": "object", "properties": {}}, "b30": {"type": "null"}}
    places = Places([canonical({"properties": {"u": distinct({}), "x": {"$ref": "#/$defs/a0"}}, "$defs": defs})])
    assert places.of_property(places.of_value(0), "x")


def test_another_way_on_is_found_quickly_where_some_lead_nowhere_for_long() -> None:
    """`1E` is 1 with any number of zeros behind it; the engine must not stand still while all of them are tried."""
    constraint = start(distinct({"type": "number"}, minItems=2))
    assert constraint.feed(b"[1,1.5,1")
    began = time.process_time()
    assert constraint.allows(ord("E"))
    constraint.accept(ord("E"))
    assert not any(constraint.allows(byte) for byte in b",]")
    for byte in b"000":
        assert constraint.allows(byte)
        constraint.accept(byte)
    assert not constraint.allows(ord("]"))
    assert time.process_time() - began < 0.2
