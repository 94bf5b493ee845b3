"""Connections: how many, how slow, how large; and that nobody who is slow holds others up."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.fakes import FakeBackend
from tests.server.conftest import Served, serving

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    data = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data


def answer(connection: socket.socket) -> bytes:
    """Return one answer of an open connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def error_of(data: bytes) -> tuple[int, str]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def alive(served: Served) -> bool:
    return httpx.post(served.url + CHAT, json=BODY).status_code == 200


UNFINISHED = {
    "nothing": b"",
    "half a line": b"POST /v1/chat",
    "half a head": HEAD,
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
}


def test_a_client_that_does_not_finish_its_request_is_let_go() -> None:
    with serving(receive_timeout=0.15) as served, ExitStack() as stack:
        began = time.monotonic()
        connections = {what: stack.enter_context(connected(served)) for what in UNFINISHED}
        for what, connection in connections.items():
            connection.sendall(UNFINISHED[what])
        for what, connection in connections.items():
            assert error_of(rest(connection)) == (408, "receive_timeout"), what
            assert 0.1 < time.monotonic() - began < 3
        assert alive(served)


def test_a_byte_now_and_then_does_not_prolong_the_time() -> None:
    with serving(receive_timeout=0.2) as served, connected(served) as connection:
        began = time.monotonic()
        connection.settimeout(0.02)
        got = b""
        for byte in HEAD + b"X-Long: " + b"x" * 1000:
            try:
                connection.sendall(bytes([byte]))
                got = connection.recv(1000)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 3
        assert got.startswith(b"HTTP/1.1 408 ")


def test_the_time_runs_for_the_second_request_of_a_connection_too_and_not_in_between() -> None:
    with serving(receive_timeout=0.1) as served, connected(served) as connection:
        body = json.dumps(BODY).encode()
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        connection.sendall(whole)
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.15)
        connection.sendall(whole)
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HEAD)
        assert error_of(rest(connection)) == (408, "receive_timeout")


def test_a_long_answer_is_not_cut_by_the_time_to_send_in() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    with serving(backend, receive_timeout=0.1) as served:

        def ask(stream: bool) -> httpx.Response:
            fields = {**BODY, "max_tokens": 30, "ignore_eos": True, "stream": stream}
            return httpx.post(served.url + CHAT, json=fields)

        with ThreadPoolExecutor() as pool:
            streamed, plain = pool.map(ask, (True, False))
    for answer in (streamed, plain):
        assert answer.status_code == 200
        assert answer.elapsed.total_seconds() > 0.1
        assert ("[DONE]" in answer.text) == (answer is streamed)


def test_two_requests_at_once_on_one_connection_are_answered_in_turn() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    with serving(backend, receive_timeout=0.1) as served, connected(served) as connection:
        body = json.dumps({**BODY, "max_tokens": 30, "ignore_eos": True}).encode()
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        # The second may take its time as long as the first is not answered, which takes longer than the limit.
        connection.sendall(whole + whole[:-20])
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(whole[-20:])
        assert answer(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_with_two_requests_under_way_frees_its_place(stream: bool, apart: bool) -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    with serving(backend) as served:
        body = json.dumps({**BODY, "max_tokens": 3000, "ignore_eos": True, "stream": stream}).encode()
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with connected(served) as connection:
            connection.sendall(whole if apart else whole + whole)
            wait_until(lambda: served.engine.n_open == 1)
            if apart:
                connection.sendall(whole)
                time.sleep(0.05)
        # 3,000 steps would take 15 s.
        wait_until(lambda: served.engine.n_open == 0)


def wait_until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_is_no_http_behind_a_stream_does_not_fall_into_it() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    with serving(backend) as served, connected(served) as connection:
        body = json.dumps({**BODY, "max_tokens": 100, "ignore_eos": True, "stream": True}).encode()
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        connection.sendall(whole + whole)
        data = connection.recv(1000)
        connection.sendall(b"\x16\x03 garbage\r\n\r\n")
        data += rest(connection)
    assert data.count(b"HTTP/1.1 ") == 1
    # Of 400 alone the request's own id may have the digits.
    assert b"Bad Request" not in data


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 1_000_000,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 90_000 + b"\r\n",
        b"GET /" + b"x" * 1_000_000,
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n",
    ],
    ids=["one header without end", "many headers", "a path without end", "a long path", "a long header"],
)
def test_a_head_over_the_limit_is_431(head: bytes) -> None:
    with serving() as served, connected(served) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(head)
        data = rest(connection)
        assert data == b"" or error_of(data) == (431, "headers_too_large")
        assert alive(served)


