"""Unions that must hold at once: what contradicts itself is left out, and nothing else."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.errors import InvalidSchema
from llm_local.structured import product
from llm_local.structured.around import CompiledAround
from llm_local.structured.distinct import Distinct
from llm_local.structured.places import Places
from llm_local.structured.schema import canonical
from tests.examples import examples
from tests.structured.test_json_schema import DOCUMENTS, GUIDANCE, TOKENS, admits
from tests.structured.vocabulary import walks

KINDS = [f"kind {n}" for n in range(12)]
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": KINDS}, **{f"a{n}": {"type": "integer"} for n in range(12)}},
    "required": ["kind"],
    "allOf": [
        {"if": {"properties": {"kind": {"const": kind}}}, "then": {"required": [f"a{n}"]}}
        for n, kind in enumerate(KINDS)
    ],
}
CHAIN: dict[str, Any] = {
    "type": "object",
    "properties": {f"a{n}": {"type": "null"} for n in range(13)},
    "additionalProperties": False,
    "dependentRequired": {f"a{n}": [f"a{n + 1}"] for n in range(12)},
}


def test_what_each_of_many_kinds_needs() -> None:
    """As they are written, they have 4096 combinations."""
    assert admits(FORM, {"kind": "kind 3", "a3": 1})
    assert admits(FORM, {"kind": "kind 11", "a0": 0, "a11": 1})
    assert not admits(FORM, {"kind": "kind 3", "a2": 1})
    assert not admits(FORM, {"kind": "kind 12", "a3": 1})


def test_a_chain_of_properties_that_need_the_next_one() -> None:
    for first in (0, 7, 12):
        assert admits(CHAIN, {f"a{n}": None for n in range(first, 13)})
    assert admits(CHAIN, {})
    assert not admits(CHAIN, {"a0": None, "a1": None})


@given(document=DOCUMENTS, more=st.lists(DOCUMENTS, max_size=2), seed=st.integers(0, 2**32))
@examples(60)
def test_whatever_comes_back_of_multiplied_unions_is_valid(document: Any, more: list[Any], seed: int) -> None:
    parts = [{key: value for key, value in one.items() if key != "$defs"} for one in (document, *more)]
    schema = {"allOf": parts, "$defs": document["$defs"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "FEW", 1)
        try:
            made = canonical(schema)
            places = Places([made])
            compiled = CompiledAround(GUIDANCE.json(made), lambda inner: Distinct(inner, places, TOKENS))
        except InvalidSchema:
            return
    judge = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for text in walks((compiled.start() for _ in range(3)), random.Random(seed)):
        try:
            errors = list(judge.iter_errors(json.loads(text)))
        except RecursionError:
            return
        assert not errors
