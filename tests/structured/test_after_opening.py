"""Answers that are free until they open a call: what is looked at, what is refused, and how calls end in time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_local.chat.openings import Openings
from llm_local.structured.after_opening import AfterOpening, CompiledAfterOpening
from llm_local.structured.calls import CallGrammars
from llm_local.structured.lark import Lark
from llm_local.structured.schema import canonical
from llm_local.structured.spec import CallFormat
from llm_local.structured.tokens import Tokens
from tests.structured.vocabulary import END, N_VOCAB, guidance, piece, tokens_of

GUIDANCE = guidance()
TOKENS = Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END])
NAMES = ("weather", "note")
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Omsk"]}}, "required": ["city"],
           "additionalProperties": False}  # fmt: skip
NOTE = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"],
        "additionalProperties": False}  # fmt: skip
GRAMMARS = CallGrammars(
    Lark(GUIDANCE),
    {"weather": (canonical(WEATHER), "tools.0"), "note": (canonical(NOTE), "tools.1")},
    CallFormat("<tool_call>", "</tool_call>", "\n", "arguments", "\n"),
    parallel=False,
).opened()


class Looking:
    """Finds openings, and counts what it was given."""

    def __init__(self) -> None:
        self.openings = Openings(NAMES)
        self.looked_at = 0

    def __call__(self, text: str, at_start: bool) -> tuple[str | None, int]:
        self.looked_at += len(text)
        found, decided = self.openings.find(text, at_start=at_start)
        return (None, decided) if found is None else (found.name or "", found.end)


def after_opening(find: Looking | None = None, budget: int | None = None) -> AfterOpening:
    return CompiledAfterOpening(find or Looking(), GRAMMARS, TOKENS).start(budget)


def say(constraint: AfterOpening, text: str, *, by_byte: bool = False) -> int:
    """Say as much of a text as is allowed; return how many bytes that is."""
    said = 0
    data = text.encode()
    tokens: list[Any] = [GUIDANCE.byte_tokens[byte] for byte in data] if by_byte else tokens_of(data)
    for token in tokens:
        if not constraint.allows(token):
            break
        constraint.accept(token)
        said += len(piece(token))
    return said


BEFORE = ["", "Слово ", "  \n", "``` x ```\n", "<tool", 'a {"name": "weather"} ', "`"]
BARE = '{"name": "weather", "arguments": {"city": "'
OPENED = [f"<tool_call>\n{BARE}", f"```json\n{BARE}", '```{ "name" :"weather","parameters":{"city":"']


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("by_byte", [False, True])
def test_what_follows_an_opening_is_constrained_wherever_it_stands(before: str, opened: str, by_byte: bool) -> None:
    whole = before + opened
    constraint = after_opening()
    assert say(constraint, f"{whole}Kiev", by_byte=by_byte) == len(whole.encode())
    assert not constraint.may_end
    assert say(constraint, "Omsk") == 4


def test_a_bare_call_opens_only_at_the_start() -> None:
    bare = f"{BARE}Kiev"
    assert say(after_opening(), f" \n{bare}") == len(f" \n{bare}") - 4
    late = after_opening()
    assert say(late, f"ответ: {bare}") == len(f"ответ: {bare}".encode())
    assert late.may_end


def test_a_token_that_opens_a_call_and_goes_on_with_what_cannot_follow_is_left_out_of_the_mask() -> None:
    constraint = after_opening()
    say(constraint, '{"name": "weather', by_byte=True)
    wrong = tokens_of(b'"}')[0]
    assert piece(wrong) == b'"}'
    assert not constraint.allows(wrong)
    assert not constraint.allowed()[wrong]
    assert constraint.allows(tokens_of(b'",')[0])


@pytest.mark.parametrize("text", ["слово за словом, ", "``` x ", "a < b <tool ", "\n \n"])
def test_each_part_of_a_free_answer_is_looked_at_once(text: str) -> None:
    find = Looking()
    long = text * 500
    assert say(after_opening(find), f"x{long}") == len(f"x{long}".encode())
    assert find.looked_at < 20 * len(long.encode())


@pytest.mark.parametrize("opening", [*OPENED[:2], BARE])
def test_with_a_budget_an_opened_call_ends_in_time(opening: str) -> None:
    opening = opening.replace("weather", "note").replace("city", "text")
    free = "Сейчас. " if not opening.startswith("{") else ""
    used = len(tokens_of((free + opening).encode()))
    for spare in (40, 60):
        for budget in (None, used + spare):
            constraint = after_opening(budget=budget)
            assert say(constraint, free + opening) == len((free + opening).encode())
            out, n = bytearray(), 0
            while n < spare and not constraint.must_end:
                tokens = list(constraint.forced()) or [GUIDANCE.byte_tokens[ord("x")]]
                if not constraint.allows(tokens[0]):
                    tokens = [int(constraint.allowed().nonzero()[0][0])]
                for token in tokens:
                    constraint.accept(token)
                    out += piece(token)
                    n += 1
            assert constraint.may_end == (budget is not None)
            if budget is not None:
                said = json.loads('{"text": "' + out.decode().partition("}")[0] + "}")
                assert len(said["text"]) > spare / 4, "the room is used"


def test_free_text_that_is_cut_stays_cut() -> None:
    constraint = after_opening(budget=5)
    assert say(constraint, "слово", by_byte=True) == 10
    assert not constraint.must_end
