"""The whole product on real weights, read with the OpenAI client: SmolLM2 always, Qwen2.5 when it is there."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.model.conftest import Process, served

pytestmark = pytest.mark.model

MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
INTERVIEWER = (
    "Ты — опытный интервьюер, который проводит собеседование на должность бизнес-аналитика в команде антифрода. "
    "Задавай по одному вопросу, слушай ответ, уточняй детали и не повторяйся. Отвечай по-русски, вежливо и коротко. "
) * 4
TOPICS = ["проекты", "требования", "метрики", "отчёты", "риски", "платежи", "команда", "сроки"]


@pytest.fixture(scope="module")
def client(smol_server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{smol_server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    ) as it:
        yield it


def test_chat_streamed_and_not(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "smollm2-135m-instruct",
        "messages": MESSAGES,
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True))
    assert whole.choices[0].message.content
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert whole.usage.completion_tokens > 1


def test_completions_echo_and_scores(client: openai.OpenAI) -> None:
    # As with OpenAI, the first token of an echoed prompt has a null log probability, which the SDK's types forbid.
    relaxed = client.copy(_extra_kwargs={"_strict_response_validation": False})
    answer = relaxed.completions.create(
        model="smollm2-135m-instruct",
        prompt="Paris is the capital of",
        max_tokens=1,
        echo=True,
        logprobs=2,
        temperature=0,
    )
    choice = answer.choices[0]
    assert choice.text.startswith("Paris is the capital of")
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.text[choice.logprobs.text_offset[2] :].startswith(choice.logprobs.tokens[2])


def test_embeddings_of_the_chat_model(client: openai.OpenAI) -> None:
    data = client.embeddings.create(
        model="smollm2-135m-instruct", input=["a cat", "a kitten", "quarterly revenue"], encoding_format="float"
    ).data
    cat, kitten, revenue = (np.array(item.embedding) for item in data)
    assert abs(np.linalg.norm(cat) - 1) < 1e-5
    assert cat @ kitten > cat @ revenue


def test_an_input_without_tokens_is_refused_and_blocks_nobody(smol_server: Process) -> None:
    with httpx.Client(base_url=smol_server.url, timeout=20) as http:
        empty = http.post("/v1/embeddings", json={"input": "\u0004"})
        assert (empty.status_code, empty.json()["error"]["param"]) == (400, "input")
        assert http.post("/v1/embeddings", json={"input": "fine"}).status_code == 200


def test_an_echoed_control_token_is_spelled_out_in_logprobs(smol_server: Process) -> None:
    body = {"prompt": "<|im_start|>user\nhi", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    choice = httpx.post(smol_server.url + "/v1/completions", json=body, timeout=20).json()["choices"][0]
    scores = choice["logprobs"]
    assert scores["tokens"][0] == "<|im_start|>"
    assert "".join(scores["tokens"]) == choice["text"]
    assert scores["text_offset"][1] == len("<|im_start|>")


def test_models_and_errors(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nope", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096"):
        client.chat.completions.create(
            model="smollm2-135m-instruct", messages=[{"role": "user", "content": "word " * 6000}]
        )


def check_golden_prompts(server: Process, family: str) -> None:
    golden = Path(__file__).parent.parent / "chat" / "golden"
    for case in ("dialogue", "one_turn"):
        messages = json.loads((golden / "cases.json").read_text())[case]["messages"]
        prompt = httpx.post(server.url + "/apply-template", json={"messages": messages}).json()["prompt"]
        assert prompt == (golden / f"{family}.{case}.txt").read_text()


def test_the_templates_of_the_ggufs_render_their_golden_prompts(smol_server: Process) -> None:
    check_golden_prompts(smol_server, "smollm2")


def test_tokens_of_a_prompt_are_those_of_tokenize(smol_server: Process) -> None:
    with httpx.Client(base_url=smol_server.url) as http:
        prompt = http.post("/apply-template", json={"messages": MESSAGES}).json()["prompt"]
        tokens = http.post("/tokenize", json={"content": prompt}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json()["content"] == prompt
        usage = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1}, timeout=30).json()[
            "usage"
        ]
        assert usage["prompt_tokens"] == len(tokens)


def test_a_vocabulary_without_the_tokens_refuses_a_suffix(smol_server: Process) -> None:
    body = {"prompt": "a", "suffix": "b", "model": "SmolLM2-135M-Instruct.Q4_1"}
    special = httpx.post(smol_server.url + "/v1/completions", json=body, timeout=30)
    assert (special.status_code, special.json()["error"]["param"]) == (400, "suffix")


def storm(url: str, n: int, words: int = 12) -> None:
    """`n` clients at once, half of which leave; then the next request must be served."""

    async def scenario() -> None:
        limits = httpx.Limits(max_connections=n + 10)
        async with httpx.AsyncClient(base_url=url, timeout=240, limits=limits) as http:

            async def one(number: int) -> int:
                body = {
                    "messages": [{"role": "user", "content": f"{number}?"}],
                    "max_tokens": words,
                    "stream": number % 3 == 0,
                }
                if number % 2:
                    try:
                        await asyncio.wait_for(http.post("/v1/chat/completions", json=body), 0.05 + number % 11 * 0.1)
                    except TimeoutError:
                        return 0
                    return 1
                return (await http.post("/v1/chat/completions", json=body)).status_code

            results = await asyncio.gather(*[one(number) for number in range(n)])
            assert {status for status in results if status > 1} <= {200, 429}
            assert sum(status == 200 for status in results) >= n // 4
            last = await http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 4})
            assert last.status_code == 200

    asyncio.run(scenario())


def test_two_hundred_clients_half_of_which_leave(smol_server: Process) -> None:
    storm(smol_server.url, 200)
    assert smol_server.process.poll() is None
    assert "Traceback" not in smol_server.log.read_text()


# -- Qwen2.5: a vocabulary of 152k tokens, Russian ---------------------------------------------------------------


def test_eight_clients_in_russian_without_broken_characters(qwen_server: Process) -> None:
    async def scenario() -> list[tuple[str, Any]]:
        async with openai.AsyncOpenAI(
            base_url=f"{qwen_server.url}/v1", api_key="x", max_retries=0, timeout=300
        ) as client:

            async def one(topic: str) -> tuple[str, Any]:
                stream = await client.chat.completions.create(
                    model="qwen2.5-coder-0.5b-instruct",
                    messages=[
                        {"role": "system", "content": INTERVIEWER},
                        {"role": "user", "content": f"Спроси меня про {topic} 🙂"},
                    ],
                    max_tokens=40,
                    temperature=0.7,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                text, usage = "", None
                async for chunk in stream:
                    usage = chunk.usage or usage
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
                return text, usage

            return await asyncio.gather(*[one(topic) for topic in TOPICS])

    answers = asyncio.run(scenario())
    for text, _ in answers:
        assert "\ufffd" not in text
        assert sum("а" <= letter.lower() <= "я" for letter in text) > len(text) / 3
    # Together they computed the long prompt about once.
    cached = [usage.prompt_tokens_details.cached_tokens for _, usage in answers]
    prompt = answers[0][1].prompt_tokens
    assert sum(count > prompt // 2 for count in cached) >= 6


def test_embeddings_are_served_while_chat_runs(qwen_server: Process) -> None:
    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=qwen_server.url, timeout=300) as http:
            chat = asyncio.create_task(
                http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 60, "ignore_eos": True})
            )
            await asyncio.sleep(0.5)
            answer = await http.post("/v1/embeddings", json={"input": ["Привет, мир", "слово " * 300]})
            assert answer.status_code == 200
            assert not chat.done()
            assert (await chat).json()["usage"]["completion_tokens"] == 60

    asyncio.run(scenario())


def test_the_middle_is_filled_in(qwen_server: Process) -> None:
    body = {
        "prompt": "def add(a, b):\n    return ",
        "suffix": "\n\nprint(add(1, 2))\n",
        "max_tokens": 8,
        "temperature": 0,
    }
    text = httpx.post(qwen_server.url + "/v1/completions", json=body, timeout=120).json()["choices"][0]["text"]
    assert text.startswith("a + b")


def test_the_qwen_template_renders_its_golden_prompts(qwen_server: Process) -> None:
    check_golden_prompts(qwen_server, "qwen2")


def test_logprobs_of_cyrillic_join_to_the_text(qwen_server: Process) -> None:
    body = {
        "messages": [{"role": "user", "content": "Напиши: «Ёжик 🦔 ест яблоки»"}],
        "max_tokens": 24, "temperature": 0, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    choice = httpx.post(qwen_server.url + "/v1/chat/completions", json=body, timeout=120).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == choice["message"]["content"]
    for entry in content:
        assert entry["logprob"] == pytest.approx(entry["top_logprobs"][0]["logprob"])
        assert sum(math.exp(top["logprob"]) for top in entry["top_logprobs"]) <= 1.0001


def test_a_long_prompt_does_not_hold_up_a_running_answer(qwen_server: Process) -> None:
    """The chunks of a running answer keep coming while 1,500 tokens of another prompt are read."""

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=qwen_server.url, timeout=300) as http:
            body = {"messages": MESSAGES, "max_tokens": 80, "ignore_eos": True, "stream": True}
            long = {"messages": [{"role": "user", "content": "Опиши подробно. " * 300}], "max_tokens": 1}
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                other = asyncio.create_task(http.post("/v1/chat/completions", json=long))
                seen = 0
                async for line in lines:
                    seen += line.startswith("data: ") and not other.done()
                assert seen > 10
            assert (await other).status_code == 200

    asyncio.run(scenario())


def test_a_separate_embedding_model_of_bert_type(tmp_path: Path) -> None:
    import os

    path = os.environ.get("LLM_LOCAL_TEST_EMBEDDING")
    if not path:
        pytest.skip("LLM_LOCAL_TEST_EMBEDDING does not name a GGUF")
    with (
        served(tmp_path, "--ctx", "512", "--embedding-model", path) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        models = http.get("/v1/models").json()["data"]
        assert [model["meta"]["embeds"] for model in models] == [False, True]
        body = {"input": ["A cat sits on the mat", "A kitten rests on a rug", "Quarterly revenue fell"]}
        data = http.post("/v1/embeddings", json=body, timeout=60).json()["data"]
        cat, kitten, revenue = (np.array(item["embedding"]) for item in data)
        assert cat @ kitten > 0.5 > cat @ revenue
        over = http.post("/v1/embeddings", json={"input": "word " * 3000}, timeout=60)
        assert over.json()["error"]["code"] == "context_length_exceeded"
