"""Structured output over HTTP: what each field enforces, what is refused, and what stays as it was beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import openai
import pydantic
import pytest

from llm_local.engine.stream import Stream
from llm_local.engine.types import GenerationRequest
from tests.server.conftest import Served, serving
from tests.server.test_chat import events
from tests.server.test_errors import error_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "Привет"}]
SCHEMA = {
    "type": "object",
    "properties": {"reply": {"type": "string", "maxLength": 9}, "score": {"type": "integer", "minimum": 0,
                   "maximum": 10}, "flags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
    "required": ["reply", "score", "flags"],
    "additionalProperties": False,
}  # fmt: skip


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def ask(http: httpx.Client, path: str = CHAT, **fields: Any) -> httpx.Response:
    given = {"messages": MESSAGES} if path == CHAT else {"prompt": "Привет"}
    return http.post(path, json={**given, "max_tokens": 300, "seed": 3, **fields})


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop", answer.text
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_enforced_strict_or_not(http: httpx.Client, strict: bool | None) -> None:
    for seed in range(5):
        body = json.loads(text_of(ask(http, response_format=json_schema(SCHEMA, strict=strict), seed=seed)))
        assert set(body) == {"reply", "score", "flags"}
        assert 0 <= body["score"] <= 10


def test_a_streamed_answer_is_the_same(http: httpx.Client) -> None:
    whole = text_of(ask(http, response_format=json_schema(SCHEMA)))
    chunks = [c for c in events(ask(http, response_format=json_schema(SCHEMA), stream=True).text) if c != "[DONE]"]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole
    assert chunks[-1]["timings"]["forced_n"] > 10
    assert chunks[-1]["timings"]["grammar_ms"] > 0


def test_only_a_streamed_answer_is_kept_at_an_even_pace(
    server: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody reads along gets its forced tokens all at once."""
    submitted: list[GenerationRequest] = []
    submit = server.engine.submit

    def recording(requests: Sequence[GenerationRequest], *more: Any) -> Stream:
        submitted.extend(requests)
        return submit(requests, *more)

    monkeypatch.setattr(server.engine, "submit", recording)
    ask(http, response_format=json_schema(SCHEMA))
    ask(http, response_format=json_schema(SCHEMA), stream=True)
    assert [request.streamed for request in submitted] == [False, True]


def test_json_object_is_an_object(http: httpx.Client) -> None:
    # The fake model might never end it: what it begins with is what counts.
    answer = ask(http, response_format={"type": "json_object"}, max_tokens=1).json()["choices"][0]
    assert answer["message"]["content"] == "{"
    assert answer["finish_reason"] == "length"
    given = {"type": "json_object", "schema": {"const": {"a": 1}}}
    assert text_of(ask(http, response_format=given)) == '{"a":1}'


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_schema_may_come_in_the_field_of_llama_cpp_server(http: httpx.Client, path: str) -> None:
    assert text_of(ask(http, path, json_schema={"const": "42"})) == '"42"'


def test_a_schema_needs_no_name(http: httpx.Client) -> None:
    given = {"type": "json_schema", "json_schema": {"schema": {"const": "42"}}}
    assert text_of(ask(http, response_format=given)) == '"42"'


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_regular_expressions_choices_and_grammars(http: httpx.Client, path: str) -> None:
    assert re.fullmatch(r"[a-c]{2}-\d", text_of(ask(http, path, guided_regex=r"[a-c]{2}-\d")))
    assert text_of(ask(http, path, guided_choice=["red", "green"])) in ("red", "green")
    assert text_of(ask(http, path, grammar='root ::= "x" [0-9] "y"')) in [f"x{n}y" for n in range(10)]


