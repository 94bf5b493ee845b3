"""Patterns that must not match: `not`, look-aheads, and what they are for. Python's `re` is the judge."""

from __future__ import annotations

import contextlib
import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.errors import InvalidSchema
from llm_local.structured.schema import canonical
from tests.examples import examples, few
from tests.structured.test_json_schema import GUIDANCE, check_admits, compact
from tests.structured.test_regular import EXPRESSIONS, LETTERS
from tests.structured.vocabulary import accepts, walks

DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
"""Pydantic's, of a `Decimal`."""

PASSWORD = r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{8,}$"

CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, what it admits, what it does not
    ({"type": "string", "pattern": DECIMAL}, ["1.5", "-0.5", "+12", ".5", "5."], ["", "-", ".", "+.", "a"]),
    ({"type": "string", "pattern": PASSWORD, "maxLength": 20}, ["abcDEF12"], ["abcdefg1", "Ab1", "ABCDEFG1"]),
    ({"pattern": "^(?!(?:con|aux|nul)$)[a-z]{1,10}$"}, ["cona", "x", 5], ["con", "nul", "X"]),
    ({"pattern": "^(?!-)(?!.*--)[a-z-]{1,63}$", "type": "string"}, ["a-", "a-b"], ["-a", "a--b", ""]),
    ({"type": "string", "pattern": "^(?!HKLM|HKCC|HKCR|HKCU|HKU|hklm|hkcc|hkcr|hkcu|.*hku).*$"}, ["HKLL", "", "hkc"],
     ["HKLM1", "xhku", "hkcr"]),
    ({"pattern": r"^(?=[(]|[\])])..$", "type": "string"}, ["(a", ")b"], ["ab", "(", "(ab"]),
    ({"type": "string", "not": {"pattern": "^https?://"}}, ["ftp://", "", "http:/"], ["http://a"]),
    ({"type": "string", "not": {"pattern": r"\s"}}, ["ab", ""], ["a b", " "]),
    ({"type": "string", "not": {"pattern": r"^\d+$"}}, ["ab", "", "1a"], ["12", "٣"]),
    ({"type": "string", "not": {"pattern": "^a$|b"}}, ["", "aa", "c"], ["a", "b", "abc"]),
    ({"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "b$"}]}, ["a", "b"], ["ab", "c"]),
    ({"type": "object", "properties": {"k": {"type": "string", "maxLength": 5}, "v": {"type": "integer"}},
      "required": ["k"], "additionalProperties": False, "if": {"properties": {"k": {"pattern": "^a"}}},
      "then": {"required": ["v"]}}, [{"k": "b"}, {"k": "a", "v": 1}], [{"k": "a"}]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[compact(case[0])[:60] for case in CASES])
def test_what_is_left(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    check_admits(schema, valid, invalid)
    compiled = GUIDANCE.json(canonical(schema))
    for text in walks((compiled.start() for _ in range(few(10))), random.Random(1)):
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@given(EXPRESSIONS, st.sampled_from(["^", ""]), st.sampled_from(["$", ""]), st.lists(st.text(LETTERS, max_size=4)))
@examples(60)
def test_no_text_in_which_python_finds_the_pattern_is_admitted(
    pair: tuple[str, str], start: str, end: str, texts: list[str]
) -> None:
    pattern = f"{start}(?:{pair[0]}){end}"
    with contextlib.suppress(InvalidSchema):
        compiled = GUIDANCE.json(canonical({"type": "string", "not": {"pattern": pattern}}))
        for text in texts:
            if re.search(pattern, text):
                assert not accepts(compiled.start(), compact(text)), text


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"^(?!a)b|c$", "look-around"),
        (r"(?=a)b", "look-around"),
        (r"^a(?!b)", "look-around"),
        (r"^(?=a(?!b))c", "look-around"),
        (r"^(?!.*a[ab]{7}$)[ab]*$", "look-around"),
        (r"^(?=(a)\1)b", "back-references"),
        (r"^(?=a", "look-around"),
    ],
)
def test_look_aheads_that_cannot_be_written_otherwise_are_refused(pattern: str, says: str) -> None:
    with pytest.raises(InvalidSchema, match=f"^#/pattern: .*{says}"):
        canonical({"pattern": pattern})
