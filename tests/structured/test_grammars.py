"""Which engine serves what, what is kept, and what happens to what takes too long."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from llm_local.errors import InvalidGrammar, InvalidSchema, QueueFull
from llm_local.structured import grammars as module
from llm_local.structured.grammars import Grammars
from llm_local.structured.guidance import Guidance
from llm_local.structured.lark import Lark
from llm_local.structured.native import NativeEngine
from llm_local.structured.spec import CallFormat, CallsSpec, ChoiceSpec, JsonSpec
from llm_local.structured.tokens import Tokens
from tests.structured.native import FakeNative
from tests.structured.vocabulary import END, N_VOCAB, accepts, guidance, piece

ONLY_NATIVE = {"type": "object", "patternProperties": {"^a": {}, "a$": {}, "b": {}, "c": {}}}
"""llguidance refuses patterns that may both match."""


class Native:
    """A LlamaGrammar engine that serves, or refuses, and says when it was asked."""

    def __init__(self, serves: bool) -> None:
        self.serves = serves
        self.asked = 0

    def json(self, schema: Any) -> Any:
        self.asked += 1
        if not self.serves:
            raise InvalidSchema("#: LlamaGrammar does not, either.")
        return guidance().choice(["native"])


def made(native: Native | None = None, engine: str = "auto") -> Grammars:
    tables: Future[Guidance] = Future()
    tables.set_result(guidance())
    native_engine: Any = native
    return Grammars(tables, piece, native_engine, engine)


@pytest.mark.parametrize(
    ("engine", "schema", "asked"),
    [("auto", ONLY_NATIVE, 1), ("auto", {"const": 1}, 0), ("llguidance", {"const": 1}, 0), ("llama", {"const": 1}, 1)],
)
def test_the_engine_that_is_asked(engine: str, schema: Any, asked: int) -> None:
    native = Native(serves=True)
    constraint = made(native, engine).constraints(JsonSpec(schema), [9])[0]
    assert native.asked == asked
    assert accepts(constraint, "native" if asked else "1")


@pytest.mark.parametrize(("engine", "asked"), [("auto", 1), ("llguidance", 0)])
def test_what_neither_serves_is_refused_in_the_words_of_llguidance(engine: str, asked: int) -> None:
    native = Native(serves=False)
    with pytest.raises(InvalidSchema, match="not disjoint") as caught:
        made(native, engine).constraints(JsonSpec(ONLY_NATIVE), [9])
    assert native.asked == asked
    assert caught.value.param == "response_format.json_schema.schema"


NOTE: Any = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"],
             "additionalProperties": False}  # fmt: skip
CALLS = CallsSpec(
    (("note", NOTE, "tools.0"),), CallFormat("<tool_call>", "</tool_call>", "\n", "arguments", "\n"), parallel=False
)


@pytest.mark.parametrize(("engine", "served"), [("auto", True), ("llama", True), ("llguidance", False)])
def test_calls_that_llguidance_refuses_are_left_to_llama_grammar(
    engine: str, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise InvalidGrammar("too large")

    monkeypatch.setattr(Lark, "compile", refuse)
    native: Any = NativeEngine(FakeNative(guidance()), compact=True)
    if not served:
        with pytest.raises(InvalidGrammar, match="too large"):
            made(native, engine).constraints(CALLS, [9])
        return
    constraint = made(native, engine).constraints(CALLS, [9])[0]
    assert accepts(constraint, '<tool_call>\n{"name": "note", "arguments": {"text": "a"}}\n</tool_call>')


def test_names_have_one_spelling_in_answers_and_in_the_arguments_of_calls() -> None:
    schema: Any = {"type": "object", "properties": {"id": {"type": "integer"}}}
    calls = CallsSpec((("note", schema, "tools.0"),), CALLS.form, parallel=False)
    opening, end = '<tool_call>\n{"name": "note", "arguments": ', "}\n</tool_call>"
    for spec, before, behind, space in ((JsonSpec(schema), "", "", ""), (calls, opening, end, " ")):
        for text, is_one in (('{"ie":~"x"}', True), ('{"\\u0069d":~"x"}', False)):
            answer = before + text.replace("~", space) + behind
            assert accepts(made().constraints(spec, [9])[0], answer) is is_one
    with pytest.raises(InvalidSchema, match="of a property cannot be enforced"):
        made().constraints(JsonSpec({"properties": {"a\r": True}}), [9])


def test_the_tables_of_the_vocabulary_are_built_before_a_request_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the thread that makes llguidance's; and a server that stops waits for it, as it reads the vocabulary."""
    threads: list[str] = []
    monkeypatch.setattr(Tokens, "built", lambda tokens: (threads.append(threading.current_thread().name), tokens)[1])
    tables: Future[Guidance] = Future()
    grammars = Grammars(tables, piece)
    assert not threads
    beside = threading.Thread(target=lambda: tables.set_result(guidance()), name="beside")
    beside.start()
    grammars.close()
    assert threads == ["beside"]
    beside.join()


def test_tokens_that_begin_so() -> None:
    tokens = Tokens(N_VOCAB, piece, guidance().byte_tokens, [END])
    for prefix in (b"", b'"', b'"' + b",", b"\xff", b"\xd0\x9f", b"tr", b"true!"):
        expected = [token for token in range(N_VOCAB) if piece(token).startswith(prefix)]
        assert sorted(tokens.starting_with(prefix)) == expected


def test_what_was_used_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_SIZE", 2)
    grammars = made()
    specs = [ChoiceSpec((text,)) for text in "abc"]
    for spec in (specs[0], specs[1], specs[0], specs[2]):
        grammars.constraints(spec, [9])
    assert [grammars._find(spec) is not None for spec in specs] == [True, False, True]


def test_a_slow_compile_is_given_up_and_holds_up_only_those_that_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET_S", 0.1)
    monkeypatch.setattr(module, "QUEUE_S", 0.1)
    grammars, hold = made(), threading.Event()
    cached, slow = ChoiceSpec(("cached",)), [JsonSpec({"const": n}) for n in range(2)]
    grammars.constraints(cached, [9])
    compile_now = grammars._compile
    closed: list[Any] = []

    def compile_slowly(spec: Any) -> Any:
        if spec in slow:
            hold.wait(5)
        return compile_now(spec)

    monkeypatch.setattr(grammars, "_compile", compile_slowly)

    def count(it: Any) -> None:
        closed.append(it)

    monkeypatch.setattr("llm_local.structured.guidance.GuidanceConstraint.close", count)

    async def scenario() -> None:
        both = await asyncio.gather(*[grammars.prepare(spec, [9]) for spec in slow], return_exceptions=True)
        assert all(isinstance(error, InvalidSchema) and "to compile" in error.message for error in both)
        assert accepts((await grammars.prepare(cached, [9]))[0], "cached")
        with pytest.raises(QueueFull):
            await grammars.prepare(ChoiceSpec(("new",)), [9])
        hold.set()
        for _ in range(200):
            if len(closed) == 2:
                break
            await asyncio.sleep(0.01)
        assert len(closed) == 2, "what nobody waits for is freed"
        assert accepts((await grammars.prepare(ChoiceSpec(("new",)), [9]))[0], "new")

    asyncio.run(scenario())
    grammars.close()