def test_it_works_with_n_logprobs_and_stop(http: httpx.Client) -> None:
    answer = ask(http, response_format=json_schema(SCHEMA), n=3, logprobs=True, top_logprobs=2).json()
    for choice in answer["choices"]:
        assert set(json.loads(choice["message"]["content"])) == {"reply", "score", "flags"}
        joined = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
        assert joined.decode() == choice["message"]["content"]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3
    cut = ask(http, response_format=json_schema(SCHEMA), stop=["score"]).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    assert "score" not in cut["message"]["content"]
    # The last brace is missing: what is left is no JSON.
    cut = ask(http, response_format=json_schema(SCHEMA), stop=["}"]).json()["choices"][0]
    assert cut["finish_reason"] == "length"


class Answer(pydantic.BaseModel):
    """What the SDK makes a schema of."""

    reply: str = pydantic.Field(max_length=5)
    score: int = pydantic.Field(ge=1, le=3)


def test_the_sdk_parses_what_comes_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="fake", messages=MESSAGES, response_format=Answer, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    said = answer.choices[0].message.model_dump(mode="json", warnings=False)
    assert set(said["parsed"]) == {"reply", "score"}
    again = client.chat.completions.create(model="fake", messages=[*MESSAGES, said, *MESSAGES], max_tokens=1)
    assert again.choices, "as a dictionary it goes back whole"


@pytest.mark.parametrize(
    ("fields", "param", "code", "says"),
    [
        ({"response_format": {"type": "json"}}, "response_format.type", None, "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", None, "needs 'json_schema'"),
        ({"response_format": {"type": "text", "schema": {"const": 1}}}, "response_format", None, "'json_object'"),
        ({"response_format": {**json_schema({}), "schema": {"const": 1}}}, "response_format", None, "'json_object'"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "x"}}}, "response_format", None,
         "not allowed"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
         "response_format.json_schema.name", None, "pattern"),
        ({"response_format": json_schema({"contains": True, "unevaluatedItems": False})},
         "response_format.json_schema.schema", "invalid_json_schema", "#/unevaluatedItems: beside"),
        ({"response_format": json_schema({"type": "integer", "minimum": 5, "maximum": 1})},
         "response_format.json_schema.schema", "invalid_json_schema", "no value satisfies"),
        ({"response_format": json_schema({"$ref": "http://127.0.0.1:1/x"})}, "response_format.json_schema.schema",
         "invalid_json_schema", "nothing is fetched"),
        ({"guided_regex": "(?=a)"}, "guided_regex", "invalid_grammar", "look-around"),
        ({"guided_choice": []}, "guided_choice", "invalid_grammar", "at least one"),
        ({"guided_choice": [""]}, "guided_choice", "invalid_grammar", "empty"),
        ({"guided_choice": "a"}, "guided_choice", None, "list"),
        ({"grammar": "root ::= x"}, "grammar", "invalid_grammar", "not defined"),
        ({"grammar": 'root ::= "a"{99999}'}, "grammar", "invalid_grammar", "too large"),
        ({"grammar": ""}, "grammar", None, "at least 1 character"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", None, "together"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format", None, "together"),
        ({"json_schema": {"const": 1}, "grammar": 'root ::= "x"'}, "json_schema", None, "together"),
        ({"json_schema": {"type": "hiccup"}}, "json_schema", "invalid_json_schema", "#/type"),
        ({"tool_choice": "required"}, "tool_choice", None, "needs 'tools'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_enforced_is_400_before_the_first_byte(
    http: httpx.Client, fields: dict[str, Any], param: str, code: str | None, says: str
) -> None:
    for stream in (False, True):
        answer = ask(http, stream=stream, **fields)
        error = error_of(answer)
        assert answer.status_code == 400
        assert error["param"] == param
        assert says in error["message"]
        if code is not None:
            assert error["code"] == code


def test_enforcement_can_be_switched_off_but_is_then_refused_not_ignored() -> None:
    with serving(json_schema_enforce=False) as server, httpx.Client(base_url=server.url) as http:
        error = error_of(ask(http, response_format={"type": "json_object"}))
        assert (error["code"], error["param"]) == ("unsupported_parameter", "response_format")
        assert "LLM_JSON_SCHEMA_ENFORCE" in error["message"]
        assert ask(http, response_format={"type": "text"}, max_tokens=2).status_code == 200


