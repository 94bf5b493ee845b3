"""Numbers end, also from a model that would write digits for ever; nothing that a reader takes in is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from llm_local.engine.constraint import Constraint
from llm_local.structured.around import CompiledAround
from llm_local.structured.closing import Closing
from llm_local.structured.digits import MOST, Digits
from llm_local.structured.distinct import Distinct
from llm_local.structured.places import Places
from llm_local.structured.schema import canonical
from llm_local.structured.tokens import Compiled, Tokens
from tests.structured.vocabulary import END, N_VOCAB, accepts, guidance, piece

GUIDANCE = guidance()
TOKENS = Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END])


def start(schema: Any, *, distinct: bool = False) -> Digits:
    found = canonical(schema)
    compiled: Compiled = GUIDANCE.json(found)
    if distinct:
        places = Places([found])
        compiled = CompiledAround(compiled, lambda inner: Distinct(inner, places, TOKENS))
    return CompiledAround(compiled, lambda inner: Digits(inner, TOKENS)).start()


def counting(constraint: Constraint, most: int = 400) -> str | None:
    """The answer of a model that writes digits wherever it may; None when it does not end."""
    out = bytearray()
    wishes = [*b"0123456789.", *TOKENS.starting_with(b"00"), *b',}]"e-+DTHMS']
    for _ in range(most):
        if constraint.must_end:
            return out.decode()
        tokens = list(constraint.forced())
        if not tokens:
            allowed = constraint.allowed()
            ids = [token for token in wishes if allowed[token]] or [int(token) for token in allowed.nonzero()[0]]
            tokens = [next(token for token in ids if constraint.allows(token))]
        if tokens == [END]:
            return out.decode()
        for token in tokens:
            constraint.accept(token)
            out += piece(token)
    return None


NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}


def record(*names: str, **of: Any) -> dict[str, Any]:
    return {"type": "object", "properties": of, "required": [*names], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        record("score", score=NUMBER),
        record("score", "n", score={"type": "number", "minimum": 0, "maximum": 1}, n=INTEGER),
        record("x", x={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1e-30}),
        record("d", d={"type": "string", "format": "duration"}),
        {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 3},
    ],
)
def test_a_model_that_writes_digits_for_ever_comes_to_an_end(schema: Any) -> None:
    answer = counting(start(schema))
    assert answer is not None
    jsonschema.validate(json.loads(answer), schema)


def test_an_item_that_must_differ_may_take_more_digits() -> None:
    """`[0,0.000...` is the first item again until another digit comes: the number may not end there."""
    schema = {"type": "array", "items": NUMBER, "uniqueItems": True, "minItems": 2}
    constraint = start(schema, distinct=True)
    for token in b"[0,0." + b"0" * (MOST + 5) + b"1]":
        assert constraint.allows(token)
        constraint.accept(token)
    assert constraint.may_end


@pytest.mark.parametrize("value", [0, -17, 1.5, 2**64 - 1, 0.1 + 0.2, 1e-7, 5e-324, 1.7976931348623157e308, 3e22])
def test_every_number_that_python_writes_is_served(value: float) -> None:
    assert accepts(start(record("x", x=NUMBER)), json.dumps({"x": value}, separators=(",", ":")))


def test_digits_in_strings_are_not_counted() -> None:
    text = json.dumps({"s": "1" * 50 + '"\\' + "2" * 50, "n": 3}, separators=(",", ":"))
    assert accepts(start(record("s", "n", s={"type": "string"}, n=INTEGER)), text)


def test_a_digit_too_many_is_refused_only_where_the_number_may_end() -> None:
    long = "1" * (MOST + 1)
    assert not accepts(start(record("x", x=NUMBER)), '{"x":0.' + long + "}")
    assert not accepts(start(NUMBER), "0." + long)
    longer = CompiledAround(GUIDANCE.regex(r"\[[0-9]{26}(,[0-9]+)?\]"), lambda inner: Digits(inner, TOKENS))
    assert accepts(longer.start(), "[" + "1" * 26 + ",1]")
    assert counting(longer.start()) == "[" + "0" * 26 + "," + "0" * MOST + "]"


def test_a_copy_counts_on_by_itself() -> None:
    one = start(record("x", x=NUMBER))
    assert one.feed(b'{"x":0.' + b"1" * (MOST - 1))
    other = one.copy()
    other.accept(ord("1"))
    assert (one.allows(ord("1")), other.allows(ord("1"))) == (True, False)
    assert (one.allowed()[ord("1")], other.allowed()[ord("1")]) == (True, False)
    assert not other.feed(b"x")
    assert one.completes('{"x":1}')
    assert not one.completes('{"x":')


def test_an_answer_that_must_be_closed_in_time_still_is() -> None:
    answer = counting(Closing(start(record("x", "s", x=NUMBER, s={"type": "string"})), TOKENS, 40), 40)
    assert answer is not None
    assert json.loads(answer).keys() == {"x", "s"}
