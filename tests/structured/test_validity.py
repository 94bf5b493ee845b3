"""Whether single values are valid: never wrong, and unknown where Python might read a pattern in another way."""

from __future__ import annotations

import contextlib
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.errors import InvalidSchema
from llm_local.structured.logic import Node, narrowed
from llm_local.structured.look_ahead import Pattern
from llm_local.structured.pattern import to_rust
from llm_local.structured.schema import canonical
from llm_local.structured.validity import matches, surely_invalid
from tests.examples import examples
from tests.structured.test_json_schema import DOCUMENTS, LEAVES, NAMES, SCALARS

PATTERNS: list[tuple[str, list[str], list[str]]] = [
    ("^a+$", ["a", "aa"], ["", "ab", "a\n"]),
    (r"(\d{1,3}\.){3}\d{1,3}", ["1.2.3.4", "v10.0.0.1"], ["1.2.3", "alpha"]),
    ("^[^x$]{2}", ["ab", "ya"], ["a$", "x"]),
    (r"^\s*$", ["", " \t"], ["a"]),
    ("^(да|нет)$", ["да"], ["может"]),
    (r"\$\{", ["a${b}"], ["$b"]),
]


@pytest.mark.parametrize(("pattern", "found", "others"), PATTERNS, ids=[case[0] for case in PATTERNS])
def test_patterns_are_found_where_they_are(pattern: str, found: list[str], others: list[str]) -> None:
    rust = to_rust(pattern)
    assert [matches(rust, text) for text in found] == [True] * len(found)
    assert [matches(rust, text) for text in others] == [False] * len(others)


@pytest.mark.parametrize("pattern", [r"\p{Lu}", "(?i)a", r"[\Wa]", "(a+)+(b+)+", "a*" * 5])
def test_what_python_may_read_differently_or_for_long_is_unknown(pattern: str) -> None:
    assert matches(to_rust(pattern), "a") is None


def test_a_long_text_is_not_tried() -> None:
    assert matches("^(?:a*)*$", "a" * 30 + "b") is None


@given(document=LEAVES.filter(lambda node: isinstance(node, dict) and "$ref" not in node), value=SCALARS)
@examples(100)
def test_what_is_surely_invalid_is_invalid(document: Any, value: Any) -> None:
    node = canonical(document).root
    plain = isinstance(node, dict) and not {"allOf", "anyOf"} & set(node)
    valid = jsonschema.Draft202012Validator(document).is_valid(value)
    if plain and surely_invalid(value, node):
        assert not valid
    elif plain and not {"format", "multipleOf"} & set(document):
        assert valid, "it is certain enough to be of use"


VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
)


@given(document=DOCUMENTS, value=VALUES)
@examples(300)
def test_what_is_surely_invalid_is_invalid_in_depth(document: Any, value: Any) -> None:
    try:
        node = canonical(document).root
    except InvalidSchema:
        return
    if surely_invalid(value, node):
        with contextlib.suppress(RecursionError):
            assert not jsonschema.Draft202012Validator(document).is_valid(value)


@pytest.mark.parametrize(
    ("value", "node", "invalid"),
    [
        (3, {"minimum": 3}, False), (2, {"minimum": 3}, True), (4, {"maximum": 3}, True), (3, {"maximum": 3}, False),
        (3, {"exclusiveMinimum": 3}, True), (3, {"exclusiveMaximum": 3}, True), (2, {"exclusiveMaximum": 3}, False),
        (1.0, {"type": "integer"}, False), (1.5, {"type": "integer"}, True), (True, {"type": "integer"}, True),
        ("аб", {"minLength": 2, "maxLength": 2}, False), ("а", {"minLength": 2}, True), ("абв", {"maxLength": 2}, True),
        (1, {"enum": [1.0]}, False), (True, {"enum": [1]}, True), ([1], {"minLength": 9, "minimum": 9}, False),
        ([1], {"minItems": 2}, True), ([1], {"maxItems": 0}, True), ([1], {"minItems": 1, "maxItems": 1}, False),
        ([1], {"items": {"type": "string"}}, True), (["a"], {"items": {"type": "string"}}, False),
        ([1, "a"], {"prefixItems": [{"enum": [1]}], "items": {"type": "string"}}, False),
        (["a"], {"prefixItems": [{"type": "number"}]}, True), ([], {"items": False}, False),
        ({"a": 1}, {"required": ["b"]}, True), ({"a": 1}, {"properties": {"a": {"type": "string"}}}, True),
        ({"a": 1}, {"additionalProperties": False}, True), ({"a": 1}, {"properties": {"a": True, "b": False}}, False),
        ({"a": 1}, {"additionalProperties": False, "patternProperties": {"a": True}}, False),
        (1, {"anyOf": [{"type": "string"}, {"minimum": 2}]}, True), (1, {"anyOf": [{"type": "string"}, True]}, False),
        (1, {"allOf": [{"type": "number"}, {"minimum": 2}]}, True), (1, narrowed({"type": "string"}), False),
        ("я", {"pattern": Pattern.of(r"^\w$", "")}, False), ("-", {"pattern": Pattern.of(r"^\w$", "")}, True),
        (1, {"$ref": "#/$defs/d"}, False), (1, False, True), (1, True, False),
    ],
)  # fmt: skip
def test_each_keyword_refuses_what_it_is_about(value: Any, node: Node, invalid: bool) -> None:
    assert surely_invalid(value, node) == invalid