def test_constraints_are_compiled_once_and_started_anew(server: Served, http: httpx.Client) -> None:
    grammars = server.runtime.loaded.grammars
    before = len(grammars._cache)
    schema = json_schema({"enum": [f"{n} only here {n}" for n in range(9)]})
    answers = {text_of(ask(http, response_format=schema, seed=seed, temperature=2)) for seed in range(8)}
    assert len(answers) > 1
    assert len(grammars._cache) == before + 1


def test_a_bomb_is_refused_in_time_and_others_do_not_feel_it(http: httpx.Client) -> None:
    """Not a speed test: each must end well before the client's patience of ten seconds."""
    deep: Any = {"type": "string"}
    for _ in range(400):
        deep = {"anyOf": [deep, deep]} if len(str(deep)) < 2000 else {"type": "array", "items": deep}
    bombs = [
        deep,
        {"allOf": [{"anyOf": [{"type": "string", "pattern": f"^.*{n}.*{m}.*"} for n in range(20)]} for m in range(20)]},
        {"type": "string", "pattern": "^(((a{1,1000}){1,1000}){1,1000})$"},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(3000)}, "minProperties": 1500,
         "additionalProperties": False},
        {"type": "array", "items": {"enum": list(range(12))}, "uniqueItems": True},
        {"oneOf": [{"type": "object", "properties": {f"k{n}": {"const": n}}} for n in range(200)]},
    ]  # fmt: skip
    for bomb in bombs:
        answer = ask(http, response_format=json_schema(bomb), max_tokens=5)
        assert answer.status_code in (200, 400)
        assert ask(http, max_tokens=1).status_code == 200


def test_json_close_ends_an_answer_that_would_be_cut() -> None:
    wordy = {**SCHEMA, "properties": {**SCHEMA["properties"], "reply": {"type": "string"}}}
    fields = {"response_format": json_schema(wordy), "max_tokens": 60, "seed": 1}
    for close, finish in ((True, "stop"), (False, "length")):
        with serving(json_close=close) as server, httpx.Client(base_url=server.url) as http:
            choice = ask(http, **fields).json()["choices"][0]
            assert choice["finish_reason"] == finish
            if close:
                assert set(json.loads(choice["message"]["content"])) == {"reply", "score", "flags"}


def test_json_close_knows_what_each_prompt_leaves_of_the_window() -> None:
    wordy = {**SCHEMA, "properties": {**SCHEMA["properties"], "reply": {"type": "string"}}}
    with serving(json_close=True) as server, httpx.Client(base_url=server.url) as http:
        for prompts in (["a", "b" * 970], ["b" * 970, "a"]):
            answer = ask(http, COMPLETIONS, prompt=prompts, json_schema=wordy, max_tokens=900, seed=1)
            assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["stop", "stop"]


def test_json_compact_can_be_switched_off() -> None:
    schema = json_schema({"type": "array", "items": {"const": 1}, "minItems": 4, "maxItems": 4})
    for compact in (True, False):
        with serving(json_compact=compact) as server, httpx.Client(base_url=server.url) as http:
            text = text_of(ask(http, response_format=schema, temperature=1.5))
            assert (text == "[1,1,1,1]") == compact
            assert json.loads(text) == [1] * 4


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_a_schema_that_is_nested_too_deep_is_400(http: httpx.Client, depth: int) -> None:
    form = (
        '{"type":"json_schema","json_schema":{"name":"x","schema":' + '{"items":' * depth + "true" + "}" * depth + "}}"
    )
    body = '{"messages":[{"role":"user","content":"x"}],"response_format":' + form + "}"
    answer = http.post(CHAT, content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["message"]
