"""Names of properties: patterns and lengths that all hold, and names that look like keywords."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import jsonschema
import pytest

from llm_local.errors import InvalidSchema
from llm_local.structured.joined_names import all_at_once
from llm_local.structured.keys import can_be_written
from llm_local.structured.schema import canonical
from tests.examples import rest_is_slow, seeds
from tests.structured.test_json_schema import GUIDANCE, admits, check_admits, compact

CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, what it admits, what it does not
    (
        {"propertyNames": {"minLength": 1, "maxLength": 10, "pattern": "^[a-z]+$"}, "type": "object"},
        [{"abc": "x"}, {"a": 1}, {}],
        [{"": "x"}, {"abcdefghijk": "x"}, {"A": "x"}],
    ),
    (
        {"propertyNames": {"pattern": "^[a-z][a-z_]*$", "not": {"pattern": "^(when|unless)$"}}},
        [{"abc": 1}, {"whenn": 1}],
        [{"when": 1}, {"_a": 1}],
    ),
    ({"propertyNames": {"anyOf": [{"const": ""}, {"pattern": "^x"}]}}, [{"": 1}, {"xa": 1}], [{"y": 1}]),
    ({"propertyNames": {"pattern": "^a", "maxLength": 0}}, [{}], [{"a": 1}]),
    (
        {"type": "object", "patternProperties": {"^(?!x-)": {"type": "integer"}}, "additionalProperties": False},
        [{"a-b": 1}],
        [{"x-a": "s"}, {"x-a": 1}, {"a": "x"}],
    ),
    ({"type": "object", "patternProperties": {r"^\w+$": {"type": "integer"}}}, [{"a": 1}, {"!": "x"}], [{"a": "x"}]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[compact(case[0])[:70] for case in CASES])
def test_names_satisfy_all_that_is_said_of_them(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    check_admits(schema, valid, invalid)


def test_a_name_that_only_some_readers_take_to_match_a_pattern_is_never_wrong() -> None:
    """For Python `é` is matched by `\\w`, for JavaScript it is not."""
    closed = {"type": "object", "patternProperties": {r"^\w+$": {"type": "integer"}}, "additionalProperties": False}
    open_ = {"type": "object", "patternProperties": {r"^\w+$": {"type": "integer"}}}
    assert not admits(closed, {"é": 1})
    assert not admits(open_, {"é": "x"})
    assert admits(open_, {"é": 1})


NAMES = ["a", "1", "a1", "aa", "é", "aé", "٣", "1٣", "a\n", "1\n", "é\n", "\n", "a\r", "\r", "a b", "a\x1cb", "-", ""]
PATTERNS = [
    [r"^a$"], [r"^\w+$"], [r"^\d+$"], [r"^.$"], [r"^a|1$"], [r"^[a1]{1,300}$"], [r"^a\sb$"], [r"^a$", r"^a.?$"],
    [r"^[a1]$", r"^1"], [r"^[a1]+$", r"1$"], [r"^a*$", r"^[a1]{2}$", r"1$"],
]  # fmt: skip
HARD = [[r"\d$"], [r"\w"], [r"^\W*$"], [r"^(?!a$)[a1]+$"], [r"^(?!\d)"], [r"^\d$", r"^[a1]"], [r"^\d$", r"^\w+$", r"1"]]
"""Of these, names beyond printable ASCII may be refused, and so may the schema be."""


SPACE = r"\t\n\x0b\x0c\r \xa0\ufeff\u2028\u2029"
IN_JAVASCRIPT = {"$": r"\Z", ".": r"[^\n\r\u2028\u2029]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]", r"\d": "[0-9]",
                 r"\s": f"[{SPACE}]", r"\S": f"[^{SPACE}]"}  # fmt: skip


def readings(patterns: Iterable[str], name: str) -> tuple[set[str], set[str]]:
    """The patterns that Python finds in a name, and those that JavaScript does."""

    def in_javascript(pattern: str) -> str:
        return re.sub(r"\\.|[$.]", lambda found: IN_JAVASCRIPT.get(found[0], found[0]), pattern)

    return {p for p in patterns if re.search(p, name)}, {p for p in patterns if re.search(in_javascript(p), name)}


@pytest.mark.parametrize("rest", [True, False, {"type": "string"}])
@pytest.mark.parametrize("patterns", rest_is_slow(PATTERNS + HARD, fast=3), ids=str)
def test_what_is_admitted_is_valid_for_each_reader_of_its_patterns(patterns: list[str], rest: Any) -> None:
    """Python finds `^\\w$` in `é`, and `^a$` before a last newline; JavaScript does not."""
    values: dict[str, Any] = dict(zip(patterns, [1, "x", None], strict=False))
    schema = {"patternProperties": {p: {"enum": [value, "both"]} for p, value in values.items()}}
    made = {"type": "object", **schema, "additionalProperties": rest}
    if patterns in HARD:
        try:
            GUIDANCE.json(canonical(made))
        except InvalidSchema as error:
            if not re.search("readers of regular expressions differ|patternProperty regexes", str(error)):
                raise
            return
    n_sure = 0
    for name in NAMES:
        python, javascript = readings(patterns, name)
        for value in (1, "x", None, "both", "free", 2):
            valid = [
                all(value in (values[p], "both") for p in found)
                if found
                else rest is True or (rest is not False and isinstance(value, str))
                for found in (python, javascript)
            ]
            if not all(valid):
                assert not admits(made, {name: value}), (name, value, python, javascript)
            elif python == javascript and can_be_written(name) and (patterns not in HARD or name.isascii()):
                n_sure += 1
                assert admits(made, {name: value}), (name, value, python, javascript)
    assert n_sure


SOME_PATTERNS = [
    r"^\w+$", r"^\d+$", r"^[а-я]+$", r"^a", r"b$", r"^(имя|b|1)$", r"^.$", r"^.+$", r"^\W+$", r"^[^a]+$", r"^\s", r"\d",
    r"^(?!a)", r"^(?!a)\w+$", r"^\S+$", r"^[a-z]{1,3}$", r"^\d{1,3}$", r"^имя$", r"^x?b?$", r"[аб]",
]  # fmt: skip
SOME_SCHEMAS: list[Any] = [{"type": "integer"}, {"type": "string"}, {"minLength": 2}, {"enum": [1, "x"]}, True]


@pytest.mark.parametrize("seed", seeds(40, fast=3))
def test_whatever_patterns_there_are_what_is_admitted_is_valid_for_each_reader(seed: int) -> None:
    choose = random.Random(seed)
    patterns = {pattern: choose.choice(SOME_SCHEMAS) for pattern in choose.sample(SOME_PATTERNS, choose.randint(1, 3))}
    declared = {
        name: choose.choice(SOME_SCHEMAS) for name in choose.sample(["имя", "a", "б"], choose.choice([0, 0, 1, 2]))
    }
    rest = choose.choice([True, False, TEXT, INTEGER])
    schema = {"type": "object", "properties": declared, "patternProperties": patterns, "additionalProperties": rest}
    try:
        GUIDANCE.json(canonical(schema))
    except InvalidSchema:
        return
    for name in [*NAMES, "имя", "б", "ba", "xb", "ab", "\ufeffa", "\xa0", " ", "aб"]:
        for value in (1, "x", "xyz", None):
            valid = []
            for found in readings(patterns, name):
                held = [patterns[pattern] for pattern in found] + [declared[one] for one in declared if one == name]
                valid.append(all(jsonschema.Draft202012Validator(one).is_valid(value) for one in held or [rest]))
            is_admitted = admits(schema, {name: value})
            assert not is_admitted or all(valid), (schema, name, value)
            assert is_admitted or not all(valid) or not (name.isascii() and name.isprintable()), (schema, name, value)


INTEGER, TEXT = {"type": "integer"}, {"type": "string"}
WORDS = {r"^\w+$": TEXT}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        # A declared name, or a listed one, that only some readers take to match another pattern
        ({"properties": {"имя": True}, "patternProperties": WORDS, "additionalProperties": False},
         [{"имя": "x"}, {"name": "x"}], [{"имя": 1}, {"возраст": "x"}]),
        ({"properties": {"имя": TEXT}, "required": ["имя"], "patternProperties": WORDS, "additionalProperties": TEXT},
         [{"имя": "x"}, {"имя": "x", "!": "y"}], [{"имя": 1}, {"имя": "x", "возраст": "y"}, {}]),
        ({"patternProperties": {r"^\w+$": {"minLength": 2}, "^(имя|возраст)$": True}, "additionalProperties": False},
         [{"имя": "xy"}, {"имя": 1}], [{"имя": "x"}, {"и": "xy"}]),
        # Patterns that meet for some readers only
        ({"patternProperties": {r"^\w$": INTEGER, "^[а-я]$": TEXT}, "additionalProperties": False},
         [{"a": 1}], [{"я": "x"}, {"я": 1}]),
        # Others are free or forbidden, however that is said
        ({"patternProperties": {r"^\w+$": INTEGER}, "additionalProperties": {"description": "any"}},
         [{"имя": 1}, {"a": 1}, {"!": "x"}], [{"имя": "x"}]),
        ({"patternProperties": {r"^\w+$": INTEGER}, "additionalProperties": {"not": {}}},
         [{"a": 1}], [{"имя": 1}, {"!": 1}]),
        # Names whose readers agree, as no name ends with a newline or has other ends of lines
        ({"patternProperties": {"^.{1,300}$": INTEGER}, "additionalProperties": TEXT},
         [{"a b": 1}, {"": "x"}], [{"a b": "x"}, {"a\nb": 1}, {"a\nb": "x"}]),
        ({"patternProperties": {r"^\d+\.\d+$": INTEGER, "^@[a-z]": True}, "additionalProperties": TEXT},
         [{"1.5": 1}, {"@a": 1}, {"a": "x"}], [{"1.5": "x"}, {"a": 1}, {"٣.٣": 1}]),
    ],
)  # fmt: skip
def test_a_name_about_which_readers_differ_has_what_is_valid_for_all(
    schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    check_admits({"type": "object", **schema}, valid, invalid)


@pytest.mark.parametrize(
    "patterns",
    [
        {r"^\w{1,100}$": INTEGER, "^[а-я]+$": TEXT},
        {r"^\w+$": INTEGER, "^[а-я]+$": TEXT, "^[α-ω]+$": TEXT, "^[א-ת]+$": TEXT},
        {r"^(?!x-)\w+$": INTEGER, "^[а-я]+$": TEXT},
        {r"^\w+$": INTEGER, "^[а-я]+$": TEXT, **{f"^ {n:x>9}": TEXT for n in range(70)}},
    ],
)
@pytest.mark.parametrize("rest", [False, TEXT])
def test_names_of_patterns_that_meet_for_some_readers_only_are_forbidden(patterns: dict[str, Any], rest: Any) -> None:
    schema = {"type": "object", "patternProperties": patterns, "additionalProperties": rest}
    check_admits(schema, [{"a": 1}], [{"имя": "x"}, {"имя": 1}, {"a": "x"}, {"é": 1}])


USUAL = [
    r"^\w{1,50}$", r"^[\w.-]{1,128}$", r"^\+?\d{10,15}$", r"^(?!x-)\w+$", r"^(?=.*\d)\w+$", r"item_\d+", r"^.{1,64}$",
    r"^(?!.*__).*$", r"^(?:\d{1,3}\.){3}\d{1,3}$", r"^https?://\S+$", r"^[^@\s]+@[^@\s]+\.[^@\s]+$", r"^[^/]{1,64}$",
    r"^(?!x-)", r"^(?!a$)[a-z]{1,60}$", r"\.json$", r"^\d{4}-\d{2}-\d{2}$", r"^[\w-]+$", r"^\S+$", r"^\W+$",
]  # fmt: skip


@pytest.mark.parametrize("source", USUAL)
@pytest.mark.parametrize("declared", [{}, {"имя": INTEGER, "x-a": True}])
def test_usual_patterns_are_served_beside_others_of_a_schema(source: str, declared: Any) -> None:
    schema = {"type": "object", "properties": declared, "patternProperties": {source: INTEGER},
              "additionalProperties": TEXT, "required": list(declared)}  # fmt: skip
    assert GUIDANCE.json(canonical(schema)) is not None


def test_many_such_patterns_take_little_time() -> None:
    """Each object took 0.2 to 0.9 s once; the time of a schema is limited."""
    patterns = [rf"^{letter}_\d{{1,3}}$" for letter in "abcdefghijkl"] + [r"^\w+-\w+$", r"^\d{1,3}$", r"^[a-z]\w*$"]
    objects = [{"patternProperties": {source: INTEGER}, "additionalProperties": TEXT} for source in patterns]
    assert canonical({"type": "array", "prefixItems": objects}).root["prefixItems"]


def test_that_a_pattern_was_seen_before_changes_nothing() -> None:
    schema = {"patternProperties": {r"^k\w+$": TEXT, "^@": INTEGER}, "additionalProperties": TEXT}
    made = canonical(schema)
    all_at_once.cache_clear()
    canonical({"propertyNames": {"pattern": r"^k\w+$"}})
    assert canonical(schema) == made


def test_names_that_have_no_short_pattern_are_refused() -> None:
    with pytest.raises(InvalidSchema, match=r"^#/propertyNames: only short patterns"):
        canonical({"propertyNames": {"pattern": "^(?:[ab]*a[ab]{9})$", "minLength": 3}})


@pytest.mark.parametrize("name", ["$ref", "allOf", "anyOf", "enum", "type", "uniqueItems", "properties", "items"])
def test_a_property_may_have_the_name_of_a_keyword(name: str) -> None:
    """The schema of schemas has all of them."""
    inner = {"allOf": [{"type": "object", "properties": {name: {"type": "string"}}}, {"required": [name]}]}
    schema = {"type": "object", "properties": {"$ref": {"type": "string"}, "allOf": inner, "x": {"allOf": [inner]}}}
    check_admits(schema, [{"$ref": "a", "allOf": {name: "b"}}], [{"$ref": 1}, {"allOf": {}}, {"allOf": {name: 1}}])


def test_a_schema_about_schemas_is_served() -> None:
    schema = {
        "type": "object",
        "properties": {"allOf": {"type": "array", "items": {"$ref": "#"}}, "$ref": {"type": "string"}},
        "allOf": [{"properties": {"anyOf": {"type": "array", "items": {"$ref": "#"}}}}],
    }
    assert GUIDANCE.json(canonical(schema)) is not None
    check_admits(schema, [{"allOf": [{"$ref": "x"}]}], [{"anyOf": [1]}])
