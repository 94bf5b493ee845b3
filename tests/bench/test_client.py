"""One server as the client sees it: times, counts, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llm_local.bench.client import Answer, Client, Request
from tests.bench.server import Behave, Peer, peer, well

BODY = {"messages": [{"role": "user", "content": "Привет"}], "max_tokens": 3, "stream": True}


def ask(behave: Behave = well, *, n: int = 1, timeout_s: float = 5.0, **body: Any) -> Answer:
    """Ask n times over the same client; return the last answer."""

    async def main() -> Answer:
        async with peer(behave) as url:
            client = Client(url, timeout_s=timeout_s)
            for _ in range(n):
                answer = await client.send(Request(BODY | body), Answer())
            client.close()
            return answer

    return asyncio.run(main())


def test_an_answer_has_its_text_times_and_the_counts_of_its_usage() -> None:
    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        peer.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await peer.writer.drain()
        await asyncio.sleep(0.03)
        peer.text('«при"')
        await asyncio.sleep(0.01)
        peer.text("вет»")
        details = {"prompt_tokens_details": {"cached_tokens": 2}}
        details["completion_tokens_details"] = {"accepted_prediction_tokens": 4, "rejected_prediction_tokens": 1}
        peer.end_stream(5, 9, **details)

    answer = ask(behave)
    assert answer.error == ""
    assert answer.text == '«при"вет»'
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (5, 9, 2)
    assert (answer.accepted_tokens, answer.rejected_tokens, answer.finish) == (4, 1, "length")
    assert answer.first_s is not None
    # The role comes at once and is no text.
    assert answer.first_s - answer.due_s >= 0.03
    assert answer.first_s == answer.chunk_times[0] < answer.chunk_times[1]
    assert len(answer.gaps) == 1
    assert answer.gaps[0] >= 0.009


def test_events_that_are_split_over_chunks_and_packets_are_put_together() -> None:
    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        text = {"choices": [{"delta": {"content": "да"}}]}
        usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
        lines = [json.dumps(text, ensure_ascii=False), json.dumps(usage), "[DONE]"]
        data = "".join(f"data: {line}\r\n\r\n" for line in lines).encode()
        for byte in data:
            peer.chunk(bytes([byte]))
        peer.chunk(b"")

    answer = ask(behave)
    assert (answer.error, answer.text, answer.output_tokens) == ("", "да", 2)


def test_chunks_that_come_in_one_packet_have_no_gap_between_them() -> None:
    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        for _ in range(5):
            peer.text("a")
            peer.text("b")
            await peer.writer.drain()
            await asyncio.sleep(0.005)
        peer.end_stream(1, 10)

    answer = ask(behave)
    assert answer.text == "ab" * 5
    assert len(answer.gaps) == 4
    assert min(answer.gaps) > 0.004


def test_without_usage_tokens_are_counted_by_chunks_and_it_shows() -> None:
    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        for _ in range(3):
            peer.text("x")
        peer.event(b"[DONE]")
        peer.chunk(b"")

    answer = ask(behave)
    assert (answer.error, answer.output_tokens, answer.has_usage) == ("", 3, False)


@pytest.mark.parametrize(
    ("chunks", "counts"),
    [
        # Groq has them in a field of its own, beside or instead of OpenAI's.
        ([{"choices": [], "x_groq": {"usage": {"prompt_tokens": 5, "completion_tokens": 9}}}], (0, 2, False)),
        ([{"choices": [], "usage": None, "x_groq": {"usage": {"prompt_tokens": 5}}}], (0, 2, False)),
        ([{"usage": {"prompt_tokens": 5, "completion_tokens": 9}}, {"x_groq": {"usage": {}}}], (5, 9, True)),
        ([{"usage": {"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": []}}], (5, 0, True)),
        ([{"usage": 5, "x_groq": {"usage": {}}}], (0, 2, False)),
        ([{"usage": {"completion_tokens": "9"}}], (0, 0, True)),
        ([[{"usage": {"completion_tokens": 9}}]], (0, 2, False)),
    ],
)
def test_odd_counts_are_no_error(chunks: list[Any], counts: tuple[int, int, bool]) -> None:
    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        for text in ("a", "b"):
            peer.text(text)
        for chunk in chunks:
            peer.event(chunk)
        peer.event(b"[DONE]")
        peer.chunk(b"")

    answer = ask(behave)
    assert answer.error == ""
    assert (answer.prompt_tokens, answer.output_tokens, answer.has_usage) == counts


async def refuses(peer: Peer, path: str, body: dict[str, Any]) -> None:
    await peer.answer(429, {"error": {"message": "full", "type": "rate_limit_error", "code": "queue_full"}})


async def not_there(peer: Peer, path: str, body: dict[str, Any]) -> None:
    await peer.answer(501, {"error": {"message": "no", "type": "not_supported_error", "code": 501}})


async def breaks(peer: Peer, path: str, body: dict[str, Any]) -> None:
    await peer.answer(500, "no JSON object")


async def closes(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.begin_stream()
    peer.text("half")
    await peer.writer.drain()
    peer.writer.close()


async def closes_at_once(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.writer.close()


async def stops_without_done(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.begin_stream()
    peer.text("half")
    peer.chunk(b"")


async def fails_in_mid_stream(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.begin_stream()
    peer.text("half")
    peer.event({"error": {"message": "dead", "type": "server_error", "code": "engine_dead"}})
    peer.chunk(b"")


async def hangs(peer: Peer, path: str, body: dict[str, Any]) -> None:
    await asyncio.sleep(5)


async def hangs_in_mid_stream(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.begin_stream()
    peer.text("half")
    await peer.writer.drain()
    await asyncio.sleep(5)


async def speaks_something_else(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.writer.write(b"220 smtp ready\r\n\r\n")


async def answers_html(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi")


async def has_a_wrong_chunk(peer: Peer, path: str, body: dict[str, Any]) -> None:
    peer.begin_stream()
    peer.writer.write(b"zz\r\nx\r\n")


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (refuses, "http 429 queue_full"),
        (not_there, "http 501 not_supported_error"),
        (breaks, "http 500"),
        (closes, "closed early"),
        (closes_at_once, "closed early"),
        (stops_without_done, "closed early"),
        (fails_in_mid_stream, "stream engine_dead"),
        (hangs, "timeout"),
        (hangs_in_mid_stream, "timeout"),
        (speaks_something_else, "not understood"),
        (answers_html, "not understood"),
        (has_a_wrong_chunk, "not understood"),
    ],
)
def test_what_a_server_does_wrong_becomes_a_word(behave: Behave, error: str) -> None:
    answer = ask(behave, timeout_s=0.05 if error == "timeout" else 5.0)
    assert answer.error == error
    assert 0 < answer.end_s - answer.due_s < (0.9 if error == "timeout" else 4)


def test_nobody_there_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        answer = asyncio.run(Client(url).send(Request(BODY), Answer()))
    assert answer.error == "refused"


def test_nobody_at_any_address_of_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asyncio raises for localhost, which is ::1 and 127.0.0.1."""
    one = f"[Errno {errno.ECONNREFUSED}] Connect call failed "

    async def refuse(*_: Any, **__: Any) -> None:
        raise OSError(f"Multiple exceptions: {one}('::1', 9, 0, 0), {one}('127.0.0.1', 9)")

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    assert asyncio.run(Client("http://localhost:9/v1").send(Request(BODY), Answer())).error == "refused"


