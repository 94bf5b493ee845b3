"""Grammars of calls: the same in both languages, whatever the dialect, and exact about the arguments."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.errors import InvalidSchema
from llm_local.structured.calls import MARKED, CallGrammars, CallLanguage
from llm_local.structured.lark import Lark
from llm_local.structured.native import NativeCalls, NativeEngine
from llm_local.structured.schema import canonical
from llm_local.structured.spec import CallFormat
from tests.examples import examples, rest_is_slow
from tests.structured.native import FakeNative
from tests.structured.test_json_schema import DOCUMENTS
from tests.structured.vocabulary import accepts, guidance, walks

HERMES = CallFormat("<tool_call>", "</tool_call>", "\n", "arguments", "\n")
LLAMA = CallFormat("", "", "", "parameters", "; ")
CITY: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Омск", "Тверь"]}, "tags": {"type": "array", "items": {"type": "string",
                   "maxLength": 2}, "maxItems": 2}},
    "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
NOTHING: Any = {"type": "object", "properties": {}, "additionalProperties": False}
ANSWER: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
GUIDANCE = guidance()


def language(name: str) -> CallLanguage:
    if name == "lark":
        return Lark(GUIDANCE)
    return NativeCalls(NativeEngine(FakeNative(GUIDANCE), compact=True))


def grammars(name: str, form: CallFormat = HERMES, *, parallel: bool = True) -> CallGrammars:
    tools = {"weather": (canonical(CITY), "tools.0"), "now": (canonical(NOTHING), "tools.1")}
    return CallGrammars(language(name), tools, form, parallel=parallel)


def admits(compiled: Any, text: str) -> bool:
    return accepts(compiled.start(), text)


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Омск", "tags": ["a", "б"]}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
BARE = '{"name": "weather", "parameters": {"city": "Тверь"}}'

both = pytest.mark.parametrize("name", ["lark", "gbnf"])


@both
def test_certain_calls_are_written_as_models_were_trained_to(name: str) -> None:
    compiled = grammars(name).required()
    for text in (CALL, NOW, f"{CALL}\n{NOW}\n{CALL}", f"{CALL}\n"):
        assert admits(compiled, text), text
    for text in ("", CALL.replace("Омск", "Киев"), CALL.replace('"б"', '"бвг"'), CALL.replace(", ", ","), CALL + NOW,
                 CALL.replace("weather", "nobody"), CALL.removesuffix("</tool_call>"), "x" + CALL):  # fmt: skip
        assert not admits(compiled, text), text


@both
def test_calls_without_marks_have_a_separator(name: str) -> None:
    compiled = grammars(name, LLAMA).required()
    assert admits(compiled, BARE)
    assert admits(compiled, f"{BARE}; {BARE}")
    assert not admits(compiled, BARE + BARE)
    assert not admits(compiled, f"{BARE}; ")


@both
def test_a_single_call_is_one(name: str) -> None:
    one = grammars(name, parallel=False)
    assert admits(one.required(), CALL)
    assert not admits(one.required(), f"{CALL}\n{NOW}")
    opened = one.opened()
    assert admits(opened[MARKED], CALL.removeprefix("<tool_call>"))
    assert not admits(opened[MARKED], f"{CALL}\n{NOW}".removeprefix("<tool_call>"))
    assert admits(opened["now"], ', "arguments": {}}')
    assert not admits(opened["now"], ', "arguments": {}}; {"name": "now", "arguments": {}}')


@both
def test_json_may_stand_for_calls(name: str) -> None:
    compiled = grammars(name).required((canonical(ANSWER), "response_format"))
    assert admits(compiled, '{"ok":true}')
    assert admits(compiled, CALL)
    assert not admits(compiled, '{"ok":1}')
    assert not admits(compiled, CALL + '{"ok":true}')


@both
def test_what_follows_an_opening(name: str) -> None:
    opened = grammars(name).opened()
    assert admits(opened[MARKED], f"{CALL}\n{NOW}".removeprefix("<tool_call>"))
    weather = opened["weather"]
    for text in (
        ', "arguments": {"city": "Омск"}}',
        ',\n  "arguments": {\n    "city" : "Омск",\n    "tags": [ ]\n  }\n}\n```',
        ',"parameters":{"city":"Омск"}}; {"name": "now", "parameters": { }}',
        ', "arguments": {"city": "Омск"}}```\n```json\n{ "name":"now", "arguments": {}}```',
    ):
        assert admits(weather, text), text
    for text in (
        ', "arguments": {"city": "Киев"}}',
        ', "arguments": {}}',
        ', "arguments": {"city": "Омск"}',
        ', "arguments": {"city": "Омск"}} and more',
        ', "other": {"city": "Омск"}}',
        ', "arguments": {"city": "Омск"}}; {"name": "now", "parameters": {"x": 1}}',
    ):
        assert not admits(weather, text), text


@pytest.mark.parametrize("name", rest_is_slow(["gbnf", "lark"]))
def test_the_calls_of_many_tools_are_compiled_in_time(name: str) -> None:
    tools: dict[str, Any] = {}
    for n in range(64):
        properties: Any = {f"p{n}_{at}": {"type": "string"} if at % 3 else {"enum": ["a", "b"]} for at in range(8)}
        schema = {"type": "object", "properties": properties, "required": [f"p{n}_0"]}
        tools[f"tool_{n}"] = (canonical(schema), f"tools.{n}")
    began = time.process_time()
    opened = CallGrammars(language(name), tools, HERMES, parallel=True).opened()
    assert time.process_time() - began < 2
    assert admits(opened["tool_6"], ', "arguments": {"p6_0": "b"}}')
    assert not admits(opened["tool_6"], ', "arguments": {"p60_0": "b"}}')
    assert admits(opened["tool_63"], ',"arguments":{"p63_0": "a"}};{"name": "tool_1", "arguments": {"p1_0": "a"}}')


def test_a_mark_is_a_token_where_the_vocabulary_has_one() -> None:
    class Knowing(FakeNative):
        def is_token(self, text: str) -> bool:
            return text == "<tool_call>"

        def compile(self, gbnf: str, named: frozenset[str]) -> Any:
            self.named, self.last = named, gbnf
            return GUIDANCE.choice(["a"])

    native = Knowing(GUIDANCE)
    tools = {"now": (canonical(NOTHING), "tools.0")}
    CallGrammars(NativeCalls(NativeEngine(native, compact=True)), tools, HERMES, parallel=False).required()
    assert native.named == {"<tool_call>"}
    assert "<tool_call> marked" in native.last
    assert '"</tool_call>"' in native.last


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"n": {"type": "integer", "minimum": 1}}}, "#/properties/n/minimum"),
        ({"properties": {}, "patternProperties": {"^a": {}}}, "#/patternProperties"),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, "#/allOf"),
    ],
)
def test_arguments_that_gbnf_would_loosen_are_refused_by_place(schema: Any, place: str) -> None:
    tools = {"now": (canonical(NOTHING), "tools.0"), "f": (canonical({"type": "object", **schema}), "tools.1")}
    for compile_ in ("required", "opened"):
        with pytest.raises(InvalidSchema) as caught:
            getattr(CallGrammars(language("gbnf"), tools, HERMES, parallel=True), compile_)()
        assert caught.value.message.startswith(place)
        assert caught.value.param == "tools.1"


@given(document=DOCUMENTS, seed=st.integers(0, 2**32))
@examples(40)
def test_arguments_that_gbnf_lets_through_are_valid_in_any_spacing(document: Any, seed: int) -> None:
    inner = {key: value for key, value in document.items() if key != "$defs"}
    schema = {"type": "object", "properties": {"v": inner}, "required": ["v"], "$defs": document["$defs"]}
    try:
        calls = CallGrammars(language("gbnf"), {"f": (canonical(schema), "tools.0")}, HERMES, parallel=False)
        made = {'<tool_call>\n{"name": "f", "arguments": ': calls.required(), ', "arguments": ': calls.opened()["f"]}
    except InvalidSchema:
        return
    judge = jsonschema.Draft202012Validator(schema)
    for begins, compiled in made.items():
        constraint: Any = compiled.start()
        assert constraint.feed(begins.encode())
        for text in walks([constraint.copy() for _ in range(2)], random.Random(seed)):
            arguments, end = json.JSONDecoder().raw_decode(text.lstrip())
            assert text.lstrip()[end:].lstrip().startswith("}")
            judge.validate(arguments)
