"""Whether the beginning of a text may become a value: always for its own texts, however they are written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.structured.beginning import may_become
from llm_local.structured.logic import value_key
from tests.examples import examples

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-120, 120) | st.sampled_from([0.5, -1.25, 100.0, 1e-7, 1e30])
    | st.text(st.sampled_from('aя\n"\\/😀'), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "я\n"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def written(value: Any, draw: Any) -> str:
    """One of the texts of a value."""
    if isinstance(value, str):
        return '"' + "".join(draw(st.sampled_from(spellings(char))) for char in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(written(item, draw) for item in value) + "]"
    if isinstance(value, dict):
        members = draw(st.permutations(list(value.items())))
        return "{" + ",".join(f"{written(key, draw)}:{written(item, draw)}" for key, item in members) + "}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = json.dumps(value)
        more = (
            []
            if "e" in text
            else [f"{text}{'' if '.' in text else '.'}0", f"{text}e0", *([f"{text}0e-1"] if value else [])]
        )
        return draw(st.sampled_from([text, *(one for one in more if json.loads(one) == value)]))
    return json.dumps(value)


def spellings(char: str) -> list[str]:
    escaped = json.dumps(char)[1:-1]
    units = char.encode("utf-16-be")
    by_number = "".join(f"\\u{units[at]:02X}{units[at + 1]:02x}" for at in range(0, len(units), 2))
    return [escaped, by_number, *([char] if char not in '\n"\\' else [])]


@given(data=st.data(), value=VALUES)
@examples(60)
def test_every_beginning_of_a_text_may_become_its_value(data: Any, value: Any) -> None:
    text = written(value, data.draw)
    assert json.loads(text) == value
    for length in range(len(text) + 1):
        assert may_become(text[:length], value), text[:length]


@given(data=st.data(), value=VALUES, other=VALUES)
@examples(60)
def test_the_whole_text_of_another_value_may_not(data: Any, value: Any, other: Any) -> None:
    text = written([other], data.draw)
    assert may_become(text, [value]) == (value_key(value) == value_key(other))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"b', "ab"), ('"\\u0062', "ab"), ("2", 1), ("-", 1), ("12", 1), ("1.05", 1), ("11e", 1), ("tr", False),
        ("{", []), ("[1,", [1]), ("[2", [1]), ('{"b', {"a": 1}), ('{"a":2,', {"a": 1}), ('{"a":1,', {"a": 1}),
        ('"a"', 1), ("[", {}),
    ],
)  # fmt: skip
def test_what_cannot_become_a_value_any_more(text: str, value: Any) -> None:
    assert not may_become(text, value)
