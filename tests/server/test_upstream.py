"""`LLM_ENGINE=openai_compatible`: before a second server of our own on fakes, and one that does all wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llm_local.config import Settings
from llm_local.server.app import create_app
from llm_local.server.runtime import Runtime
from llm_local.server.upstream import Upstream
from llm_local.server.upstream_exchange import Exchange
from tests.server.conftest import Served, serving
from tests.server.faulty import Faulty, running
from tests.server.test_errors import error_of
from tests.server.test_lifecycle import ask_and_leave, slow_backend

MESSAGES: list[Any] = [{"role": "user", "content": "Привет"}]
CHAT = "/v1/chat/completions"
ENDLESS = {"messages": MESSAGES, "max_tokens": 900, "ignore_eos": True}


@contextmanager
def forwarding(url: str, names: tuple[str, ...] = (), **settings: Any) -> Iterator[tuple[httpx.Client, Runtime]]:
    """Run a server of ours in front of another."""
    chosen = Settings.model_validate({"engine": "openai_compatible", "upstream_url": url, **settings})
    runtime = Runtime(chosen, upstream=Upstream(chosen, names))
    with running(create_app(runtime)) as own, httpx.Client(base_url=own, timeout=10, verify=False) as http:
        yield http, runtime


@pytest.fixture(scope="module")
def upstream() -> Iterator[Served]:
    with serving(api_keys="theirs") as served:
        yield served


@pytest.fixture(scope="module")
def http(upstream: Served) -> Iterator[httpx.Client]:
    names = ("qwen2.5-7b-instruct", "Qwen2.5-7B-Instruct-Q5_K_M.gguf")
    with forwarding(upstream.url, names, upstream_model="fake", upstream_api_key="theirs") as (client, _):
        yield client


def wait_until(what: Any, timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_answer_is_that_of_the_upstream_streamed_or_not(http: httpx.Client, upstream: Served) -> None:
    fields = {"model": "qwen2.5-7b-instruct", "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
    with (
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="x", _strict_response_validation=True) as ours,
        openai.OpenAI(base_url=f"{upstream.url}/v1", api_key="theirs") as theirs,
    ):
        expected = theirs.chat.completions.create(**{**fields, "model": "fake"}).choices[0].message.content
        assert ours.chat.completions.create(**fields).choices[0].message.content == expected
        chunks = list(ours.chat.completions.create(**fields, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_completions_and_embeddings_are_forwarded_too_and_paths_without_v1(http: httpx.Client) -> None:
    assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).json()["object"] == "text_completion"
    answer = http.post("/embeddings", json={"input": ["a", "b"], "model": "qwen2.5-7b-instruct"}).json()
    assert len(answer["data"]) == 2


@pytest.mark.parametrize("name", ["qwen2.5-7b-instruct", "Qwen2.5-7B-Instruct-Q5_K_M.gguf", "fake", None])
def test_each_of_our_names_is_the_model_of_the_upstream_and_answers_have_it(
    http: httpx.Client, name: str | None
) -> None:
    """The upstream, which is strict about its name, takes them all."""
    text = '{"model":"fake", "model": "fake"} is no key here'
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 40, "model": name}
    expected = "qwen2.5-7b-instruct"
    answer = http.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, expected)
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in http.post(CHAT, json={**body, "stream": True}).text.splitlines()
        if line.startswith("data: {")
    ]
    assert len(chunks) > 2
    assert {chunk["model"] for chunk in chunks} == {expected}


@pytest.mark.parametrize("space", [b"", b" "])
def test_only_the_key_of_an_answer_is_renamed(space: bytes) -> None:
    exchange = Exchange("there", 0.0, set())
    exchange.call_model("мы")
    text = json.dumps('"model":"a\\"b" and "model": "a"').encode()
    rest = b',"content":%s,"model_id":"a\\"b","parts":{"model":"T-34"}}' % text
    ours = '"мы"'.encode()
    assert exchange._in_our_names(b'{"model":%s"a\\"b"' % space + rest) == b'{"model":%s%s' % (space, ours) + rest
    events = b'data: {"model":"a"%s\n\n' % rest
    assert exchange._events_in_our_names(2 * events) == 2 * events.replace(b'"a"', ours, 1)


def test_a_name_that_nobody_has_is_404_and_lists_ours(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "model": "gpt-4o"})
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'qwen2.5-7b-instruct'" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_line_of_a_request_has_the_model_that_answered(
    http: httpx.Client, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    with caplog.at_level(logging.INFO, "llm_local.requests"):
        http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2, "stream": stream}, headers={"x-request-id": "r"})
        wait_until(lambda: sum(line.head["request_id"] == "r" for line in caplog.records) == 2)
        http.post(CHAT, json={"messages": MESSAGES, "model": "gpt-4"}, headers={"x-request-id": "s"})
        wait_until(lambda: any(line.head["request_id"] == "s" for line in caplog.records))
    lines = [line for line in caplog.records if line.head["request_id"] in ("r", "s")]
    ours = [line for line in lines if "prompt_tokens" not in line.fields]  # The upstream in this process knows those.
    assert [(line.head["request_id"], line.fields["model"]) for line in ours] == [("r", "fake"), ("s", None)]


def test_models_are_listed_under_our_names(http: httpx.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("qwen2.5-7b-instruct", "model")
    assert model["aliases"] == ["Qwen2.5-7B-Instruct-Q5_K_M.gguf", "fake"]
    assert http.get("/v1/models/fake").json() == model
    assert error_of(http.get("/v1/models/nope"))["code"] == "model_not_found"


def test_without_upstream_model_names_go_as_they_come_and_ours_are_its_only_model(upstream: Served) -> None:
    with forwarding(upstream.url + "/v1", ("ours",), upstream_api_key="theirs") as (http, _):
        for name in ("ours", "alias", None):
            answer = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1, "model": name})
            assert (answer.status_code, answer.json()["model"]) == (200, "ours")
        assert error_of(http.post(CHAT, json={"messages": MESSAGES, "model": "gpt-4o"}))["code"] == "model_not_found"


def test_the_errors_of_the_upstream_come_back_as_they_are(http: httpx.Client, upstream: Served) -> None:
    for body in (
        {"messages": []},
        {"messages": MESSAGES, "temprature": 1},
        {"messages": [{**MESSAGES[0], "content": "x" * 9000}]},
    ):
        theirs = httpx.post(upstream.url + CHAT, json=body, headers={"x-api-key": "theirs"})
        ours = http.post(CHAT, json=body)
        assert (ours.status_code, error_of(ours)) == (theirs.status_code, error_of(theirs))


def test_any_name_finds_the_model_where_any_name_is_served(upstream: Served) -> None:
    with forwarding(upstream.url, ("*",), upstream_api_key="theirs") as (http, _):
        assert http.get("/v1/models/gpt-4o").json()["object"] == "model"
        assert http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1, "model": "gpt-4o"}).status_code == 200


def test_a_body_that_is_nested_too_deep_to_be_sent_on_is_400(http: httpx.Client) -> None:
    for depth in (200, 300, 900):
        deep = '{"items":' * depth + "{}" + "}" * depth
        tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}'
        body = f'{{"messages": {json.dumps(MESSAGES)}, "tools": [{tool}], "max_tokens": 1}}'
        answer = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400), answer.text
        assert depth < 255 or "nested too deep" in error_of(answer)["message"]


def test_the_server_around_it_is_the_same(upstream: Served) -> None:
    settings = {"upstream_model": "fake", "upstream_api_key": "theirs", "api_keys": "ours", "max_body_bytes": 2000}
    with forwarding(upstream.url, **settings) as (http, _):
        body = {"messages": MESSAGES, "max_tokens": 1}
        assert error_of(http.post(CHAT, json=body))["code"] == "invalid_api_key"
        # The client's key is for us, and goes no further.
        answer = http.post(CHAT, json=body, headers={"x-api-key": "ours", "x-request-id": "abc"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "abc")
        keyed = {"x-api-key": "ours"}
        large = {"messages": [{"role": "user", "content": "x" * 3000}]}
        assert error_of(http.post(CHAT, json=large, headers=keyed))["code"] == "request_too_large"
        assert error_of(http.post(CHAT, content=b"[1]", headers=keyed))["message"].startswith("The body must be")
        assert error_of(http.post("/tokenize", json={"content": "x"}, headers=keyed))["code"] == "not_found"
        assert http.get("/health").json() == {"status": "ok"}
        metrics = http.get("/metrics", headers=keyed).text
        assert "llm_local_upstream_first_byte_seconds_count 1.0" in metrics
        assert "llm_local_upstream_open 0.0" in metrics


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_request_at_the_upstream(stream: bool) -> None:
    with serving(slow_backend(), join=True) as served, forwarding(served.url) as (http, runtime):
        asyncio.run(ask_and_leave(str(http.base_url), stream=stream))
        served.wait_idle(2)
        assert len(served.backend.batches) < 300
        wait_until(lambda: runtime.upstream.n_open == 0)
        left = 'llm_local_cancelled_requests_total{reason="client_left"} 1.0'
        wait_until(lambda: left in http.get("/metrics").text)


def test_a_deadline_is_504_before_the_first_byte_and_an_event_after_it() -> None:
    with serving(slow_backend(), join=True) as served, forwarding(served.url, request_timeout=0.25) as (http, _):
        with ThreadPoolExecutor() as pool:
            answer, streamed = pool.map(
                lambda stream: http.post(CHAT, json={**ENDLESS, "stream": stream}), (False, True)
            )
        assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
        assert '"deadline_exceeded"' in streamed.text
        assert "[DONE]" not in streamed.text
        served.wait_idle(2)
        began = time.monotonic()
        assert http.post(CHAT, json={**ENDLESS, "timeout": 0.05}).status_code == 504
        assert time.monotonic() - began < 0.23


def test_an_upstream_that_is_down_is_503_and_comes_back_by_itself(upstream: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with forwarding(url, upstream_api_key="theirs") as (http, runtime):
            answer = http.get("/health")
            assert (answer.status_code, answer.json()["status"]) == (503, "upstream_unavailable")
            assert http.get("/health/live").status_code == 200
            answer = http.post(CHAT, json={"messages": MESSAGES})
            error = error_of(answer)
            assert (answer.status_code, error["code"]) == (503, "upstream_unavailable")
            assert "LLM_UPSTREAM_URL" in error["message"]
            assert "127.0.0.1" not in answer.text
            assert "retry-after" in answer.headers
            runtime.upstream.url = upstream.url + "/v1"
            assert http.get("/health").status_code == 200


def test_a_model_that_the_upstream_does_not_serve_is_said_by_health(upstream: Served) -> None:
    with forwarding(upstream.url, upstream_model="Qwen/Qwen2.5-7B", upstream_api_key="theirs") as (http, _):
        error = http.get("/health").json()["error"]
        assert "'Qwen/Qwen2.5-7B' (LLM_UPSTREAM_MODEL); it serves 'fake'" in error["message"]


def test_a_key_that_the_upstream_refuses_is_the_operators_matter(upstream: Served) -> None:
    with forwarding(upstream.url, upstream_model="fake") as (http, _):
        answer = http.post(CHAT, json={"messages": MESSAGES})
        assert answer.status_code == 502
        assert "LLM_UPSTREAM_API_KEY" in error_of(answer)["message"]
        assert http.get("/health").status_code == 503


def test_a_server_that_drains_takes_nothing_more(upstream: Served) -> None:
    with forwarding(upstream.url, upstream_api_key="theirs") as (http, runtime):
        runtime.upstream.drain()
        assert error_of(http.post(CHAT, json={"messages": MESSAGES}))["code"] == "draining"
        assert http.get("/health").json()["status"] == "draining"


def test_what_is_at_the_upstream_is_limited_by_queue_max() -> None:
    with serving(slow_backend(), join=True) as served, forwarding(served.url, queue_max=1) as (http, runtime):
        first = threading.Thread(target=lambda: http.post(CHAT, json={**ENDLESS, "max_tokens": 25}))
        first.start()
        wait_until(lambda: runtime.upstream.n_open == 1)
        answer = http.post(CHAT, json={"messages": MESSAGES})
        assert (answer.status_code, error_of(answer)["code"]) == (429, "queue_full")
        first.join()


@pytest.fixture(scope="module")
def faulty_server() -> Iterator[tuple[Faulty, httpx.Client]]:
    app = Faulty()
    with running(app) as url, forwarding(url, upstream_model="m") as (http, _):
        yield app, http


@pytest.fixture
def faulty(
    faulty_server: tuple[Faulty, httpx.Client], caplog: pytest.LogCaptureFixture
) -> Iterator[tuple[Faulty, httpx.Client]]:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    yield faulty_server
    faulty_server[0].reset()


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (429, {"retry-after": "7"}, b'{"error": {"message": "slow", "type": "rate_limit_error", "code": "slow_down"}}',
         (429, "rate_limit_error", "slow_down", "7")),
        (429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"busy", (429, "rate_limit_error", "queue_full", "0")),
        (400, {}, b'{"object": "error", "message": "bad", "type": "BadRequestError", "param": null, "code": 400}',
         (400, "invalid_request_error", None, None)),
        (400, {}, b'{"error": {"message": "the maximum context length is 8", "type": "BadRequestError", "code": 400}}',
         (400, "invalid_request_error", "context_length_exceeded", None)),
        (404, {}, b'{"error": {"message": "no model", "type": "NotFoundError", "param": "model", "code": 404}}',
         (404, "invalid_request_error", "model_not_found", None)),
        (404, {}, b'{"detail": "Not Found"}', (502, "server_error", "upstream_failed", None)),
        (500, {}, b"<html>Traceback /secret/path</html>", (502, "server_error", "upstream_failed", None)),
        (503, {"retry-after": "3"}, b"", (503, "server_error", "upstream_unavailable", "3")),
        (302, {"location": "/"}, b"", (502, "server_error", "upstream_failed", None)),
    ],
)  # fmt: skip
def test_every_wrong_answer_of_the_upstream_has_openais_shape(
    faulty: tuple[Faulty, httpx.Client], status: int, headers: dict[str, str], body: bytes, expected: tuple[Any, ...]
) -> None:
    app, http = faulty
    app.status, app.headers, app.chunks = status, headers, [body]
    answer = http.post(CHAT, json={"messages": MESSAGES})
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"], answer.headers.get("retry-after")) == expected
    assert "secret" not in answer.text


def test_events_come_as_they_are_made(faulty: tuple[Faulty, httpx.Client]) -> None:
    """The upstream makes the second one when the first has arrived."""
    app, http = faulty
    app.headers = {"content-type": "text/event-stream"}
    app.chunks = [b'data: {"n":1}\n\n', b'data: {"n":2}\n\ndata: [DONE]\n\n']
    app.waits_for = threading.Event()
    seen = []
    with http.stream("POST", CHAT, json={"messages": MESSAGES, "stream": True}) as answer:
        for line in answer.iter_lines():
            app.waits_for.set()
            seen.append(line)
    assert [line for line in seen if line] == ['data: {"n":1}', 'data: {"n":2}', "data: [DONE]"]


def test_what_the_upstream_calls_its_errors_is_no_label_of_ours(faulty: tuple[Faulty, httpx.Client]) -> None:
    app, http = faulty
    app.status, app.chunks = 418, [b'{"error": {"message": "m", "type": "t", "code": "request abc-123 failed"}}']
    assert error_of(http.post(CHAT, json={"messages": MESSAGES}))["code"] == "request abc-123 failed"
    wait_until(lambda: 'llm_local_errors_total{code="http_418"} 1.0' in http.get("/metrics").text)
    assert "abc-123" not in http.get("/metrics").text


def test_a_stream_that_breaks_off_ends_with_an_error_and_without_done(faulty: tuple[Faulty, httpx.Client]) -> None:
    app, http = faulty
    app.headers, app.breaks_off = {"content-type": "text/event-stream"}, True
    app.chunks, app.pause_s = [b'data: {"a": 1}\n\n', b'data: {"a"'], 0.05
    text = http.post(CHAT, json={"messages": MESSAGES, "stream": True}).text
    assert text.startswith('data: {"a": 1}\n\ndata: {"error"')
    assert '"upstream_failed"' in text


def test_an_answer_that_breaks_off_is_502(faulty: tuple[Faulty, httpx.Client]) -> None:
    app, http = faulty
    app.headers, app.chunks, app.breaks_off = {"content-type": "application/json"}, [b'{"a"'], True
    answer = http.post(CHAT, json={"messages": MESSAGES})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")


@pytest.mark.parametrize("sent", [b'data: {"a": 1}\n\n', b'data: {"a": 1}\n\ndata: {"a": [DONE]', b""])
def test_a_stream_that_ends_before_it_is_done_is_an_error(faulty: tuple[Faulty, httpx.Client], sent: bytes) -> None:
    app, http = faulty
    app.headers, app.chunks = {"content-type": "text/event-stream"}, [sent]
    text = http.post(CHAT, json={"messages": MESSAGES, "stream": True}).text
    whole = sent[: sent.rfind(b"\n\n") + 2].decode() if sent else ""
    assert text.startswith(whole + 'data: {"error"')
    assert '"upstream_failed"' in text


@pytest.mark.parametrize(
    "sent",
    [
        b'data: {"a": 1}\n\ndata:[DONE]',
        b'data: {"a": 1}\r\n\r\ndata: [DONE]\r\n\r\n',
        b'data: {"error": {"message": "theirs"}}\n\n',
    ],
)
def test_a_stream_that_is_done_or_ends_with_an_error_gets_nothing_more(
    faulty: tuple[Faulty, httpx.Client], sent: bytes
) -> None:
    app, http = faulty
    app.headers, app.chunks = {"content-type": "text/event-stream"}, [sent]
    assert http.post(CHAT, json={"messages": MESSAGES, "stream": True}).content == sent


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/html", b"<html>Log in /secret/path</html>"), ("application/json", b""), ("application/json", b"[]")],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_no_answer_is_502(
    faulty: tuple[Faulty, httpx.Client], content_type: str, body: bytes, stream: bool
) -> None:
    app, http = faulty
    app.headers, app.chunks = {"content-type": content_type}, [body]
    answer = http.post(CHAT, json={"messages": MESSAGES, "stream": stream})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")
    assert "secret" not in answer.text


def test_a_stream_that_was_asked_for_and_does_not_come_is_502(faulty: tuple[Faulty, httpx.Client]) -> None:
    app, http = faulty
    app.headers, app.chunks = {"content-type": "application/json"}, [b'{"choices": []}']
    answer = http.post(CHAT, json={"messages": MESSAGES, "stream": True})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")


def test_an_event_without_end_is_given_up_and_holds_nobody_up(
    faulty: tuple[Faulty, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_local.server.upstream_exchange.MAX_EVENT_BYTES", 2**21)
    app, http = faulty
    app.headers, app.chunks = {"content-type": "text/event-stream"}, [b"x" * 65536] * 400
    text = http.post(CHAT, json={"messages": MESSAGES, "stream": True}).text
    assert "an event of more than 2097152 bytes" in text


def test_aliases_that_are_no_list_are_no_internal_error(faulty: tuple[Faulty, httpx.Client]) -> None:
    app, _ = faulty
    app.chunks = [b'{"data": [{"id": "a", "aliases": null}, {"id": "b", "aliases": 5}]}']
    app.headers = {"content-type": "application/json"}
    with running(app) as url, forwarding(url) as (http, _):
        assert error_of(http.get("/v1/models/x"))["code"] == "model_not_found"
        assert http.get("/v1/models/b").json()["id"] == "b"


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_a_stream_passes_byte_for_byte_and_a_comment_never_falls_into_an_event(
    faulty: tuple[Faulty, httpx.Client], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("llm_local.server.stream.PING_S", 0.01)
    app, http = faulty
    sent = (
        "".join(f'data: {{"text": "Привет {number}"}}{end}' for number in range(6)).encode()
        + f"data: [DONE]{end}".encode()
    )
    app.headers, app.pause_s = {"content-type": "text/event-stream; charset=utf-8"}, 0.004
    app.chunks = [sent[at : at + 7] for at in range(0, len(sent), 7)]
    answer = http.post(CHAT, json={"messages": MESSAGES, "stream": True})
    before = answer.content.split(b": keep-alive\n\n")[:-1]
    assert len(before) >= 2
    assert all(part.endswith((b"\n\n", b"\r\n\r\n")) for part in before if part)
    assert answer.content.replace(b": keep-alive\n\n", b"") == sent


def test_what_is_sent_is_the_request_in_utf8_with_their_key_and_our_id(caplog: pytest.LogCaptureFixture) -> None:
    app = Faulty()
    app.chunks, app.headers = [b"{}"], {"content-type": "application/json"}
    with running(app) as url, forwarding(url, upstream_model="Qwen/Q", upstream_api_key="theirs") as (http, _):
        body = {"messages": MESSAGES, "some_new_field": {"a": 1.5}}
        http.post("/chat/completions", json=body, headers={"authorization": "Bearer mine", "x-request-id": "r-1"})
    assert "Привет".encode() in app.seen["body"]
    assert json.loads(app.seen["body"]) == {**body, "model": "Qwen/Q"}
    assert app.seen["path"] == "/v1/chat/completions"
    headers = app.seen["headers"]
    assert (headers[b"authorization"], headers[b"x-request-id"]) == (b"Bearer theirs", b"r-1")


@pytest.mark.slow
def test_a_drain_that_lasts_too_long_ends_streams_with_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(slow_backend(), join=True) as served, log.open("w") as err:
        environment = {
            "PATH": "/usr/bin", "LLM_ENGINE": "openai_compatible", "OPENAI_BASE_URL": served.url + "/v1",
            "LLM_DRAIN_TIMEOUT": "0.3", "LLM_HOST": "127.0.0.1", "LLM_PORT": "0",
        }  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "llm_local", "serve"], env=environment, stderr=err)
        try:
            wait_until(lambda: "ready: the upstream serves" in log.read_text(), 30)
            url = log.read_text().partition("listening on ")[2].partition(",")[0]
            with httpx.stream("POST", url + CHAT, json={**ENDLESS, "stream": True}, timeout=20) as answer:
                text = ""
                for piece in answer.iter_text():
                    if not text:
                        process.terminate()
                        began = time.monotonic()
                    text += piece
            assert '"code":"draining"' in text
            assert "[DONE]" not in text
            assert process.wait(10) == 0
            assert time.monotonic() - began < 4
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_the_process_forwards_without_llama_cpp_and_says_what_changes_nothing(upstream: Served, tmp_path: Path) -> None:
    code = (
        "import sys; from llm_local.cli import main; "
        "code = main(['serve', '--port', '0']); print(code, 'llama_cpp' in sys.modules)"
    )
    environment = {
        "PATH": "/usr/bin", "LLM_ENGINE": "openai_compatible", "OPENAI_BASE_URL": upstream.url + "/v1",
        "OPENAI_API_KEY": "theirs", "LLM_CTX": "4096", "LLM_GPU_LAYERS": "auto", "LLM_REQUEST_TIMEOUT": "5",
        "LLM_MODEL": "Qwen2.5-7B-Instruct-Q5_K_M.gguf",
    }  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as err:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, stderr=err, text=True)
        try:
            wait_until(lambda: "ready: the upstream serves qwen2.5-7b-instruct" in log.read_text(), 30)
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=20)
    assert out.strip() == "0 False"
    assert log.read_text().count("these change nothing: LLM_GPU_LAYERS, LLM_CTX\n") == 1
