"""Chat over a real socket, read with the OpenAI client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from llm_local.config import Settings
from llm_local.engine.types import SamplingParams
from llm_local.server.generation import sampling_params
from llm_local.server.schema import ChatRequest
from tests.fakes import END, expected_tokens
from tests.server.conftest import ByteVocabulary, Served

GREEDY = {"temperature": 0}
MESSAGES: list[Any] = [{"role": "user", "content": "Привет"}]
PROMPT = "<|im_start|>user\nПривет<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as it:
        yield it


def expected_text(prompt: str, max_tokens: int, **params: Any) -> str:
    tokens = expected_tokens(tuple(prompt.encode()), SamplingParams(**params), max_tokens)
    return "".join(chr(token) for token in tokens if token != END)


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def test_an_answer_is_typed_and_is_what_the_model_says(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=20, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == expected_text(PROMPT, 20, temperature=0.0)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == len(PROMPT.encode())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint.startswith("fp_")


def test_streaming_and_not_streaming_give_the_same_text(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alias", "messages": MESSAGES, "max_tokens": 40, "seed": 5, "temperature": 1}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks][-1] == whole.choices[0].finish_reason
    assert len({(c.id, c.created) for c in chunks}) == 1
    assert chunks[-1].choices[0].delta.content is None


def test_usage_comes_in_a_last_chunk_when_asked_for(http: httpx.Client) -> None:
    body = {"messages": MESSAGES, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(answer.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] <= 4
    assert all(chunk["usage"] is None for chunk in chunks)


def test_n_choices_differ_and_the_prompt_counts_once(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=10, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for index, choice in enumerate(answer.choices):
        assert choice.message.content == expected_text(PROMPT, 10, seed=1 + index)
    assert answer.usage.prompt_tokens == len(PROMPT.encode())


def test_n_choices_stream_side_by_side(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    stream = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=10, n=2, seed=1, stream=True)
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {index: expected_text(PROMPT, 10, seed=1 + index) for index in (0, 1)}


def test_logprobs_are_of_the_sampled_tokens_and_their_bytes_join_to_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=MESSAGES, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == answer.choices[0].message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0 + 1e-6


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    whole = expected_text(PROMPT, 30, temperature=0.0)
    stop = whole[5:8]
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=30, temperature=0, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_zero_is_allowed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=0)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "length")


def test_a_second_request_finds_its_prompt_in_the_cache(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "a prompt of its own, long enough to see"}]
    first = client.chat.completions.create(model="fake", messages=messages, max_tokens=2)
    again = client.chat.completions.create(model="fake", messages=messages, max_tokens=2)
    fresh = client.chat.completions.create(
        model="fake", messages=messages, max_tokens=2, extra_body={"cache_prompt": False}
    )
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    assert fresh.usage.prompt_tokens_details.cached_tokens == 0


def test_continue_final_message_leaves_the_last_turn_open(http: httpx.Client) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Здравст"}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    shown = http.post("/apply-template", json=fields).json()["prompt"]
    assert shown == "<|im_start|>user\nПривет<|im_end|>\n<|im_start|>assistant\nЗдравст"
    answer = http.post("/v1/chat/completions", json={**fields, "max_tokens": 8, "temperature": 0}).json()
    assert answer["choices"][0]["message"]["content"] == expected_text(shown, 8, temperature=0.0)


def test_roles_and_parts_become_what_the_template_shows(http: httpx.Client) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Будь"}, {"type": "text", "text": "краток"}]},
        {"role": "user", "content": "a", "name": None},
        {"role": "assistant", "content": None, "refusal": "нет", "annotations": []},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    prompt = http.post("/apply-template", json={"messages": messages}).json()["prompt"]
    assert prompt == (
        "<|im_start|>system\nБудь\nкраток<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\nнет<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_null_is_the_same_as_leaving_out(http: httpx.Client) -> None:
    names = [
        "max_tokens",
        "temperature",
        "stop",
        "n",
        "logit_bias",
        "tools",
        "response_format",
        "stream",
        "seed",
        "user",
    ]
    answer = http.post(
        "/v1/chat/completions", json={"messages": MESSAGES, **dict.fromkeys(names), "max_completion_tokens": 3}
    )
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= 3


def test_harmless_fields_are_accepted(http: httpx.Client) -> None:
    body = {
        "messages": MESSAGES, "max_tokens": 1, "user": "u", "metadata": {"a": "b"}, "store": True,
        "service_tier": "auto",
        "prompt_cache_key": "k", "safety_identifier": "s", "reasoning_effort": "low", "verbosity": "low",
        "modalities": ["text"], "audio": {"voice": "x"}, "response_format": {"type": "text"}, "tool_choice": "none",
        "prediction": {"type": "content", "content": "abc"}, "parallel_tool_calls": True,
    }  # fmt: skip
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_cyrillic_is_not_escaped_and_ids_are_returned(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 3}, headers={"x-request-id": "abc-1"}
    )
    assert answer.headers["x-request-id"] == "abc-1"
    assert "\\u" not in http.post("/v1/chat/completions", json={"messages": MESSAGES, "model": "нет"}).text
    assert http.get("/health").headers["x-request-id"].startswith("req_")


def test_timings_and_progress_come_when_asked_for(http: httpx.Client) -> None:
    long = [{"role": "user", "content": "слово " * 60}]
    body = {"messages": long, "max_tokens": 3, "stream": True, "timings_per_token": True, "return_progress": True}
    chunks = [c for c in events(http.post("/v1/chat/completions", json=body).text) if c != "[DONE]"]
    progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert progress
    assert progress[0]["total"] > 600
    assert all("timings" in chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content"))


def test_a_bias_of_zero_changes_nothing_and_false_bans() -> None:
    vocabulary = ByteVocabulary()
    body = ChatRequest.model_validate({"messages": MESSAGES, "logit_bias": {"5": 0, "6": 0.0, "7": False, "8": -1}})
    params = sampling_params(body, Settings(), vocabulary, None)
    assert dict(params.logit_bias) == {5: 0, 6: 0, 7: float("-inf"), 8: -1}


@pytest.mark.parametrize("value", [False, True, 0.0, 3, "1"])
def test_mirostat_is_0_1_or_2(http: httpx.Client, value: Any) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": MESSAGES, "mirostat": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mirostat")


def test_logit_bias_takes_ids_text_and_false(http: httpx.Client) -> None:
    # The fake ignores biases; what is tested here is that they are understood and checked.
    ok = http.post(
        "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, "logit_bias": {"5": 3, "да": False}}
    )
    assert ok.status_code == 200
    for value in (True, None, "0", 101):
        wrong = http.post("/v1/chat/completions", json={"messages": MESSAGES, "logit_bias": {"5": value}})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "logit_bias.5")
    wrong = http.post("/v1/chat/completions", json={"messages": MESSAGES, "logit_bias": {"999": 1}})
    assert wrong.json()["error"]["param"] == "logit_bias.999"
