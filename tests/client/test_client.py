"""The client over a real socket: against the server on fakes, and against one that does everything wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llm_local.client import (
    AsyncLocalLLMClient,
    InterviewReply,
    LocalLLMClient,
    RequestRefused,
    ScoringUpdate,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    Target,
    TimedOut,
    UnusableReply,
    exchange,
)
from llm_local.client.interview import json_schema
from tests.fakes import FakeBackend, ReciteBackend
from tests.server.conftest import Served, serving
from tests.server.faulty import Faulty, running

MESSAGES = [{"role": "user", "content": "Привет"}]
REPLY = {
    "reply": "Расскажите о метриках.",
    "next_node_id": "metrics",
    "scoring_update": {"block": "метрики", "delta": 0.5, "score": 6},
    "red_flags": ["не отличает фрод от кредитного риска"],
}
TYPED = InterviewReply(
    reply="Расскажите о метриках.",
    next_node_id="metrics",
    scoring_update=ScoringUpdate(block="метрики", delta=0.5, score=6),
    red_flags=["не отличает фрод от кредитного риска"],
)
TRANSCRIPT = [{"role": "interviewer", "content": "Что такое фрод?"}, {"role": "candidate", "content": "Невозврат."}]
CONTEXT = {"node": "start", "next": ["metrics", "end"]}


def target(url: str, **more: Any) -> Target:
    return replace(Target(base_url=f"{url}/v1", model="fake"), **more)


def answer_with(text: str) -> bytes:
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return json.dumps(body, ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(join=True) as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[LocalLLMClient]:
    with LocalLLMClient(target(server.url), timeout_s=10) as it:
        yield it


@pytest.fixture(scope="module")
def faulty_url() -> Iterator[tuple[Faulty, str]]:
    app = Faulty()
    with running(app) as url:
        yield app, url


@pytest.fixture
def faulty(faulty_url: tuple[Faulty, str], caplog: pytest.LogCaptureFixture) -> Iterator[tuple[Faulty, str]]:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    yield faulty_url
    faulty_url[0].reset()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Target("llama.cpp", "http://llm-local:8080/v1", "qwen2.5-7b-instruct", "")),
        ({"LLM_ENGINE": "llama.cpp", "LLM_BASE_URL": "http://a:1/v1/", "LLM_MODEL": "m", "LLM_API_KEY": "k",
          "OPENAI_BASE_URL": "http://b:2/v1", "OPENAI_API_KEY": "o"}, Target("llama.cpp", "http://a:1/v1", "m", "k")),
        ({"LLM_PROVIDER": "vllm", "OPENAI_API_KEY": "o", "LLM_BASE_URL": "http://a:1/v1"},
         Target("vllm", "http://llm-vllm:8000/v1", "qwen2.5-7b-instruct", "o")),
        ({"LLM_ENGINE": "openai_compatible", "LLM_PROVIDER": "llama.cpp", "OPENAI_BASE_URL": "http://b:2/v1"},
         Target("openai_compatible", "http://b:2/v1", "qwen2.5-7b-instruct", "")),
        ({"LLM_ENGINE": '"llama.cpp" ', "LLM_MODEL": "'m'", "LLM_BASE_URL": ""},
         Target("llama.cpp", "http://llm-local:8080/v1", "m", "")),
    ],
)  # fmt: skip
def test_the_target_is_what_old_environments_say(environment: dict[str, str], expected: Target) -> None:
    assert Target.from_environment(environment) == expected


def test_without_a_target_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_BASE_URL", "http://elsewhere:1/v1")
    with LocalLLMClient() as client:
        assert client.target.base_url == "http://elsewhere:1/v1"
        assert client.timeout_s == 30


def test_an_answer_is_openais_and_pieces_join_to_its_text(client: LocalLLMClient, server: Served) -> None:
    fields = {"max_tokens": 30, "temperature": 0}
    answer = client.chat_completion(MESSAGES, **fields)
    text = answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 1
    pieces = list(client.chat_completion(MESSAGES, stream=True, **fields))
    assert "".join(pieces) == text

    async def both() -> None:
        async with AsyncLocalLLMClient(target(server.url)) as asynchronous:
            answer = await asynchronous.chat_completion(MESSAGES, **fields)
            assert answer["choices"][0]["message"]["content"] == text
            pieces = [piece async for piece in await asynchronous.chat_completion(MESSAGES, stream=True, **fields)]
            assert "".join(pieces) == text

    asyncio.run(both())


def test_pieces_come_as_they_are_sent(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    events = [
        {"choices": [{"delta": delta}]} for delta in ({"role": "assistant"}, {"content": "При"}, {"content": "вет"})
    ]
    usage = {"choices": [], "usage": {"total_tokens": 3}}
    app.chunks = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in (*events, usage)]
    app.chunks.append(b": keep-alive\n\ndata: [DONE]\n\n")
    app.headers, app.pause_s = {"content-type": "text/event-stream"}, 0.05
    with LocalLLMClient(target(url)) as client:
        began = time.monotonic()
        pieces = client.chat_completion(MESSAGES, stream=True)
        assert next(pieces) == "При"
        first_s = time.monotonic() - began
        assert list(pieces) == ["вет"]
        assert time.monotonic() - began > first_s + 0.1


def test_an_interview_reply_is_typed() -> None:
    typed = InterviewReply(
        reply="Bitte erzählen Sie.",
        next_node_id="metrics",
        scoring_update=ScoringUpdate(block="metrics", delta=-0.5, score=6),
        red_flags=["vague"],
    )
    said = json.dumps(typed.model_dump(), separators=(",", ":"), ensure_ascii=False)
    with serving(ReciteBackend(said), window=8000, join=True) as served:
        with LocalLLMClient(target(served.url)) as client:
            assert client.generate_interview_response(TRANSCRIPT, CONTEXT, "ba_anti_fraud") == typed

        async def asynchronous() -> InterviewReply:
            async with AsyncLocalLLMClient(target(served.url)) as client:
                return await client.generate_interview_response("Невозврат.", "узел start", "ba_anti_fraud")

        assert asyncio.run(asynchronous()) == typed


def test_what_the_dialog_manager_sends(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    app.chunks = [answer_with(json.dumps(REPLY, ensure_ascii=False))]
    with LocalLLMClient(target(url, api_key="k", model="qwen2.5-7b-instruct")) as client:
        assert client.generate_interview_response(TRANSCRIPT, CONTEXT, "ba_anti_fraud") == TYPED
    body = json.loads(app.seen["body"])
    system, user = (message["content"] for message in body.pop("messages"))
    assert body == {
        "model": "qwen2.5-7b-instruct", "stream": False, "temperature": 0.1, "max_tokens": 512,
        "response_format": {"type": "json_object"},
    }  # fmt: skip
    assert "бизнес-аналитика в команде антифрода" in system
    assert "candidate: Невозврат." in user
    assert '"next": ["metrics", "end"]' in user
    assert "Невозврат".encode() in app.seen["body"], "UTF-8, not \\u escapes"
    assert (app.seen["path"], app.seen["headers"][b"authorization"]) == ("/v1/chat/completions", b"Bearer k")


def test_another_engine_gets_no_response_format_and_its_fence_does_no_harm(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    app.chunks = [answer_with(f"Вот ответ:\n```json\n{json.dumps(REPLY, ensure_ascii=False)}\n```")]
    with LocalLLMClient(target(url, engine="openai_compatible")) as client:
        assert client.generate_interview_response(TRANSCRIPT, CONTEXT, "ba_anti_fraud", max_tokens=96) == TYPED
    body = json.loads(app.seen["body"])
    assert "response_format" not in body
    assert body["max_tokens"] == 96


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Здравствуйте", "is not a JSON object"),
        ('{"reply": "Да', "is not a JSON object"),
        ('{"next_node_id": "a"}', "reply: Field required"),
        ('{"reply": "Да", "scoring_update": {"block": "b", "delta": "?", "score": 1}}', "scoring_update.delta"),
        ("}{", "is not a JSON object"),
    ],
)
def test_a_text_that_is_no_reply_is_said_and_kept(faulty: tuple[Faulty, str], text: str, says: str) -> None:
    app, url = faulty
    app.chunks = [answer_with(text)]
    with LocalLLMClient(target(url)) as client, pytest.raises(UnusableReply, match=says) as caught:
        client.generate_interview_response("x", "y", "ba_anti_fraud")
    assert caught.value.text == text


UNUSABLE = '{"reply": null, "next_node_id": "metrics"}'


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_text_that_is_no_reply_is_asked_for_once_more_under_the_replys_schema(
    faulty: tuple[Faulty, str], asynchronous: bool
) -> None:
    app, url = faulty
    app.first, app.chunks = [(200, {}, answer_with(UNUSABLE))], [answer_with(json.dumps(REPLY))]

    async def awaited() -> InterviewReply:
        async with AsyncLocalLLMClient(target(url)) as client:
            return await client.generate_interview_response(TRANSCRIPT, CONTEXT, "ba_anti_fraud", max_tokens=96)

    with LocalLLMClient(target(url)) as client:
        if asynchronous:
            assert asyncio.run(awaited()) == TYPED
        else:
            assert client.generate_interview_response(TRANSCRIPT, CONTEXT, "ba_anti_fraud", max_tokens=96) == TYPED
    body = json.loads(app.seen["body"])
    assert (app.n_seen, body["max_tokens"], body["response_format"]) == (2, 96, json_schema())


@pytest.mark.parametrize(
    ("engine", "fields"), [("vllm", {}), ("llama.cpp", {"response_format": {"type": "json_object"}})]
)
def test_where_the_format_is_not_the_clients_to_choose_nothing_is_asked_again(
    faulty: tuple[Faulty, str], engine: str, fields: dict[str, Any]
) -> None:
    app, url = faulty
    app.chunks = [answer_with(UNUSABLE)]
    with LocalLLMClient(target(url, engine=engine)) as client, pytest.raises(UnusableReply, match="reply: "):
        client.generate_interview_response("x", "y", "ba", **fields)
    assert app.n_seen == 1


def test_an_error_of_the_second_call_is_said(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    app.first = [(200, {}, answer_with(UNUSABLE)), (400, {}, b'{"error": {"message": "no schemas here"}}')]
    with LocalLLMClient(target(url)) as client, pytest.raises(RequestRefused, match="no schemas here"):
        client.generate_interview_response("x", "y", "ba")
    assert app.n_seen == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_both_calls_together_have_the_time_of_one(faulty: tuple[Faulty, str], asynchronous: bool) -> None:
    app, url = faulty
    app.chunks, app.pause_s = [answer_with(UNUSABLE)], 0.4

    async def awaited() -> None:
        async with AsyncLocalLLMClient(target(url), timeout_s=0.6) as client:
            await client.generate_interview_response("x", "y", "ba")

    with LocalLLMClient(target(url), timeout_s=0.6) as client, pytest.raises(TimedOut, match=r"within 0\.6 s"):
        asyncio.run(awaited()) if asynchronous else client.generate_interview_response("x", "y", "ba")
    assert app.n_seen == 2


def test_a_reply_that_max_tokens_cut_says_so() -> None:
    with (
        serving(ReciteBackend(json.dumps(REPLY)), window=8000, join=True) as served,
        LocalLLMClient(target(served.url)) as client,
        pytest.raises(UnusableReply, match="cut at max_tokens"),
    ):
        client.generate_interview_response("x", "y", "ba_anti_fraud", max_tokens=20)


def test_fields_may_be_left_out_where_nothing_changes(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    app.chunks = [answer_with('{"reply": "Да", "scoring_update": null}')]
    with LocalLLMClient(target(url)) as client:
        assert client.generate_interview_response("x", "y", "ba") == InterviewReply(reply="Да")


def test_an_unknown_profile_names_those_that_there_are(client: LocalLLMClient) -> None:
    with pytest.raises(ValueError, match="no role profile 'cook'; there are ba_anti_fraud, ba"):
        client.generate_interview_response("x", "y", "cook")


def test_a_refusal_has_the_servers_words(client: LocalLLMClient) -> None:
    with pytest.raises(RequestRefused, match=r"Unknown parameter: 'max_token'\. Did you mean 'max_tokens'") as caught:
        client.chat_completion(MESSAGES, max_token=5)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "max_token", "unknown_parameter")
    with pytest.raises(RequestRefused, match="does not exist"):
        list(client.chat_completion(MESSAGES, stream=True, model="nope"))


def test_a_busy_server_is_asked_again_when_it_said_so(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    app.chunks = [answer_with("ok")]
    busy = (429, {"retry-after": "0.05"}, b'{"error": {"message": "full"}}')
    app.first = [busy, (503, {"retry-after": "0.1"}, b"")]
    with LocalLLMClient(target(url)) as client:
        began = time.monotonic()
        assert client.chat_completion(MESSAGES)["choices"]
        assert 0.15 <= time.monotonic() - began < 2
        app.first = [busy] * 9
        with pytest.raises(ServerBusy, match="full") as caught:
            client.chat_completion(MESSAGES)
        assert (caught.value.status, caught.value.retry_after_s, len(app.first)) == (429, 0.05, 6)

    async def asynchronous() -> None:
        app.first = [busy]
        async with AsyncLocalLLMClient(target(url)) as client:
            assert (await client.chat_completion(MESSAGES))["choices"]

    asyncio.run(asynchronous())


def test_a_pause_that_would_outlast_the_timeout_is_not_made(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    app.first = [(503, {"retry-after": "60"}, b"")]
    with LocalLLMClient(target(url)) as client, pytest.raises(ServerBusy) as caught:
        client.chat_completion(MESSAGES)
    assert caught.value.retry_after_s == 60
    assert app.n_seen >= 1


@pytest.mark.parametrize("retry_after", ["-1", "nan", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_pause_that_is_none_is_ours(
    faulty: tuple[Faulty, str], retry_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "FIRST_BACK_OFF_S", 0.05)
    app, url = faulty
    app.chunks, app.first = [answer_with("ok")], [(503, {"retry-after": retry_after}, b"")]
    with LocalLLMClient(target(url)) as client:
        began = time.monotonic()
        assert client.chat_completion(MESSAGES)["choices"]
        assert time.monotonic() - began >= 0.05


def test_a_wrong_request_is_not_asked_again(faulty: tuple[Faulty, str]) -> None:
    app, url = faulty
    app.status, app.chunks = 400, [b'{"object": "error", "message": "bad", "code": 400}']
    with LocalLLMClient(target(url)) as client, pytest.raises(RequestRefused, match="bad"):
        client.chat_completion(MESSAGES)
    assert app.n_seen == 1


def test_where_nobody_listens_the_address_is_named() -> None:
    client = LocalLLMClient(target("http://127.0.0.1:9"), n_retries=0)
    with client, pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:9/v1"):
        client.chat_completion(MESSAGES)


def slow() -> FakeBackend:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    return backend


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_ends_at_its_timeout_and_the_server_is_free_again(stream: bool) -> None:
    endless = {"max_tokens": 900, "ignore_eos": True}
    with serving(slow(), join=True) as served:

        async def asynchronous() -> None:
            async with AsyncLocalLLMClient(target(served.url), timeout_s=0.2) as client:
                answer = await client.chat_completion(MESSAGES, stream=stream, **endless)
                async for _ in answer:
                    pass

        began = time.monotonic()
        with pytest.raises(TimedOut, match=r"within 0\.2 s"):
            asyncio.run(asynchronous())
        with LocalLLMClient(target(served.url), timeout_s=0.2) as client, pytest.raises(TimedOut):
            list(client.chat_completion(MESSAGES, stream=stream, **endless))
        assert time.monotonic() - began < 3
        served.wait_idle(2)


def test_a_cancelled_call_frees_its_slot() -> None:
    with serving(slow(), join=True) as served:

        async def cancelled() -> None:
            async with AsyncLocalLLMClient(target(served.url)) as client:
                call = asyncio.create_task(client.chat_completion(MESSAGES, max_tokens=900, ignore_eos=True))
                while served.engine.n_open == 0:
                    await asyncio.sleep(0.01)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

        asyncio.run(cancelled())
        served.wait_idle(2)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "broke off"),
        (b'data: {"error": {"message": "The engine died.", "code": "engine_dead"}}\n\n', "The engine died"),
        (b"data: {oops\n\n", "not a JSON object"),
    ],
)
def test_a_stream_that_does_not_end_well_is_an_error(faulty: tuple[Faulty, str], data: bytes, says: str) -> None:
    app, url = faulty
    app.chunks, app.headers = [data], {"content-type": "text/event-stream"}
    with LocalLLMClient(target(url)) as client, pytest.raises(ServerFailed, match=says):
        list(client.chat_completion(MESSAGES, stream=True))

    async def asynchronous() -> None:
        async with AsyncLocalLLMClient(target(url)) as client:
            _ = [piece async for piece in await client.chat_completion(MESSAGES, stream=True)]

    with pytest.raises(ServerFailed, match=says):
        asyncio.run(asynchronous())


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_stream_may_have_what_other_texts_end_lines_with(faulty: tuple[Faulty, str], end: bytes) -> None:
    app, url = faulty
    text = "one\u2028two\u2029three\x85four"
    event = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)
    sent = b"data: " + event.encode() + end + b"data: [DONE]"  # The last line may lack its end.
    app.chunks, app.headers = (
        [sent[at : at + 9] for at in range(0, len(sent), 9)],
        {"content-type": "text/event-stream"},
    )
    with LocalLLMClient(target(url)) as client:
        assert list(client.chat_completion(MESSAGES, stream=True)) == [text]

    async def asynchronous() -> list[str]:
        async with AsyncLocalLLMClient(target(url)) as client:
            return [piece async for piece in await client.chat_completion(MESSAGES, stream=True)]

    assert asyncio.run(asynchronous()) == [text]


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"choices": []}'])
def test_an_answer_that_is_none_is_an_error(faulty: tuple[Faulty, str], body: bytes) -> None:
    app, url = faulty
    app.chunks = [body]
    with LocalLLMClient(target(url)) as client, pytest.raises(ServerFailed):
        client.generate_interview_response("x", "y", "ba")


@pytest.mark.slow
def test_importing_the_client_imports_nothing_of_the_server() -> None:
    code = (
        "import sys, llm_local.client; server = ('fastapi', 'llama_cpp', 'numpy', 'uvicorn', 'llm_local.server', "
        "'llm_local.engine', 'llm_local.config'); "
        "sys.exit(', '.join(name for name in server if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
