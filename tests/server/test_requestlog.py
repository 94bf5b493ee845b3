"""The line of each request in the log: what it has, at what level, and what it never has."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llm_local.config import Settings
from llm_local.server.access import Access
from llm_local.server.runtime import Loaded, Runtime
from tests.fakes import FakeBackend
from tests.server.conftest import Served, serving

CHAT = "/v1/chat/completions"
SECRET = "my secret words"
BODY = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "ignore_eos": True, "temperature": 0}

Lines = pytest.LogCaptureFixture


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """The lines of requests, as they come."""
    with caplog.at_level(logging.DEBUG, "llm_local.requests"):
        yield caplog


def the_last(lines: Lines, n: int = 1) -> Any:
    """Wait for the n-th line: it is written just after the last byte of the answer."""
    end = time.monotonic() + 5
    while len(found := [line for line in lines.records if line.name == "llm_local.requests"]) < n:
        assert time.monotonic() < end, lines.text
        time.sleep(0.005)
    return found[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_the_line_says_what_a_request_cost(
    server: Served, http: httpx.Client, lines: Lines, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.backend, "delay_s", 0.001)  # Or the prompt might take 0.0 ms.
    answer = http.post(CHAT, json={**BODY, "stream": stream, "user": "ann"}, headers={"x-request-id": "mine"})
    line = the_last(lines)
    assert answer.headers["x-request-id"] == "mine"
    assert line.head == {"request_id": "mine", "method": "POST", "path": CHAT, "status": 200}
    assert line.levelname == "INFO"
    assert line.getMessage() == f"POST {CHAT} 200"
    fields = line.fields
    assert (fields["route"], fields["model"], fields["stream"]) == (CHAT, "fake", stream)
    assert (fields["generated_tokens"], fields["finish_reason"], fields["client"]) == (5, "length", "127.0.0.1")
    assert 0 <= fields["cached_tokens"] < fields["prompt_tokens"]
    assert fields["duration_ms"] >= fields["first_token_ms"] >= fields["queue_ms"] >= 0
    assert fields["prompt_ms"] > 0
    assert len(fields["user"]) == 12
    assert fields["error"] is fields["given_up"] is fields["slow"] is None


def test_nobodys_words_names_or_keys_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    key = {"Authorization": "Bearer key-1"}
    fields = {**BODY, "user": "ann@example.org", "metadata": {"who": "bob"}, "safety_identifier": "carl"}
    with caplog.at_level(logging.DEBUG), serving(api_keys=("key-1",), join=True) as served:
        text = httpx.post(served.url + CHAT, json=fields, headers=key).json()["choices"][0]["message"]["content"]
        httpx.post(served.url + CHAT, json={**fields, "stream": True}, headers=key)
        httpx.post(served.url + CHAT, json={**fields, "top_p": 7}, headers=key)
        httpx.post(f"{served.url}{CHAT}?api_key=key-1", json=fields, headers={"X-Api-Key": "key-2"})
        the_last(caplog, 4)
    logged = repr([record.__dict__ for record in caplog.records if record.name.startswith("llm_local")])
    for word in (SECRET, text, "ann@", "bob", "carl", "key-1", "key-2", "Bearer"):
        assert word not in logged


def test_a_user_has_the_same_hash_in_every_line_and_another_than_others(http: httpx.Client, lines: Lines) -> None:
    hashes = []
    for number, user in enumerate(("ann", "ann", "bob"), 1):
        http.post(CHAT, json={**BODY, "user": user})
        hashes.append(the_last(lines, number).fields["user"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_errors_have_their_line_with_the_code(http: httpx.Client, lines: Lines) -> None:
    for number, (call, status, error, route) in enumerate(
        (
            (lambda: http.get("/nowhere"), 404, "not_found", "unknown"),
            (lambda: http.get(CHAT), 405, "method_not_allowed", CHAT),
            (lambda: http.post(CHAT, content=b"{"), 400, "invalid_request_error", CHAT),
            (lambda: http.post(CHAT, json={**BODY, "model": "x"}), 404, "model_not_found", CHAT),
        ),
        1,
    ):
        call()
        line = the_last(lines, number)
        assert (line.head["status"], line.fields["error"], line.fields["route"]) == (status, error, route)
        assert line.levelname == "INFO"


def test_a_path_cannot_forge_a_line(http: httpx.Client, lines: Lines) -> None:
    http.get("/x%0a2026-01-01 CRITICAL llm_local: all is lost" + "y" * 500)
    line = the_last(lines)
    assert line.head["path"].startswith("/x\n2026")  # `cli/logs.py` writes it as one line; see test_logs.py.
    assert len(line.head["path"]) == 200


def test_a_failed_request_is_a_warning(lines: Lines) -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    with serving(backend, join=True) as served, httpx.Client(base_url=served.url) as http:
        http.post(CHAT, json={**BODY, "max_tokens": 900, "timeout": 0.1})
        line = the_last(lines)
        assert (line.levelname, line.head["status"], line.fields["given_up"]) == ("WARNING", 504, "deadline")
        http.post(CHAT, json={**BODY, "max_tokens": 900, "timeout": 0.1, "stream": True})
        line = the_last(lines, 2)
        assert (line.levelname, line.head["status"], line.fields["error"]) == ("WARNING", 200, "deadline_exceeded")
        assert line.fields["generated_tokens"] > 0


def test_a_client_that_left_has_a_line_with_what_it_cost(lines: Lines) -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    with serving(backend, join=True) as served, socket.socket() as client:
        client.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        body = b'{"prompt": "abc", "max_tokens": 900, "ignore_eos": true, "stream": true}'
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        client.sendall(head % len(body) + body)
        time.sleep(0.2)
        client.close()
        line = the_last(lines)
    assert (line.levelname, line.fields["given_up"]) == ("INFO", "client_left")
    assert line.fields["prompt_tokens"] == 3
    assert line.fields["generated_tokens"] > 3


@pytest.mark.parametrize(("slow_request", "level"), [(0.05, "WARNING"), (5, "INFO"), (0, "INFO")])
def test_a_slow_request_is_a_warning_from_the_set_seconds_on(lines: Lines, slow_request: float, level: str) -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.01
    with serving(backend, slow_request=slow_request, join=True) as served:
        httpx.post(served.url + CHAT, json={**BODY, "max_tokens": 12})
        line = the_last(lines)
    assert line.levelname == level
    assert line.fields["slow"] is (True if level == "WARNING" else None)


def test_probes_are_logged_at_debug_level_only(http: httpx.Client, lines: Lines) -> None:
    for number, path in enumerate(("/health", "/health/live", "/metrics"), 1):
        http.get(path)
        assert the_last(lines, number).levelname == "DEBUG"


def test_what_was_embedded_is_in_the_line(http: httpx.Client, lines: Lines) -> None:
    http.post("/v1/embeddings", json={"input": ["ab", "cde"]})
    fields = the_last(lines).fields
    assert (fields["inputs"], fields["prompt_tokens"], fields["model"]) == (2, 5, "fake")


def test_the_name_of_a_key_is_in_the_line(lines: Lines) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["api_key"] = "dialog-manager"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        pass

    def load() -> Loaded:
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "state": {"request_id": "r"}}
    asyncio.run(Access(app, Runtime(Settings(), load))(scope, None, send))  # type: ignore[arg-type]
    assert the_last(lines).fields["key_name"] == "dialog-manager"


def test_a_bug_is_logged_with_the_id_of_its_request(caplog: pytest.LogCaptureFixture) -> None:
    from llm_local.server.requestlog import request_id

    seen = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(request_id.get())

    async def broken(request: Any) -> Any:
        raise ZeroDivisionError

    watch, log = Watch(), logging.getLogger("llm_local.server.errors")
    log.addHandler(watch)
    try:
        with serving(join=True) as served:
            served.app.add_route("/broken", broken)
            answer = httpx.get(served.url + "/broken", headers={"x-request-id": "abc"})
    finally:
        log.removeHandler(watch)
    assert (answer.status_code, seen) == (500, ["abc"])
    assert the_last(caplog).levelname == "WARNING"
