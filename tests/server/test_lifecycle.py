"""Loading, dying, draining, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from llm_local.errors import StartupError
from tests.examples import rest_is_slow
from tests.fakes import FakeBackend
from tests.server.conftest import Served, serving

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
ENDLESS = {"messages": MESSAGES, "max_tokens": 900, "ignore_eos": True}


def slow_backend() -> FakeBackend:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    return backend


def test_health_says_ok_or_why_not() -> None:
    gate = threading.Event()

    def load() -> None:
        gate.wait(5)
        raise StartupError("no such file")

    with serving(load=load, wait=False, join=True) as served, httpx.Client(base_url=served.url, verify=False) as http:
        answer = http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
        assert http.get("/health/live").status_code == 200
        answer = http.post(CHAT, json={"messages": MESSAGES})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        assert "retry-after" in answer.headers
        gate.set()
        while not served.failures:
            time.sleep(0.01)
        assert isinstance(served.runtime.failed, StartupError)


async def ask_and_leave(url: str, *, stream: bool) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http.post(CHAT, json={**ENDLESS, "stream": stream}), 0.15)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(stream: bool) -> None:
    with serving(slow_backend(), join=True) as served:
        asyncio.run(ask_and_leave(served.url, stream=stream))
        served.wait_idle(2)
        assert len(served.backend.batches) < 200


def test_a_client_that_leaves_while_it_sends_its_body_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with serving(join=True) as served:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as connection:
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                connection.sendall(head + b'Content-Length: 100\r\n\r\n{"mess')
                time.sleep(0.05)
        time.sleep(0.1)
        assert httpx.get(served.url + "/health").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("n_clients", rest_is_slow([60, 200]))
def test_many_clients_half_of_which_leave(n_clients: int) -> None:
    """Nothing hangs, no slot is lost, and the next request is served."""
    backend = FakeBackend(n_ctx=2048, n_batch=256, n_slots=8, n_outputs=40)
    with serving(backend, queue_max=200, join=True) as served:

        async def client(http: httpx.AsyncClient, number: int) -> int:
            body = {
                "messages": [{"role": "user", "content": f"{number} hello"}],
                "max_tokens": 8,
                "stream": number % 4 < 2,
            }
            if number % 2:
                try:
                    await asyncio.wait_for(http.post(CHAT, json=body), 0.01 + number % 7 * 0.02)
                except TimeoutError:
                    return 0
                return 1
            answer = await http.post(CHAT, json=body)
            assert answer.status_code in (200, 429), answer.text
            return answer.status_code

        async def storm() -> list[int]:
            limits = httpx.Limits(max_connections=300)
            async with httpx.AsyncClient(base_url=served.url, timeout=30, limits=limits) as http:
                return await asyncio.gather(*[client(http, number) for number in range(n_clients)])

        stayed = [status for status in asyncio.run(storm()) if status > 1]
        assert len(stayed) == n_clients / 2
        served.wait_idle()
        assert not served.engine._thread.scheduler.running
        assert not any(slot.busy for slot in served.engine._thread.scheduler.cache.slots)
        assert not any(sampler.open for sampler in backend.samplers)
        assert httpx.post(served.url + CHAT, json={"messages": MESSAGES, "max_tokens": 3}).status_code == 200


def test_a_dead_engine_ends_streams_with_an_error_and_turns_health_red() -> None:
    with serving(slow_backend(), join=True) as served, httpx.Client(base_url=served.url, verify=False) as http:
        with http.stream("POST", CHAT, json={**ENDLESS, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.backend.fail_with = RuntimeError("a bug")
            rest = "\n".join(lines)
        assert '"engine_dead"' in rest
        assert "[DONE]" not in rest
        answer = http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "engine_dead")
        assert http.post(CHAT, json={"messages": MESSAGES}).json()["error"]["code"] == "engine_dead"


def test_a_slow_reader_holds_nobody_up() -> None:
    """One client reads nothing of a long answer; another is served meanwhile, and the first then gets it all."""
    with serving(
        FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40), window=2000, join=True, send_buffer=4096
    ) as served:

        async def scenario() -> None:
            port = int(served.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            fields = {"messages": MESSAGES, "max_tokens": 500, "ignore_eos": True, "stream": True}
            body = json.dumps({**fields, "logprobs": True, "top_logprobs": 20}).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            async with httpx.AsyncClient(base_url=served.url, timeout=10) as http:
                for _ in range(5):
                    began = time.monotonic()
                    answer = await http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 5})
                    assert answer.status_code == 200
                    assert time.monotonic() - began < 5
            text = b""
            while chunk := await reader.read(65536):
                text += chunk
            assert text.count(b'"logprob"') >= 500 * 20
            assert b"[DONE]" in text
            writer.close()

        asyncio.run(scenario())
        served.wait_idle()


def test_a_reader_that_takes_nothing_is_given_up() -> None:
    backend = FakeBackend(n_ctx=8192, n_batch=256, n_slots=8, n_outputs=40)
    with serving(backend, window=1500, send_timeout=0.1, join=True, send_buffer=4096) as served:

        async def scenario() -> bytes:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
            reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
            fields = {"messages": MESSAGES, "max_tokens": 300, "ignore_eos": True, "stream": True}
            body = json.dumps({**fields, "logprobs": True, "top_logprobs": 20}).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            await asyncio.sleep(0.1)
            await asyncio.to_thread(served.wait_idle, 20)
            await asyncio.sleep(0.2)
            text = b""
            with contextlib.suppress(ConnectionError):
                while chunk := await asyncio.wait_for(reader.read(65536), 5):
                    text += chunk
            writer.close()
            return text

        text = asyncio.run(scenario())
        assert b"[DONE]" not in text


def test_requests_in_flight_finish_when_the_server_stops(server: Served) -> None:
    with serving(slow_backend(), join=True) as served:
        answers: list[httpx.Response] = []
        body = {"messages": MESSAGES, "max_tokens": 60, "ignore_eos": True, "stream": True}
        thread = threading.Thread(target=lambda: answers.append(httpx.post(served.url + CHAT, json=body, timeout=10)))
        thread.start()
        while served.engine.n_open == 0:
            time.sleep(0.005)
    thread.join()
    assert "[DONE]" in answers[0].text or "draining" in answers[0].text


def test_the_weights_are_freed_once_no_worker_uses_them_any_more() -> None:
    """One may still tokenize for a client who has left."""
    order: list[str] = []
    begun = threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.3)
        order.append("worked")

    with serving(join=True) as served:
        assert served.runtime.loaded is not None
        served.runtime.loaded.close = lambda: order.append("freed")
        served.runtime.workers.submit(work)
        assert begun.wait(5)
    assert order == ["worked", "freed"]
