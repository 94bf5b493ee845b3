"""`LLM_JSON_CLOSE`: however few tokens are left, the answer is valid; and where there are enough, nothing changes."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from llm_local.engine.constraint import Constraint
from llm_local.structured.closing import Closing
from llm_local.structured.schema import canonical
from llm_local.structured.tokens import Tokens
from tests.examples import few, rest_is_slow, seeds
from tests.structured.test_json_schema import CASES, NODE, compact
from tests.structured.vocabulary import CLOSING, END, N_VOCAB, guidance, piece

GUIDANCE = guidance()
REPLY = {
    "type": "object",
    "properties": {
        "reply": {"type": "string"},
        "when": {"type": "string", "format": "date"},
        "code": {"type": "string", "pattern": "^[a-z]*-[0-9]{3}$"},
        "score": {"type": "object", "properties": {"d": {"type": "integer", "minimum": 1000}}, "required": ["d"]},
        "flags": {"type": "array", "items": {"type": "string", "minLength": 3}, "minItems": 1},
        "tree": {"$ref": "#/$defs/node"},
    },
    "required": ["reply", "when", "code", "score", "flags"],
    "$defs": {"node": NODE},
}  # fmt: skip


def closing(schema: Any, budget: int) -> Closing:
    inner = GUIDANCE.json(canonical(schema)).start()
    return Closing(inner, Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END]), budget)


def rambling(constraint: Constraint, choose: random.Random, budget: int) -> tuple[str, bool]:
    """An answer of at most `budget` tokens from a model that never wants to end; and whether it came to an end."""
    out = bytearray()
    used = 0
    while used < budget:
        if constraint.must_end:
            return out.decode(), True
        tokens = list(constraint.forced())
        if not tokens:
            ids = [int(token) for token in constraint.allowed().nonzero()[0]]
            choose.shuffle(ids)
            # Openers and letters first: what a talkative model would do.
            ids.sort(key=lambda token: token in CLOSING or token == END)
            token = next((token for token in ids if constraint.allows(token)), None)
            if token is None:
                continue
            tokens = [token]
        if tokens == [END]:
            return out.decode(), True
        for token in tokens[: budget - used]:
            constraint.accept(token)
            out += piece(token)
            used += 1
    return out.decode("utf-8", "replace"), constraint.must_end


@pytest.mark.parametrize("budget", rest_is_slow([100, 130, 700], fast=2))
@pytest.mark.parametrize("seed", seeds(2, fast=1))
def test_a_rambling_answer_is_closed_in_time(budget: int, seed: int) -> None:
    text, ended = rambling(closing(REPLY, budget), random.Random(seed), budget)
    assert ended
    jsonschema.validate(json.loads(text), REPLY)
    inner = GUIDANCE.json(canonical(REPLY)).start()
    assert not rambling(inner, random.Random(seed), budget)[1], "the test needs an answer that would be cut"


@pytest.mark.parametrize(
    ("schema", "budget"), [(case[0], budget) for case in CASES for budget in (25,)],
    ids=lambda value: compact(value)[:50],
)  # fmt: skip
def test_every_schema_is_closed_or_left_alone(schema: Any, budget: int) -> None:
    for seed in range(few(2)):
        constraint = closing(schema, budget)
        text, ended = rambling(constraint, random.Random(seed), budget)
        if constraint._watch >= 0:
            assert ended
        if ended:
            judge = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
            if not isinstance(schema, dict) or not {"additionalItems", "dependencies"} & set(schema):
                assert schema is True or "exclusiveMinimum" in schema or judge.is_valid(json.loads(text))


def test_what_cannot_fit_is_left_alone() -> None:
    constraint = closing(REPLY, 20)
    _, ended = rambling(constraint, random.Random(1), 20)
    assert not ended
    assert not constraint.must_end


def test_an_answer_with_room_is_not_touched() -> None:
    for seed in range(5):
        plain, wrapped = random.Random(seed), random.Random(seed)
        inner = GUIDANCE.json(canonical(REPLY)).start()
        outer = closing(REPLY, 10_000)
        assert rambling(inner, plain, 60) == rambling(outer, wrapped, 60)


def test_where_the_answer_is_complete_already_only_an_end_is_left() -> None:
    constraint = closing({"type": "number"}, 2)
    three, dot = (GUIDANCE.byte_tokens[byte] for byte in b"3.")
    assert constraint.allows(three)
    constraint.accept(three)
    assert not constraint.allows(dot), "a digit would have to follow, and there is no room for it"
    assert list(constraint.allowed().nonzero()[0]) == [END]
    assert constraint.allows(END)


def test_it_may_begin_in_the_middle_of_a_text() -> None:
    begun = b'{"text":"a'
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    inner = GUIDANCE.json(canonical({**schema, "additionalProperties": False})).start()
    assert inner.feed(begun)
    constraint = Closing(inner, Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END]), 20, begun)
    text, ended = rambling(constraint, random.Random(1), 20)
    assert ended
    jsonschema.validate(json.loads(begun.decode() + text), schema)


def test_an_ending_is_found_where_nothing_says_what_is_forced() -> None:
    """As with llama.cpp's grammars: a newline, and a mark that only its own token is."""

    class Silent:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def forced(self) -> tuple[()]:
            return ()

        def copy(self) -> Silent:
            return Silent(self._inner.copy())

    compiled = GUIDANCE.lark('start: "{" /x*/ "}" "\\n" </tool_call>')
    inner: Any = Silent(compiled.start())
    constraint = Closing(inner, Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END]), 12)
    text, ended = rambling(constraint, random.Random(1), 12)
    assert ended
    assert text == "{" + "x" * 8 + "}\n</tool_call>"
