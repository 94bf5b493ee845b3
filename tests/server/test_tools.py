"""Tools over HTTP, read with the OpenAI client. The model recites, so that each form of call is certain."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.fakes import ReciteBackend
from tests.server.conftest import Served, serving
from tests.server.test_chat import events
from tests.server.test_errors import error_of

CHAT = "/v1/chat/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "weather in Omsk?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Omsk", "Tver"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Omsk", "days": 3}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


Reciting = Callable[..., AbstractContextManager[tuple[Served, openai.OpenAI]]]


@pytest.fixture(scope="module")
def reciting() -> Iterator[Reciting]:
    """Gives servers whose model says a text where it may; one for each combination of settings."""
    with ExitStack() as stack:
        servers: dict[str, tuple[ReciteBackend, Served, openai.OpenAI]] = {}

        @contextmanager
        def start(text: str, **settings: Any) -> Iterator[tuple[Served, openai.OpenAI]]:
            key = repr(settings)
            if key not in servers:
                backend = ReciteBackend(text)
                served = stack.enter_context(serving(backend, window=4096, **settings))
                client = openai.OpenAI(
                    base_url=f"{served.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
                )
                servers[key] = (backend, served, stack.enter_context(client))
            backend, served, client = servers[key]
            served.wait_idle()
            backend.says = text
            yield served, client

        yield start


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model="fake", messages=MESSAGES, **{"tools": TOOLS, **fields}).choices[0]


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


OMSK = ("weather", {"city": "Omsk", "days": 3})
SPOKEN: list[tuple[str, str | None, list[Any]]] = [
    # what the model says, content, calls
    (CALL, None, [OMSK]),
    (f"Let me see.\n{CALL}", "Let me see.", [OMSK]),
    (f"{CALL}\n{NOW}", None, [OMSK, ("now", {})]),
    ('```json\n{"name": "weather", "arguments": {"city": "Omsk", "days": 3}}\n```', None, [OMSK]),
    ('{"name": "weather", "arguments": {"city": "Omsk", "days": 3}}', None, [OMSK]),
    ("It rains <b>a lot</b>.", "It rains <b>a lot</b>.", []),
    ('Say {"name": "weather"}', 'Say {"name": "weather"}', []),
]


# LlamaGrammar takes no bounds of numbers.
CITY_ONLY = {**CITY, "properties": {"city": {"enum": ["Omsk", "Tver"]}, "days": {"type": "integer"}}}
PLAIN_TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": CITY_ONLY}}, TOOLS[1]]
both_engines = pytest.mark.parametrize("engine", ["auto", "llama"])


@both_engines
@pytest.mark.parametrize(("says", "content", "calls"), SPOKEN, ids=[case[0][:30] for case in SPOKEN])
def test_auto_reads_calls_and_content(
    reciting: Reciting, says: str, content: str | None, calls: list[Any], engine: str
) -> None:
    tools = TOOLS if engine == "auto" else PLAIN_TOOLS
    with reciting(says, grammar_engine=engine) as (_, client):
        for stream in (False, True):
            if stream:
                chunks = list(client.chat.completions.create(model="fake", messages=MESSAGES, tools=tools, stream=True))
                text, found, finish = assemble(chunks)
                assert text == (content or "")
                assert [(name, json.loads(arguments)) for _, name, arguments in found] == calls
                assert len({call_id for call_id, _, _ in found}) == len(calls)
            else:
                choice = ask(client, tools=tools)
                finish = choice.finish_reason
                assert choice.message.content == content
                assert calls_of(choice.message) == calls
            assert finish == ("tool_calls" if calls else "stop")


def assemble(chunks: list[Any]) -> tuple[str, list[list[str]], str | None]:
    """Content, calls (id, name, arguments) and reason, put together as a client does."""
    text, calls, finish = "", [], None
    for chunk in chunks:
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                if call.index == len(calls):
                    assert call.id
                    assert call.type == "function"
                    assert call.function.name
                    calls.append([call.id, call.function.name, ""])
                else:
                    assert call.id is None
                    assert call.function.name is None
                calls[call.index][2] += call.function.arguments or ""
    return text, calls, finish


@pytest.mark.parametrize(
    ("says", "content", "more"),
    [
        (CALL, None, {}),
        (CALL, None, {"functions": [{"name": "weather", "parameters": CITY}], "tools": openai.omit}),
        (f"Let me see.\n{CALL}", "Let me see.", {}),
        ("Rain.", "Rain.", {}),
    ],
)
def test_streams_and_whole_answers_have_the_same_content(
    reciting: Reciting, says: str, content: str | None, more: Any
) -> None:
    """As at OpenAI, the first chunk has the role, and null for content when the answer begins with a call."""
    with reciting(says) as (_, client):
        assert ask(client, **more).message.content == content
        fields = {"tools": TOOLS, **more}
        chunks = client.chat.completions.create(model="fake", messages=MESSAGES, stream=True, n=2, **fields)
        deltas = [chunk.choices[0] for chunk in chunks]
    for index in range(2):
        first, *others = [choice.delta for choice in deltas if choice.index == index]
        assert (first.role, first.content) == ("assistant", None if content is None else "")
        assert not any(delta.role for delta in others)
        assert "".join(delta.content or "" for delta in others) == (content or "")


@both_engines
def test_arguments_are_constrained_from_where_the_call_is_opened(reciting: Reciting, engine: str) -> None:
    """The model would name a city that is not in the enum, and a number that is too large."""
    wrong = CALL.replace("Omsk", "Kiev").replace("3", "77")
    with reciting(wrong, grammar_engine=engine) as (_, client):
        name, arguments = calls_of(ask(client, tools=TOOLS if engine == "auto" else PLAIN_TOOLS).message)[0]
        assert name == "weather"
        assert arguments["city"] in ("Omsk", "Tver")
        assert engine == "llama" or 1 <= arguments.get("days", 1) <= 9


@both_engines
@pytest.mark.parametrize("says", ["No.", CALL])
def test_required_and_named_calls_are_made_whatever_the_model_wants(reciting: Reciting, says: str, engine: str) -> None:
    tools = TOOLS if engine == "auto" else PLAIN_TOOLS
    with reciting(says, grammar_engine=engine) as (_, client):
        required = ask(client, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200)
        assert required.finish_reason == "tool_calls"
        assert required.message.content is None
        assert len(calls_of(required.message)) == 1
        named = ask(client, tools=tools, tool_choice={"type": "function", "function": {"name": "now"}})
        assert calls_of(named.message) == [("now", {})]
        subset: Any = {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]},
        }
        assert calls_of(ask(client, tools=tools, tool_choice=subset).message)[0] == ("now", {})


@both_engines
def test_parallel_calls_can_be_forbidden(reciting: Reciting, engine: str) -> None:
    tools = TOOLS if engine == "auto" else PLAIN_TOOLS
    with reciting(f"{CALL}\n{NOW}", grammar_engine=engine) as (_, client):
        assert len(calls_of(ask(client, tools=tools).message)) == 2
        assert len(calls_of(ask(client, tools=tools, parallel_tool_calls=False).message)) == 1


def test_arguments_that_llama_grammar_would_loosen_are_named(reciting: Reciting) -> None:
    with reciting(CALL, grammar_engine="llama") as (server, _), httpx.Client(base_url=server.url) as http:
        error = error_of(http.post(CHAT, json={"messages": MESSAGES, "tools": [TOOLS[1], TOOLS[0]]}))
        assert (error["code"], error["param"]) == ("invalid_json_schema", "tools.1.function.parameters")
        assert "#/properties/days/minimum" in error["message"]


def test_none_means_that_a_call_is_only_text(reciting: Reciting) -> None:
    with reciting(CALL) as (server, client):
        choice = ask(client, tool_choice="none")
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")
        with httpx.Client(base_url=server.url) as http:
            shown = http.post("/apply-template", json={"messages": MESSAGES, "tools": TOOLS}).json()["prompt"]
        assert "weather" in shown
        without = client.chat.completions.create(model="fake", messages=MESSAGES, tools=TOOLS, tool_choice="none")
        plain = client.chat.completions.create(model="fake", messages=MESSAGES)
        assert without.usage.prompt_tokens == plain.usage.prompt_tokens < len(shown)


def test_a_call_that_max_tokens_cuts_says_length(reciting: Reciting) -> None:
    with reciting(CALL) as (_, client):
        choice = ask(client, max_tokens=50)
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls[0].function.arguments.startswith("{")


@both_engines
def test_json_close_ends_the_arguments_of_a_call_that_would_be_cut(reciting: Reciting, engine: str) -> None:
    note = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    tools: list[Any] = [{"type": "function", "function": {"name": "note", "parameters": note}}]
    says = 'Well.\n<tool_call>\n{"name": "note", "arguments": {"text": "' + "x" * 200
    for close, finish in ((True, "tool_calls"), (False, "length")):
        with reciting(says, json_close=close, grammar_engine=engine) as (_, client):
            choice = ask(client, tools=tools, max_tokens=120)
            assert (choice.finish_reason, choice.message.content) == (finish, "Well.")
            if close:
                (name, arguments), *_ = calls_of(choice.message)
                assert name == "note"
                assert 20 < len(arguments["text"]) < 120


def test_results_go_back_in(reciting: Reciting) -> None:
    with reciting("It is cold.") as (server, client):
        first: Any = {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Omsk"}'}}
            ],
        }
        talk: list[Any] = [*MESSAGES, first, {"role": "tool", "tool_call_id": "call_1", "content": "-20"}]
        answer = client.chat.completions.create(model="fake", messages=talk, tools=TOOLS)
        assert answer.choices[0].message.content == "It is cold."
        with httpx.Client(base_url=server.url) as http:
            prompt = http.post("/apply-template", json={"messages": talk, "tools": TOOLS}).json()["prompt"]
            assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Omsk"}}\n</tool_call>' in prompt
            assert "<tool_response>\n-20\n</tool_response>" in prompt
            first["tool_calls"][0]["function"]["arguments"] = "{city"
            error = error_of(http.post(CHAT, json={"messages": talk}))
            assert error["param"] == "messages.1.tool_calls.0.function.arguments"


def test_a_call_that_the_sdk_has_parsed_goes_back_as_it_is(reciting: Reciting) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    tool = openai.pydantic_function_tool(Weather, name="weather")
    with reciting('<tool_call>\n{"name": "weather", "arguments": {"city": "Omsk"}}\n</tool_call>') as (_, client):
        made = client.chat.completions.parse(model="fake", messages=MESSAGES, tools=[tool]).choices[0].message
        assert made.tool_calls[0].function.parsed_arguments == Weather(city="Omsk")
        result = {"role": "tool", "tool_call_id": made.tool_calls[0].id, "content": "rain"}
        for said in (made, made.model_dump()):
            again = client.chat.completions.create(model="fake", messages=[*MESSAGES, said, result], tools=[tool])
            assert again.choices


def test_the_deprecated_functions_are_mapped_to_tools(reciting: Reciting) -> None:
    functions: list[Any] = [tool["function"] for tool in TOOLS]
    with reciting(CALL) as (server, client):
        answer = client.chat.completions.create(model="fake", messages=MESSAGES, functions=functions)
        choice = answer.choices[0]
        assert choice.finish_reason == "function_call"
        assert json.loads(choice.message.function_call.arguments) == OMSK[1]
        named = client.chat.completions.create(
            model="fake", messages=MESSAGES, functions=functions, function_call={"name": "now"}
        )
        assert named.choices[0].message.function_call.name == "now"
        with httpx.Client(base_url=server.url) as http:
            body = {"messages": MESSAGES, "functions": functions, "stream": True}
            chunks = [chunk for chunk in events(http.post(CHAT, json=body).text) if chunk != "[DONE]"]
        pieces = [c["choices"][0]["delta"]["function_call"] for c in chunks
                  if "function_call" in c["choices"][0]["delta"]]  # fmt: skip
        assert pieces[0]["name"] == "weather"
        assert json.loads("".join(piece["arguments"] for piece in pieces)) == OMSK[1]
        assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_tools_beside_functions_are_answered_as_tools(reciting: Reciting) -> None:
    with reciting(CALL) as (_, client):
        choice = ask(client, functions=[TOOLS[0]["function"]])
        assert (calls_of(choice.message), choice.finish_reason) == ([OMSK], "tool_calls")


def test_tools_beside_a_response_format_give_a_call_or_the_json(reciting: Reciting) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [{"ok": True}]}}}
    with reciting(CALL) as (_, client):
        assert calls_of(ask(client, response_format=form).message)[0] == OMSK
    with reciting('{"ok":true}') as (_, client):
        choice = ask(client, response_format=form)
        assert (choice.message.content, choice.finish_reason) == ('{"ok":true}', "stop")


def test_tools_work_with_n_and_logprobs(reciting: Reciting) -> None:
    with reciting(CALL) as (_, client):
        answer = client.chat.completions.create(
            model="fake", messages=MESSAGES, tools=TOOLS, n=2, logprobs=True, temperature=0
        )
        for choice in answer.choices:
            assert calls_of(choice.message) == [OMSK]
            assert "".join(entry.token for entry in choice.logprobs.content) == CALL


ITEMS = {"type": "string", "maxLength": 3}
TAGS = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": ITEMS, "uniqueItems": True, "minItems": 2, "maxItems": 2}},
    "required": ["tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "says",
    [
        '<tool_call>\n{"name": "tag", "arguments": {"tags": ["a", "a"]}}\n</tool_call>',
        '```json\n{"name": "tag", "arguments": {"tags": ["a", "a"]}}\n```',
        '{"name": "tag", "arguments": {"tags": ["a", "a"]}}',
    ],
)
def test_items_of_arguments_differ(reciting: Reciting, says: str) -> None:
    tools: list[Any] = [*TOOLS, {"type": "function", "function": {"name": "tag", "parameters": TAGS}}]
    with reciting(says) as (_, client):
        for choice in ("auto", {"type": "function", "function": {"name": "tag"}}):
            made = ask(client, tools=tools, tool_choice=choice, max_tokens=200, temperature=0.5)
            (name, arguments), *_ = calls_of(made.message)
            assert name == "tag"
            assert len(set(arguments["tags"])) == 2


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function", "Missing"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools.0.type", "'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools.2.function.parameters", "Two tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice", "'weather', 'now'"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
         "tools.0.function.parameters", "type 'object'"),
        ({"tool_choice": "any"}, "tool_choice", "'required'"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": []}}},
         "tool_choice.allowed_tools.mode", "'auto' or 'required'"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "weather"}}}, "tool_choice.type", "'allowed_tools'"),
        ({"tool_choice": {"function": {"name": "weather"}}}, "tool_choice.type", "required"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object",
          "properties": {"a": {"contains": {}, "unevaluatedItems": {}}}}}}]}, "tools.0.function.parameters",
         "#/properties/a/unevaluatedItems"),
        ({"guided_regex": "a"}, "tools", "together"),
    ],
)  # fmt: skip
def test_wrong_tools_are_named(http: httpx.Client, fields: dict[str, Any], param: str, says: str) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "tools": TOOLS, **fields})
    error = error_of(answer)
    assert answer.status_code == 400
    assert error["param"] == param
    assert says in error["message"]