def test_a_server_without_tls_is_an_error_too() -> None:
    async def main() -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return (await Client(f"https://127.0.0.1:{port}/v1").send(Request(BODY), Answer())).error

    assert asyncio.run(main()).startswith("tls ")


def certificate(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 that signs itself."""
    path = folder / "tls.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(folder / "key.pem")]
    subprocess.run(["openssl", "req", "-x509", *key, "-out", str(path), *names], check=True, capture_output=True)
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize("trusted", [True, False])
def test_https_works_and_a_certificate_that_nobody_vouches_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    path = certificate(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path, tmp_path / "key.pem")

    async def main() -> Answer:
        async with peer(tls=tls) as url:
            client = Client(url)
            answer = await client.send(Request(BODY), Answer())
            client.close()
            return answer

    answer = asyncio.run(main())
    if trusted:
        assert (answer.error, answer.output_tokens) == ("", 3)
    else:
        assert answer.error == "tls certificate_verify_failed"


def test_connections_are_kept_and_one_that_was_closed_meanwhile_is_replaced() -> None:
    seen: list[Peer] = []

    async def closes_after_two(peer: Peer, path: str, body: dict[str, Any]) -> None:
        await well(peer, path, body)
        seen.append(peer)
        if [one.writer for one in seen].count(peer.writer) == 2:
            await peer.writer.drain()
            peer.writer.close()

    assert ask(closes_after_two, n=4).error == ""
    assert len({id(peer.writer) for peer in seen}) == 2


def test_a_connection_that_is_closed_as_the_next_request_comes_is_replaced_once() -> None:
    seen: list[Peer] = []

    async def takes_one_request_a_connection(peer: Peer, path: str, body: dict[str, Any]) -> None:
        seen.append(peer)
        if [one.writer for one in seen].count(peer.writer) == 2:
            return peer.writer.close()
        return await well(peer, path, body)

    assert ask(takes_one_request_a_connection, n=3).error == ""
    assert len(seen) == 5


def test_vectors_are_counted() -> None:
    async def main() -> Answer:
        async with peer() as url:
            client = Client(url)
            answer = await client.send(Request({"input": ["a", "b", "c"]}, "/embeddings"), Answer())
            client.close()
            return answer

    answer = asyncio.run(main())
    assert (answer.error, answer.n_inputs, answer.prompt_tokens) == ("", 3, 7)


def test_only_gaps_that_reach_into_the_window_count() -> None:
    answer = Answer(chunk_times=[0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    answer.window = (2.5, 5.5)
    assert answer.gaps == [3.0, 1.0]
