"""Completions, embeddings, models, tokens, documentation."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from llm_local.engine.types import SamplingParams
from tests.fakes import END, expected_tokens
from tests.server.conftest import FakeEmbeddings, Served, serving


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True) as it:
        yield it


def continuation(prompt: str, max_tokens: int, **params: Any) -> str:
    tokens = expected_tokens(tuple(prompt.encode()), SamplingParams(**params), max_tokens)
    return "".join(chr(token) for token in tokens if token != END)


def test_a_completion_continues_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="Жили-были", max_tokens=9, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == continuation("Жили-были", 9, temperature=0.0)


def test_prompts_of_all_four_kinds(client: openai.OpenAI) -> None:
    one = continuation("ab", 5, temperature=0.0)
    two = continuation("cd", 5, temperature=0.0)
    fields: dict[str, Any] = {"model": "fake", "max_tokens": 5, "temperature": 0}
    for prompt, texts in (
        ("ab", [one]),
        (["ab", "cd"], [one, two]),
        ([97, 98], [one]),
        ([[97, 98], [99, 100]], [one, two]),
    ):
        answer = client.completions.create(prompt=prompt, **fields)  # type: ignore[arg-type]
        assert [choice.text for choice in answer.choices] == texts
        assert [choice.index for choice in answer.choices] == list(range(len(texts)))


def test_streamed_completions_of_several_prompts(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    # OpenAI's own chunks have a null finish_reason, too, which the SDK's strict type of a completion does not allow.
    client = client.copy(_extra_kwargs={"_strict_response_validation": False})
    for chunk in client.completions.create(
        model="fake", prompt=["ab", "cd"], max_tokens=5, temperature=0, stream=True, echo=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {n: p + continuation(p, 5, temperature=0.0) for n, p in enumerate(("ab", "cd"))}


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_the_prompt(http: httpx.Client, stream: bool) -> None:
    body = {"prompt": "abcdef", "max_tokens": 0, "echo": True, "logprobs": 2, "stream": stream}
    answer = http.post("/v1/completions", json=body)
    if stream:
        first = answer.text.split("\n")[0].removeprefix("data: ")
        choice = json.loads(first)["choices"][0]
    else:
        choice = answer.json()["choices"][0]
    assert choice["text"] == "abcdef"
    scores = choice["logprobs"]
    assert scores["tokens"] == list("abcdef")
    assert scores["token_logprobs"][0] is None
    assert all(value < 0 for value in scores["token_logprobs"][1:])
    assert scores["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert scores["top_logprobs"][0] is None
    assert len(scores["top_logprobs"][1]) in (2, 3)


def test_offsets_of_echoed_text_count_characters(http: httpx.Client) -> None:
    body = {"prompt": "яb", "max_tokens": 3, "echo": True, "logprobs": 0, "temperature": 0}
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    scores = choice["logprobs"]
    assert scores["text_offset"][:4] == [0, 0, 1, 2] or scores["text_offset"][0] == 0
    assert scores["text_offset"] == sorted(scores["text_offset"])


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", [None, ["\n\n", "zzzz", "abcdefgh"]])
def test_offsets_are_the_same_when_streamed_and_text_is_held_back(
    http: httpx.Client, echo: bool, stop: list[str] | None
) -> None:
    body = {"prompt": "яb", "max_tokens": 60, "echo": echo, "logprobs": 1, "temperature": 0, "stop": stop}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]
    offsets: list[int] = []
    tokens: list[str] = []
    for line in http.post("/v1/completions", json={**body, "stream": True}).text.split("\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                offsets += choice["logprobs"]["text_offset"] if choice["logprobs"] else []
                tokens += choice["logprobs"]["tokens"] if choice["logprobs"] else []
    assert tokens == whole["logprobs"]["tokens"]
    assert offsets == whole["logprobs"]["text_offset"]
    assert len(set(offsets)) > 20


def test_best_of_returns_the_likeliest(http: httpx.Client) -> None:
    fields = {"prompt": "abc", "max_tokens": 6, "seed": 3, "temperature": 1}
    every = http.post("/v1/completions", json={**fields, "n": 4, "logprobs": 0}).json()["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in every]
    best = http.post("/v1/completions", json={**fields, "n": 1, "best_of": 4}).json()["choices"]
    assert [choice["text"] for choice in best] == [every[means.index(max(means))]["text"]]
    assert best[0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [300]}, "prompt.0"),
        ({"prompt": [[1], [300]]}, "prompt.1.0"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "a", "best_of": 50}, "best_of"),
        ({"prompt": "a", "n": 50}, "n"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": ["a"] * 400}, "prompt"),
    ],
)
def test_wrong_completions_are_400(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_biases_are_read_once_however_many_prompts_there_are() -> None:
    with serving(join=True) as served:
        vocabulary, keys = served.runtime.loaded.model.vocabulary, []
        real = vocabulary.tokenize

        def noting(text: str, **options: Any) -> list[int]:
            keys.append(text)
            return real(text, **options)

        vocabulary.tokenize = noting
        body = {"prompt": ["a"] * 50, "max_tokens": 1, "logit_bias": {"да": 1, "нет": False}}
        assert httpx.post(served.url + "/v1/completions", json=body).status_code == 200
    assert sorted(key for key in keys if key != "a") == ["да", "нет"]


def test_embeddings_as_floats_and_as_base64(client: openai.OpenAI, http: httpx.Client) -> None:
    answer = client.embeddings.create(model="fake", input=["да", "нет"], encoding_format="float")
    again = http.post("/v1/embeddings", json={"input": ["да", "нет"], "encoding_format": "base64"}).json()
    for item, other in zip(answer.data, again["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        assert np.array_equal(np.float32(item.embedding), decoded), "the same float32, in as few digits as it takes"
        assert abs(np.linalg.norm(decoded) - 1) < 1e-6
    assert answer.usage.prompt_tokens == len("данет".encode())
    # The SDK's default is base64, which it decodes itself (and its own strict validation refuses).
    relaxed = client.copy(_extra_kwargs={"_strict_response_validation": False})
    assert len(relaxed.embeddings.create(model="fake", input="да").data[0].embedding) == 8


def test_dimensions_truncate_and_renormalise(client: openai.OpenAI) -> None:
    full = np.array(client.embeddings.create(model="fake", input="да", encoding_format="float").data[0].embedding)
    cut = np.array(
        client.embeddings.create(model="fake", input="да", dimensions=3, encoding_format="float").data[0].embedding
    )
    assert np.allclose(cut, full[:3] / np.linalg.norm(full[:3]), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": [300]}, "input.0"),
        ({"input": "a", "dimensions": 9}, "dimensions"),
        ({"input": "a" * 65}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_wrong_embeddings_are_400(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_embeddings_have_a_queue_and_a_deadline() -> None:
    class Stuck(FakeEmbeddings):
        async def embed(self, inputs: list[list[int]]) -> list[np.ndarray]:
            await asyncio.sleep(30)
            return []

    async def scenario(url: str) -> list[int]:
        async with httpx.AsyncClient(base_url=url) as http:
            posts = [http.post("/v1/embeddings", json={"input": "a"}) for _ in range(6)]
            return sorted(answer.status_code for answer in await asyncio.gather(*posts))

    with serving(embeddings=Stuck(), queue_max=2, request_timeout=0.15) as served:
        assert asyncio.run(scenario(served.url)) == [429, 429, 429, 504, 504, 504]


def test_models_are_listed_and_found_by_alias(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "fake"
    found = client.models.retrieve("alias")
    assert found.id == "fake"
    assert found.model_extra["context_window"] == 1024
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_any_name_finds_the_model_where_any_name_is_served() -> None:
    with serving(model_aliases="*") as served:
        assert httpx.get(f"{served.url}/v1/models/gpt-4o").json()["id"] == "fake"
        assert httpx.get(f"{served.url}/v1/models/fake").json()["id"] == "fake"


def test_an_empty_suffix_is_none_where_nothing_can_be_filled_in(http: httpx.Client) -> None:
    body = {"prompt": "abc", "max_tokens": 5, "temperature": 0}
    with_suffix = http.post("/v1/completions", json={**body, "suffix": ""}).json()
    assert with_suffix["choices"] == http.post("/v1/completions", json=body).json()["choices"]


def test_tokenize_and_back(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"content": "да"}).json()["tokens"]
    assert tokens == list("да".encode())
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"content": "да"}
    pieces = http.post("/tokenize", json={"content": "a", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": 97, "piece": "a"}]
    assert http.post("/detokenize", json={"tokens": [999]}).status_code == 400
    many = http.post("/detokenize", json={"tokens": [97] * (2**17 + 1)})
    assert (many.status_code, many.json()["error"]["param"]) == (400, "tokens")
    many = http.post("/tokenize", json={"content": "a" * (2**17 + 1), "with_pieces": True})
    assert (many.status_code, many.json()["error"]["param"]) == (400, "content")
    assert http.post("/tokenize", json={"content": "<" * 20000}).json()["error"]["param"] == "content"
    assert http.post("/tokenize", json={"content": "<" * 20000, "parse_special": False}).status_code == 200


def test_openai_routes_are_served_without_v1_too(http: httpx.Client) -> None:
    assert http.get("/models").status_code == 200
    assert (
        http.post(
            "/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        ).status_code
        == 200
    )


def test_metrics_count_what_answers_cost(http: httpx.Client) -> None:
    def values() -> dict[str, float]:
        text = http.get("/metrics").text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def ask(**fields: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 40, **fields}
        answer = http.post("/v1/chat/completions", json=body)
        if fields.get("stream"):
            return {}
        return answer.json()["usage"]

    ask()
    before = values()
    plain, forced = ask(max_tokens=5), ask(guided_choice=["a long answer"], n=2)
    ask(stream=True, max_tokens=3, ignore_eos=True)
    after = values()

    def grown(name: str) -> float:
        return after[f"llm_local_{name}"] - before.get(f"llm_local_{name}", 0)

    assert grown("generated_tokens_total") == plain["completion_tokens"] + forced["completion_tokens"] + 3
    assert grown("prompt_tokens_total") == 2 * plain["prompt_tokens"] + forced["prompt_tokens"]
    assert (
        grown("cached_prompt_tokens_total")
        == sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in (plain, forced))
        + plain["prompt_tokens"]
        - 1
    )
    assert grown("forced_tokens_total") == forced["completion_tokens"] == 2 * len("a long answer")
    assert grown("grammar_seconds_count") == 2
    assert grown("generation_seconds_count") == 4
    assert grown('answers_total{reason="stop"}') >= 2
    assert after["llm_local_sequences"] == 0
    assert http.get("/metrics").headers["content-type"].startswith("text/plain; version=")