def test_the_limit_of_a_head_can_be_set_and_what_is_under_it_passes() -> None:
    with serving(max_header_bytes=2000) as served, httpx.Client(base_url=served.url, verify=False) as http:
        assert http.get("/health", headers={"x-long": "x" * 1500}).status_code == 200
        answer = http.get("/health", headers={"x-long": "x" * 2500})
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
        assert "2000 bytes" in answer.text


def test_a_connection_too_many_is_503_and_another_may_come_when_one_goes() -> None:
    with serving(max_connections=2) as served:
        with connected(served) as one, connected(served) as two, connected(served) as three:
            assert error_of(rest(three)) == (503, "too_many_connections")
            assert 'llm_local_errors_total{code="too_many_connections"} 1.0' in served.runtime.metrics.text().decode()
            for each in (one, two):
                each.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert each.recv(1000).startswith(b"HTTP/1.1 200 ")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            answer = httpx.get(served.url + "/health")
            if answer.status_code == 200:
                return
            assert answer.headers["retry-after"] == "5"
        raise AssertionError("no connection became free")


def stalled(served: Served, path: str, body: dict[str, Any], more: str = "") -> socket.socket:
    """Ask for something large, and read nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", served.port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}Content-Length: {len(data)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/apply-template", {"messages": [{"role": "user", "content": "x" * 2_000_000}]}),
        (CHAT, {**BODY, "max_tokens": 500, "ignore_eos": True, "stream": True, "logprobs": True, "top_logprobs": 20}),
    ],
    ids=["an answer", "a stream"],
)  # fmt: skip
def test_who_reads_nothing_of_an_answer_does_not_keep_its_connection(path: str, body: dict[str, Any]) -> None:
    backend = FakeBackend(n_ctx=8192, n_batch=256, n_slots=8, n_outputs=40)
    settings = {"send_timeout": 0.2, "max_connections": 1}
    with serving(backend, window=1500, send_buffer=4096, **settings) as served, stalled(served, path, body):
        end = time.monotonic() + 15
        while httpx.get(served.url + "/health").status_code != 200:
            assert time.monotonic() < end, "the connection is still there"
            time.sleep(0.02)


def test_who_reads_slowly_gets_the_whole_answer() -> None:
    """For longer than the time in which one that reads nothing is given up."""
    body = {"messages": [{"role": "user", "content": "x" * 2_000_000}]}
    with (
        serving(send_timeout=0.2, send_buffer=4096) as served,
        stalled(served, "/apply-template", body, "Connection: close\r\n") as connection,
    ):
        began, size = time.monotonic(), 0
        while data := connection.recv(200_000):
            size += len(data)
            if time.monotonic() - began < 0.5:
                time.sleep(0.02)
                assert size < 1_000_000
        assert size > 2_000_000


@pytest.mark.parametrize(
    "sends", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", HEAD + b"Content-Length: -1\r\n\r\n"]
)
def test_what_is_no_http_is_400_in_the_envelope(sends: bytes) -> None:
    with serving() as served, connected(served) as connection:
        connection.sendall(sends)
        data = rest(connection)
        assert data.startswith(b"HTTP/1.1 400 ")
        assert b'"type":"invalid_request_error"' in data
        assert b"\r\nx-request-id: req_" in data
        assert b"\r\nx-content-type-options: nosniff\r\n" in data
        assert alive(served)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_a_wish_for_another_protocol_is_ignored(upgrade: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving() as served:
        headers = {"connection": "Upgrade", "upgrade": upgrade, "sec-websocket-key": "x", "sec-websocket-version": "13"}
        assert httpx.get(served.url + "/health", headers=headers).status_code == 200
        body = {**BODY, "messages": [{"role": "user", "content": "\r\nUpgrade: h2c"}]}
        assert httpx.post(served.url + CHAT, json=body, headers=headers).status_code == 200
    assert not caplog.records


def test_a_compressed_body_is_415() -> None:
    with serving() as served:
        for encoding, status in (("gzip", 415), ("br", 415), ("identity", 200)):
            answer = httpx.post(served.url + CHAT, json=BODY, headers={"content-encoding": encoding})
            assert answer.status_code == status


def test_a_chunked_body_without_a_length_is_read_to_its_limit() -> None:
    with serving(max_body_bytes=2000) as served, connected(served) as connection:
        body = json.dumps(BODY).encode()
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for byte in body:
            connection.sendall(b"1\r\n%c\r\n" % byte)
        connection.sendall(b"0\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"7d0\r\n" + b" " * 2000 + b"\r\n1\r\n{\r\n")
        assert error_of(answer(connection)) == (413, "request_too_large")
