"""Structured output and tools on real weights: SmolLM2 always, Qwen2.5 when it is there."""

from __future__ import annotations

import asyncio
import datetime
import enum
import ipaddress
import json
import random
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from llm_local.engine.constraint import ConstraintFailed
from llm_local.errors import InvalidGrammar, InvalidSchema
from llm_local.llama.grammar import LlamaConstraint, LlamaGrammars
from llm_local.llama.model import LlamaModel
from llm_local.structured.native import NativeEngine
from llm_local.structured.schema import canonical
from tests.examples import examples, few
from tests.model.conftest import Process, served
from tests.structured.test_json_schema import CASES, DOCUMENTS, compact
from tests.structured.test_members import CASES as MEMBERS
from tests.structured.test_regular import ANCHORED, LETTERS
from tests.structured.test_regular import CASES as EXPRESSIONS

pytestmark = pytest.mark.model

TURN = {
    "type": "object",
    "properties": {
        "reply": {"type": "string"},
        "next_node_id": {"type": "string", "maxLength": 20},
        "scoring_update": {
            "type": "object",
            "properties": {
                "block": {"type": "string", "maxLength": 20},
                "delta": {"type": "number", "minimum": -5, "maximum": 5},
                "score": {"type": "integer", "minimum": 0, "maximum": 100},
            },
            "required": ["block", "delta", "score"],
            "additionalProperties": False,
        },
        "red_flags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["reply", "next_node_id", "scoring_update", "red_flags"],
    "additionalProperties": False,
}
INTERVIEWER = (
    "Ты — опытный интервьюер, который проводит собеседование на должность бизнес-аналитика в команде антифрода. "
    "Отвечай по-русски, коротко, в JSON с полями reply, next_node_id, scoring_update, red_flags. "
)


# -- the LlamaGrammar engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(smol: LlamaModel) -> NativeEngine:
    return NativeEngine(LlamaGrammars(smol), compact=True)


def accepts(constraint: LlamaConstraint, tokens: list[int]) -> bool:
    for token in tokens:
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return constraint.may_end


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[compact(case[0])[:70] for case in CASES])
def test_llama_grammar_enforces_the_whole_schema_or_refuses_it(
    native: NativeEngine, smol: LlamaModel, schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    try:
        compiled = native.json(canonical(schema))
    except InvalidSchema:
        return
    for value in invalid:
        tokens = smol.tokenize(compact(value), add_special=False, parse_special=False)
        assert not accepts(compiled.start(), tokens), value


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "integer", "minimum": 1}, "minimum"),
        ({"type": "number", "multipleOf": 2}, "multipleOf"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patternProperties"),
        ({"type": "object", "maxProperties": 1}, "maxProperties"),
        ({"type": "string", "pattern": "a|b"}, "pattern"),
        ({"type": "string", "format": "date"}, "format"),
        ({"type": "string", "maxLength": 100_000}, "maxLength"),
        ({"allOf": [{"type": "string"}, {"maxLength": 3}]}, "allOf"),
    ],
)
def test_what_llama_grammar_would_loosen_is_refused_by_name(native: NativeEngine, schema: Any, keyword: str) -> None:
    with pytest.raises(InvalidSchema, match=f"#/{keyword}"):
        native.json(canonical(schema))


