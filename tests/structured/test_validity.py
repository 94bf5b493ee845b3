"""Whether single values are valid: never wrong, and unknown where Python might read a pattern in another way."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given

from llm_local.structured.pattern import to_rust
from llm_local.structured.schema import canonical
from llm_local.structured.validity import matches, surely_invalid
from tests.examples import examples
from tests.structured.test_json_schema import LEAVES, SCALARS

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


@pytest.mark.parametrize(
    ("value", "node", "invalid"),
    [
        (3, {"minimum": 3}, False), (2, {"minimum": 3}, True), (4, {"maximum": 3}, True), (3, {"maximum": 3}, False),
        (3, {"exclusiveMinimum": 3}, True), (3, {"exclusiveMaximum": 3}, True), (2, {"exclusiveMaximum": 3}, False),
        (1.0, {"type": "integer"}, False), (1.5, {"type": "integer"}, True), (True, {"type": "integer"}, True),
        ("аб", {"minLength": 2, "maxLength": 2}, False), ("а", {"minLength": 2}, True), ("абв", {"maxLength": 2}, True),
        (1, {"enum": [1.0]}, False), (True, {"enum": [1]}, True), ([1], {"minLength": 9, "minimum": 9}, False),
    ],
)  # fmt: skip
def test_each_keyword_refuses_what_it_is_about(value: Any, node: dict[str, Any], invalid: bool) -> None:
    assert surely_invalid(value, node) == invalid
