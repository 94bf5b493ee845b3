"""Patterns that no text satisfies together."""

from __future__ import annotations

from typing import Any

import pytest

from llm_local.errors import InvalidSchema
from llm_local.structured.look_ahead import OtherTexts, Pattern
from llm_local.structured.pattern import to_rust
from llm_local.structured.schema import canonical
from llm_local.structured.texts import is_never_found, listed, patterns_are_apart
from tests.structured.test_json_schema import check_admits


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (r"^a", r"^b", True),
        (r"^a", r"b$", False),
        (r"^\d+$", r"^[a-z]+$", True),
        # For Python these are digits, too.
        (r"^\d$", r"^[٠-٩]$", False),
        (r"^\w$", r"^é$", False),
        (r"^v\d+\.\d+$", r"^\d+\.\d+$", True),
        (r"a", r"b", False),
        (r"^[ab]*a[ab]{30}$", r"^c", False),
    ],
)
def test_patterns_are_apart_only_where_it_is_certain(one: str, other: str, apart: bool) -> None:
    assert patterns_are_apart(Pattern.of(one, ""), Pattern.of(other, "")) is apart
    assert patterns_are_apart(Pattern.of(other, ""), Pattern.of(one, "")) is apart


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [(r"^cve$", r"^(cve|capec)$", True), (r"^cve", r"^(cve|capec)$", False), (r"^\d$", r"^\d$", False)],
)
def test_a_pattern_is_apart_from_the_opposite_of_what_holds_it(one: str, other: str, apart: bool) -> None:
    opposite = OtherTexts.than(Pattern.of(other, ""))
    assert opposite is not None
    assert patterns_are_apart(Pattern.of(one, ""), opposite) is apart
    assert patterns_are_apart(opposite, Pattern.of(one, "")) is apart


def test_a_pattern_is_never_found_only_where_no_reader_finds_it() -> None:
    long = Pattern.of(r"^(?:(?:>=|<)\d+\.\d+\s*)+$", "")
    assert is_never_found(long, "any")
    assert not is_never_found(long, ">=1.0")
    assert not is_never_found(Pattern.of(r"^\w$", ""), "é")
    assert not is_never_found("^a$", "b")


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"^MD5$", ["MD5"]),
        (r"^(?:a|bc)[12]?$", ["a", "a1", "a2", "bc", "bc1", "bc2"]),
        (r"^(да|нет)$", ["да", "нет"]),
        (r"^[a-z]$", None),
        (r"^a*$", None),
        (r"a", None),
        (r"^[0-9]$", list("0123456789")),
        (r"^[\u0000a]$", ["\0", "a"]),
        (r"^a{9}b$^", None),
    ],
)
def test_the_few_texts_of_a_pattern_are_listed(pattern: str, texts: list[str] | None) -> None:
    assert listed(to_rust(pattern), 20) == texts


CASES: list[tuple[Any, list[Any], list[Any]]] = [
    (
        {"type": "string", "oneOf": [{"pattern": r"^v\d+\.\d+\.\d+$"}, {"pattern": r"^\d+\.\d+\.\d+$"}]},
        ["v1.2.3", "1.2.3"],
        ["1", "x1.2.3"],
    ),
    (
        {"oneOf": [{"const": "any"}, {"type": "string", "pattern": r"^(?:(?:>=|<)\d+\.\d+\s*)+$"}]},
        ["any", ">=1.0 <2.0"],
        ["1.0"],
    ),
    (
        {
            "properties": {"s": {"not": {"const": "bearer"}}},
            "oneOf": [{"properties": {"s": {"not": {"not": {"const": "basic"}}}}}, {"required": ["x"]}],
        },
        [{"s": "basic"}, {"s": "y", "x": 1}],
        [{"s": "bearer"}, {"s": "basic", "x": 1}],
    ),
    ({"not": {"not": {"pattern": "^a"}}}, ["a", 1], ["b"]),
    ({"type": "string", "not": {"pattern": r"^((CVE-\d{4}-\d{4})|(CAPEC-\d+))$"}}, ["CVE", "a"], ["CVE-2026-1234"]),
    ({"oneOf": [{"const": n} for n in range(100)]}, [0, 99], [100]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES)
def test_branches_about_texts_are_told_apart(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    check_admits(schema, valid, invalid)


def test_formats_tell_no_branches_apart_as_they_may_be_annotations() -> None:
    """Whoever reads them so takes each text to satisfy both branches."""
    for other in ({"format": "ipv6"}, {"enum": ["1.2.3.4", "x"]}):
        with pytest.raises(InvalidSchema, match=r"^#/oneOf: branches"):
            canonical({"type": "string", "oneOf": [{"format": "ipv4"}, other]})


@pytest.mark.parametrize("bound", [1e32, 1.7976931348623157e308, 2**64 - 1])
def test_bounds_beyond_64_bits_are_moved_in(bound: float) -> None:
    for key, sign in (("maximum", 1), ("minimum", -1), ("exclusiveMaximum", 1)):
        check_admits({"type": "number", key: sign * bound}, [0, 1.5, sign * 1e15], ["x"])