@pytest.mark.parametrize(("schema", "valid", "invalid"), MEMBERS, ids=[compact(case[0])[:60] for case in MEMBERS])
def test_llama_grammar_admits_all_that_is_valid(
    native: NativeEngine, smol: LlamaModel, schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    compiled = native.json(canonical(schema))

    def admits(value: Any) -> bool:
        return accepts(compiled.start(), smol.tokenize(compact(value), add_special=False, parse_special=False))

    assert [value for value in valid if not admits(value)] == []
    assert [value for value in invalid if admits(value)] == []


def test_llama_grammar_admits_what_it_should_and_no_control_characters(native: NativeEngine, smol: LlamaModel) -> None:
    schema = {
        "type": "object",
        "properties": {"имя": {"type": "string", "maxLength": 10}, "tags": {"type": "array", "items": {"enum": ["a"]}}},
        "required": ["имя", "tags"],
    }
    compiled = native.json(canonical(schema))

    def admits(text: str) -> bool:
        return accepts(compiled.start(), smol.tokenize(text, add_special=False, parse_special=False))

    assert admits('{"имя":"Аня \\n","tags":["a","a"]}')
    assert not admits('{"имя":"Аня\n","tags":[]}')
    assert not admits('{"имя":"12345678901","tags":[]}')
    assert not admits('{"имя":"Аня"}')


def test_control_tokens_are_no_characters_of_a_string(native: NativeEngine, smol: LlamaModel) -> None:
    """llama.cpp takes them for the text of their names, of which nothing comes out."""
    quote, *_ = smol.tokenize('"', add_special=False)
    (control,) = smol.tokenize("<|im_start|>", add_special=False)
    constraint = native.json(canonical({"type": "string", "minLength": 5})).start()
    constraint.accept(quote)
    assert not constraint.allows(control)
    assert not constraint.allowed()[control]
    named = native.gbnf('root ::= <|im_start|> "x"').start()
    assert named.allows(control), "but a grammar may name them"


def test_a_llama_constraint_moves_on_by_text(native: NativeEngine) -> None:
    compiled = native.json(canonical({"type": "array", "items": {"enum": ["да", 1]}}))
    constraint = compiled.start()
    assert constraint.feed('["да",1'.encode())
    assert not constraint.may_end
    assert constraint.feed(b"]")
    assert constraint.may_end
    assert not compiled.start().feed(b"[2")


def test_a_llama_constraint_knows_what_a_stop_string_left(native: NativeEngine) -> None:
    constraint = native.regex("ab(cd)?").start()
    assert constraint.feed(b"abcd")
    assert constraint.completes("ab")
    assert not constraint.completes("abc")
    assert not constraint.completes("")


@given(document=DOCUMENTS, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_llama_grammar_lets_through_is_valid(
    native: NativeEngine, smol: LlamaModel, document: Any, seed: int
) -> None:
    try:
        compiled = native.json(canonical(document))
    except InvalidSchema:
        return
    choose = random.Random(seed)
    constraint, text = compiled.start(), b""
    for step in range(40):
        if constraint.may_end and choose.random() < 0.7:
            break
        try:
            ids = constraint.allowed().nonzero()[0]
        except ConstraintFailed:
            return
        short = [int(token) for token in ids if len(smol.piece(int(token))) == 1]
        closing = [token for token in short if smol.piece(token) in (b'"', b"}", b"]")]
        token = choose.choice(closing if closing and choose.random() < step / 20 else short or list(map(int, ids)))
        if token in smol.end_tokens:
            break
        constraint.accept(token)
        text += smol.piece(token)
    else:
        return
    judge = jsonschema.Draft202012Validator(document, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    judge.validate(json.loads(text))


@given(data=st.data(), pair=ANCHORED, texts=st.lists(st.text(LETTERS, max_size=6), max_size=4))
@examples(40)
def test_llama_grammar_takes_what_python_matches_as_a_whole(
    native: NativeEngine, smol: LlamaModel, data: st.DataObject, pair: tuple[str, str], texts: list[str]
) -> None:
    pattern, judged = pair
    judge = re.compile(judged)
    own = data.draw(st.from_regex(judge, fullmatch=True, alphabet=LETTERS), "matching")
    compiled = native.regex(pattern)
    for text in [*texts, *([own, own[:-1], own + "a"] if len(own) < 20 else [])]:
        tokens = smol.tokenize(text, add_special=False, parse_special=False)
        assert accepts(compiled.start(), tokens) == (judge.fullmatch(text) is not None), text


@pytest.mark.parametrize(("pattern", "matching", "others"), EXPRESSIONS, ids=[case[0] for case in EXPRESSIONS])
def test_llama_grammar_takes_what_a_regular_expression_matches(
    native: NativeEngine, smol: LlamaModel, pattern: str, matching: list[str], others: list[str]
) -> None:
    compiled = native.regex(pattern)

    def admits(text: str) -> bool:
        return accepts(compiled.start(), smol.tokenize(text, add_special=False, parse_special=False))

    assert [admits(text) for text in matching] == [True] * len(matching)
    assert [admits(text) for text in others] == [False] * len(others)


def test_llama_grammar_takes_the_choices_and_no_others(native: NativeEngine, smol: LlamaModel) -> None:
    choices = ["да", "a|b", 'x"\\y', "да, конечно", "[a-z]", "строка\nдва", *(f"код-{n}" for n in range(500))]
    compiled = native.choice(choices)
    for text, good in [*((text, True) for text in choices[:9]), ("a", False), ("код-", False), ("код-500", False)]:
        assert accepts(compiled.start(), smol.tokenize(text, add_special=False, parse_special=False)) == good, text


def test_gbnf_that_llama_cpp_cannot_parse_is_refused(native: NativeEngine) -> None:
    with pytest.raises(InvalidGrammar, match="cannot parse"):
        native.gbnf('root ::= "\\q"')


@pytest.fixture(scope="module")
def native_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with served(tmp_path_factory.mktemp("native"), "--ctx", "2048", "--grammar-engine", "llama") as process:
        yield process


def test_the_llama_engine_serves_schemas_and_grammars_and_names_what_it_refuses(native_server: Process) -> None:
    with httpx.Client(base_url=native_server.url, timeout=60) as http:

        def ask(**fields: Any) -> httpx.Response:
            return http.post("/v1/completions" if "prompt" in fields else "/v1/chat/completions", json=fields)

        person = {
            "type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "adult": {"type": "boolean"}},
            "required": ["name", "adult"], "additionalProperties": False,
        }  # fmt: skip
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": person}}
        messages = [{"role": "user", "content": "Anna is 31."}]
        for seed in range(5):
            choice = ask(messages=messages, response_format=form, seed=seed, max_tokens=60).json()["choices"][0]
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), person)
        answer = ask(prompt="x", grammar='root ::= ("да" | "нет") "!"', max_tokens=20).json()["choices"][0]
        assert (answer["text"] in ("да!", "нет!"), answer["finish_reason"]) == (True, "stop")
        assert ask(prompt="x", guided_choice=["a|b", "c\\d"], max_tokens=40).json()["choices"][0]["text"] in (
            "a|b",
            "c\\d",
        )
        bounded = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer", "minimum": 3}}}
        refused = ask(messages=messages, response_format=bounded).json()["error"]
        assert (refused["code"], refused["param"]) == ("invalid_json_schema", "response_format.json_schema.schema")
        assert "#/minimum" in refused["message"]
        text = ask(prompt="x", guided_regex=r"[А-Я][а-я]{2,9}(, [а-я]+){1,2}\\.", max_tokens=90).json()["choices"][0]
        assert text["finish_reason"] == "length" or re.fullmatch(r"[А-Я][а-я]{2,9}(, [а-я]+){1,2}\\.", text["text"])
        assert ask(prompt="x", guided_regex="(?:да|нет){2}", max_tokens=40).json()["choices"][0]["text"] in (
            "дада",
            "данет",
            "нетда",
            "нетнет",
        )
        look_ahead = ask(prompt="x", guided_regex="да(?=нет)").json()["error"]
        assert (look_ahead["code"], look_ahead["param"]) == ("invalid_grammar", "guided_regex")
        assert "look-around" in look_ahead["message"]
    assert native_server.process.poll() is None


def test_the_llama_engine_makes_calls_in_the_generic_dialect(native_server: Process) -> None:
    """SmolLM2's template knows nothing of tools, and its vocabulary has no token for their marks."""
    plain = json.loads(json.dumps(WEATHER).replace('"strict": true', '"strict": false'))
    with openai.OpenAI(base_url=f"{native_server.url}/v1", api_key="x", max_retries=0, timeout=60) as client:
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            made = client.chat.completions.create(
                model="smollm2-135m-instruct", messages=[{"role": "user", "content": "Hello!"}], tools=[plain],
                tool_choice=choice, parallel_tool_calls=False, temperature=1.2, seed=3, max_tokens=120,
            ).choices[0]  # fmt: skip
            assert made.finish_reason == "tool_calls"
            assert made.message.content is None
            jsonschema.validate(
                json.loads(made.message.tool_calls[0].function.arguments), plain["function"]["parameters"]
            )


# -- Qwen2.5 --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closing_server(tmp_path_factory: pytest.TempPathFactory, qwen_path: Path) -> Iterator[Process]:
    arguments = ["--model", str(qwen_path), "--ctx", "8192", "--parallel", "4", "--json-close", "true"]
    with served(tmp_path_factory.mktemp("closing"), *arguments) as process:
        yield process


def bounded(schema: Any) -> Any:
    """Return a schema whose texts have ends, so that 512 tokens are always enough for an answer."""
    if isinstance(schema, list):
        return [bounded(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "string":
        return {"maxLength": 100, **schema}
    return {key: bounded(value) for key, value in schema.items()}


@pytest.mark.parametrize(("server", "schema", "max_tokens"), [
    ("closing_server", TURN, 96),
    ("qwen_server", bounded(TURN), 512),
], ids=["turns of 96 tokens, closed", "512 tokens"])  # fmt: skip
def test_the_interviewer_gets_valid_json_four_at_a_time(
    request: pytest.FixtureRequest, server: str, schema: Any, max_tokens: int
) -> None:
    """At temperature 1.0, streamed and not; 200 times of each kind with LLM_LOCAL_TEST_THOROUGH=1."""
    process: Process = request.getfixturevalue(server)

    async def scenario() -> None:
        limit = asyncio.Semaphore(4)
        async with openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0, timeout=300) as client:

            async def one(number: int) -> None:
                fields: dict[str, Any] = {
                    "model": "qwen2.5-coder-0.5b-instruct",
                    "messages": [
                        {"role": "system", "content": INTERVIEWER * 4},
                        {"role": "user", "content": f"Кандидат: «Мы внедрили правило {number}». Задай вопрос."},
                    ],
                    "temperature": 1.0, "max_tokens": max_tokens, "seed": number,
                    "response_format": {"type": "json_schema", "json_schema": {"name": "turn", "schema": schema}},
                }  # fmt: skip
                async with limit:
                    if number % 2:
                        chunks = [c async for c in await client.chat.completions.create(**fields, stream=True)]
                        text = "".join(c.choices[0].delta.content or "" for c in chunks)
                        reason = chunks[-1].choices[0].finish_reason
                    else:
                        answer = await client.chat.completions.create(**fields)
                        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
                assert reason == "stop"
                jsonschema.validate(json.loads(text), schema)

            await asyncio.gather(*[one(number) for number in range(few(20))])

    asyncio.run(scenario())


class Colour(enum.Enum):
    RED = "красный"
    BLUE = "синий"


class Point(BaseModel):
    x: int
    y: int


class Tree(BaseModel):
    label: Annotated[str, Field(max_length=10)]
    children: Annotated[list[Tree], Field(max_length=1)]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: Annotated[list[Annotated[str, Field(max_length=10)]], Field(max_length=2)]


Short = Annotated[str, Field(max_length=15)]

FIELDS: dict[str, Any] = {
    "string": Short,
    "integer": int,
    "bounded": Annotated[int, Field(ge=0, le=10)],
    "exclusive": Annotated[float, Field(gt=0, lt=1)],
    "multiple": Annotated[int, Field(multiple_of=5, ge=0, le=100)],
    "number": Annotated[float, Field(ge=-5, le=5)],
    "boolean": bool,
    "optional": Short | None,
    "enum": Colour,
    "literal": Literal["да", "нет", 3],
    "list": Annotated[list[Annotated[int, Field(ge=0, le=99)]], Field(min_length=1, max_length=3)],
    "nested": Point,
    "list of nested": Annotated[list[Point], Field(max_length=2)],
    "recursive": Tree,
    "union": Point | Colour,
    "tagged": Annotated[Cat | Dog, Field(discriminator="kind")],
    "pattern": Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3}$")],
    "cyrillic pattern": Annotated[str, Field(pattern=r"^[А-Я][а-я]{2,8}$")],
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "uuid": uuid.UUID,
    "duration": datetime.timedelta,
    "tuple": tuple[Annotated[int, Field(ge=0, le=9)], bool],
    "map": Annotated[dict[Annotated[str, Field(pattern="^[a-z]{1,5}$")], Annotated[int, Field(ge=0, le=9)]],
                     Field(max_length=1)],
    "set of enum": set[Colour],
    "min length": Annotated[str, Field(min_length=3, max_length=6)],
    "ip": ipaddress.IPv4Address,
    "number or null": Annotated[float, Field(ge=0, le=1)] | None,
    "list of unions": Annotated[list[Annotated[int, Field(ge=0, le=9)] | bool], Field(max_length=3)],
}  # fmt: skip


def test_there_are_thirty_of_them() -> None:
    assert len(FIELDS) == 30


@pytest.mark.parametrize("name", FIELDS)
def test_pydantic_models_are_parsed_by_the_sdk(qwen_server: Process, name: str) -> None:
    """(An answer of the recursive one may go on for ever; how steps are cut, and so which one it is, goes by time.)"""
    model = pydantic.create_model("Answer", value=(FIELDS[name], ...), note=(Short, ...))
    with openai.OpenAI(base_url=f"{qwen_server.url}/v1", api_key="x", max_retries=0, timeout=120) as client:
        seeds = [7, 8, 9] if name == "recursive" else [7]
        for seed in seeds:
            try:
                answer = client.chat.completions.parse(
                    model="qwen2.5-coder-0.5b-instruct",
                    messages=[{"role": "user", "content": f"Придумай пример: {name}. Ответь коротко, в JSON."}],
                    response_format=model,
                    temperature=1.0,
                    seed=seed,
                    max_tokens=300,
                )
            except openai.LengthFinishReasonError:
                if seed == seeds[-1]:
                    raise
            else:
                assert isinstance(answer.choices[0].message.parsed, model)
                return


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Returns the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


def test_a_tool_makes_the_round_trip(qwen_server: Process) -> None:
    """Called, its result given back, answered; through the SDK's streaming helper."""
    with openai.OpenAI(base_url=f"{qwen_server.url}/v1", api_key="x", max_retries=0, timeout=120) as client:
        talk: list[Any] = [{"role": "user", "content": "What is the weather in Moscow, in celsius? Use the tool."}]
        with client.chat.completions.stream(
            model="qwen2.5-coder-0.5b-instruct", messages=talk, tools=[WEATHER], temperature=0
        ) as stream:
            choice = stream.get_final_completion().choices[0]
        assert choice.finish_reason == "tool_calls"
        call = choice.message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather"
        assert set(arguments) == {"city", "unit"}
        assert "tool_call" not in (choice.message.content or "")
        talk += [
            choice.message.model_dump(exclude_none=True, exclude={"parsed"}),
            {"role": "tool", "tool_call_id": call.id, "content": "-17 °C, snow"},
        ]
        for message in talk:
            for made in message.get("tool_calls", []):
                made["function"].pop("parsed_arguments", None)
        final = client.chat.completions.create(
            model="qwen2.5-coder-0.5b-instruct", messages=talk, tools=[WEATHER], tool_choice="none", temperature=0
        )
        assert "17" in final.choices[0].message.content


@pytest.fixture(scope="module")
def native_qwen_server(tmp_path_factory: pytest.TempPathFactory, qwen_path: Path) -> Iterator[Process]:
    # With one thread nothing waits for a busy neighbour.
    arguments = ["--model", str(qwen_path), "--ctx", "4096", "--parallel", "4", "--grammar-engine", "llama"]
    arguments += ["--threads", "1"]
    with served(tmp_path_factory.mktemp("native-qwen"), *arguments) as process:
        yield process


NOW: Any = {"type": "function", "function": {"name": "now", "parameters": {
    "type": "object", "properties": {"zone": {"enum": ["UTC", "MSK"]}}, "required": ["zone"],
    "additionalProperties": False}}}  # fmt: skip


def test_tools_work_on_llama_grammar_alone(native_qwen_server: Process) -> None:
    """In `auto` once a call is opened, in `required` and named from the first token; streamed and not."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, NOW)}
    asked = [{"role": "user", "content": "What is the weather in Moscow, in celsius? Use the tool."}]
    joke = [{"role": "user", "content": "Расскажи анекдот."}]
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        ("auto", asked, {"temperature": 0}),
        ("required", joke, {"temperature": 1.3, "n": 2, "parallel_tool_calls": False}),
        ({"type": "function", "function": {"name": "now"}}, joke, {"temperature": 1.3, "n": 2}),
    ]
    with openai.OpenAI(base_url=f"{native_qwen_server.url}/v1", api_key="x", max_retries=0, timeout=120) as client:
        for choice, messages, more in cases:
            fields = {"model": "qwen2.5-coder-0.5b-instruct", "messages": messages, "tools": [WEATHER, NOW],
                      "tool_choice": choice, "max_tokens": 300, **more}  # fmt: skip
            made = client.chat.completions.create(**fields).choices
            with client.chat.completions.stream(**{**fields, "n": 1}) as stream:
                made += stream.get_final_completion().choices
            for one in made:
                assert one.finish_reason == "tool_calls"
                assert "tool_call" not in (one.message.content or "")
                for call in one.message.tool_calls:
                    jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_is_made_at_any_temperature(qwen_server: Process, choice: Any) -> None:
    with openai.OpenAI(base_url=f"{qwen_server.url}/v1", api_key="x", max_retries=0, timeout=120) as client:
        answer = client.chat.completions.create(
            model="qwen2.5-coder-0.5b-instruct",
            messages=[{"role": "user", "content": "Расскажи анекдот."}],
            tools=[WEATHER],
            tool_choice=choice,
            temperature=1.3,
            n=4,
            parallel_tool_calls=False,
            max_tokens=200,
        )
        for made in answer.choices:
            assert made.finish_reason == "tool_calls"
            assert made.message.content is None
            arguments = json.loads(made.message.tool_calls[0].function.arguments)
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])
