"""Names of properties: one spelling, and nothing that readers of regular expressions differ about."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llm_local.engine.constraint import ConstraintFailed
from llm_local.errors import InvalidSchema
from llm_local.structured.around import CompiledAround
from llm_local.structured.keys import Keys, can_be_written, check_names, has_other_names
from llm_local.structured.schema import canonical
from tests.examples import few
from tests.structured.test_json_schema import GUIDANCE, TOKENS, compact
from tests.structured.vocabulary import accepts, tokens_of, walks

INTEGER = {"type": "integer"}


def compiled(schema: Any) -> CompiledAround[Keys]:
    return CompiledAround(GUIDANCE.json(canonical(schema)), lambda inner: Keys(inner, TOKENS))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"properties": {"id": INTEGER}}, r'{"\u0069d":"x"}'),
        ({"properties": {"id": INTEGER}, "required": ["id"]}, r'{"id":1,"\u0069d":"x"}'),
        ({"properties": {"a": {"properties": {"id": INTEGER}}}}, r'{"a":{"x":[1,{}],"i\u0064":"x"}}'),
        ({"patternProperties": {"^[а-я]+$": INTEGER}}, r'{"\u0430":"x"}'),
        ({"patternProperties": {"^a$": INTEGER}}, '{"a\\n":"x"}'),
        ({"patternProperties": {"^a$": INTEGER}}, '{"a\\u000a":"x"}'),
        ({"patternProperties": {"^a$": INTEGER}, "additionalProperties": {"type": "string"}}, '{"a\\n":"x"}'),
        ({"patternProperties": {"^.$": INTEGER}, "additionalProperties": {"type": "string"}}, '{"\\r":1}'),
        ({"patternProperties": {"^.$": INTEGER}, "additionalProperties": {"type": "string"}}, '{"\u2028":1}'),
        ({"items": {"properties": {"id": INTEGER}}}, r'[{"id":1},{"\\u":"\u0007","\u0069d":"x"}]'),
    ],
)
def test_a_name_is_spelled_in_one_way(schema: Any, text: str) -> None:
    assert not accepts(compiled(schema).start(), text)
    assert accepts(GUIDANCE.json(canonical(schema)).start(), text), "llguidance sees to it: this is not needed any more"


@pytest.mark.parametrize(
    "value",
    [
        {"id": 1, "x\ty": "\u2028\n", "tab\t": '"\\', "é\u2027": {"a": "\r"}, "e\u20ac": ["\n", "u\\n"]},
        {"x": ["\n", {"y\t.": "\n"}], "\\u0069d": 'a\\"b', "\b\\": "", 'q"n': "\x1f"},
        [{"id": 2}, "\n", {"a\\n": "\n"}],
    ],
)
def test_other_names_and_all_values_are_as_before(value: Any) -> None:
    schema = {"properties": {"id": INTEGER}, "additionalProperties": True}
    assert accepts(compiled(schema).start(), compact(value))


def test_whatever_comes_back_has_each_declared_name_once() -> None:
    schema = {
        "type": "object",
        "properties": {"a": INTEGER},
        "patternProperties": {"^b+$": INTEGER},
        "maxProperties": 4,
    }
    made, choose = compiled(schema), random.Random(1)
    for text in walks((made.start() for _ in range(few(200))), choose):
        for name, value in json.loads(text, object_pairs_hook=list):
            assert can_be_written(name)
            assert not (name == "a" or set(name) == {"b"}) or isinstance(value, int), text


@pytest.mark.parametrize(
    ("schema", "begun"),
    [
        # What follows is forced: these tokens are not asked about.
        (
            {"patternProperties": {"^[^/]{2}$": INTEGER, "^a$": {"type": "string"}}, "additionalProperties": False},
            '{"a',
        ),
        ({"propertyNames": {"maxLength": 4}}, '{"abc'),
        ({"patternProperties": {r"^\w\s$": {"const": "abc"}}, "additionalProperties": False}, '{"a'),
    ],
)
def test_whatever_follows_a_name_can(schema: Any, begun: str) -> None:
    """A newline as the last character that a pattern allows could be followed by nothing but what is refused."""
    made = compiled({"type": "object", **schema})
    for char in map(chr, range(256)):
        constraint = made.start()
        text = json.dumps(begun[2:] + char, ensure_ascii=False)
        if all(
            constraint.allows(token) and constraint.accept(token) is None
            for token in tokens_of(f"{{{text[:-1]}".encode())
        ):
            assert constraint.allowed().any(), repr(char)
            for token in constraint.forced():
                constraint.accept(token)


def test_a_name_that_can_only_go_on_with_an_end_of_a_line_fails() -> None:
    made = compiled(
        {"type": "object", "patternProperties": {r"^a\n$": True}, "additionalProperties": False, "minProperties": 1}
    )
    constraint = made.start()
    with pytest.raises(ConstraintFailed):  # noqa: PT012
        for token in tokens_of(b'{"a'):
            if constraint.allows(token):
                constraint.accept(token)
        for token in constraint.forced():
            constraint.accept(token)
        constraint.accept(tokens_of(b"n")[0])


def test_a_copy_is_in_the_same_place() -> None:
    constraint = compiled({"properties": {"id": INTEGER}}).start()
    assert constraint.feed(b'{"a\\')
    copy = constraint.copy()
    assert copy.feed(b'tb":1,"c')
    assert not constraint.feed(b'n":')


@pytest.mark.parametrize("name", ["a\r", "\x01", "a\nb", "\u2028b"])
def test_declared_names_that_are_never_written_are_refused(name: str) -> None:
    for schema in ({"properties": {name: True}}, {"required": [name]}, {"enum": [[{name: 1}]]}):
        with pytest.raises(InvalidSchema, match="of a property cannot be enforced"):
            check_names([{"items": canonical(schema).root}])


def test_only_objects_with_other_names_need_it() -> None:
    closed = {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": False}
    assert not has_other_names([True, {"type": "object"}, {"anyOf": [closed]}])
    assert has_other_names([{"items": {"properties": {"a": True}}}])
    assert has_other_names([{**closed, "patternProperties": {"^b": True}}])
