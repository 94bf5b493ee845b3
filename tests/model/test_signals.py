"""Signals and ends of a real process: draining, a second signal, reloading, kill -9."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from tests.model.conftest import Process, served
from tests.test_tls import pair

pytestmark = pytest.mark.model

ENDLESS = {"prompt": "Once upon a time", "max_tokens": 3000, "ignore_eos": True}


def begun(process: subprocess.Popen[str], log: Path, mark: str) -> None:
    """Wait until the log has `mark`."""
    end = time.monotonic() + 60
    while mark not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


@contextmanager
def started(folder: Path, *arguments: str, first: str = "") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a server, after some Python if wanted, and do not wait until it is ready."""
    log = folder / "server.log"
    code = f"import sys, time, llm_local.cli\n{first}\nsys.exit(llm_local.cli.main(sys.argv[1:]))"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port", "0", *arguments], stderr=out, stdout=out, text=True
        )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def answering(server: Process, **fields: object) -> Iterator[list[str]]:
    """Have an answer streamed; the list has its lines, the last of them at the end of the block."""
    lines: list[str] = []
    first = threading.Event()

    def read() -> None:
        try:
            body = {**ENDLESS, **fields, "stream": True}
            with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    first.set()
        except httpx.HTTPError as error:
            lines.append(repr(error))

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(30)
    try:
        yield lines
    finally:
        thread.join(60)


def test_sigterm_refuses_what_is_new_and_lets_running_answers_finish(tmp_path: Path) -> None:
    with served(tmp_path, "--ctx", "4096") as server:
        with answering(server, max_tokens=150) as lines:
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            ready = httpx.get(server.url + "/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert "server" not in ready.headers
            assert httpx.get(server.url + "/health/live").status_code == 200
            refused = httpx.post(server.url + "/v1/completions", json=ENDLESS)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "5"
        assert lines[-2:] == ["data: [DONE]", ""]
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log.read_text()


def test_what_does_not_finish_in_time_ends_with_an_error(tmp_path: Path) -> None:
    with served(tmp_path, "--ctx", "8192", "--drain-timeout", "0.3") as server:
        whole: list[httpx.Response] = []
        url = server.url + "/v1/completions"
        thread = threading.Thread(target=lambda: whole.append(httpx.post(url, json=ENDLESS, timeout=60)))
        thread.start()
        with answering(server) as lines:
            time.sleep(0.3)
            began = time.monotonic()
            server.process.send_signal(signal.SIGINT)
        thread.join()
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "draining"
        assert (whole[0].status_code, whole[0].json()["error"]["code"]) == (503, "draining")
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in server.log.read_text()


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    for sign, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with served(tmp_path, "--ctx", "4096") as server, answering(server):
            server.process.send_signal(sign)
            begun(server.process, server.log, "no new requests")
            began = time.monotonic()
            server.process.send_signal(sign)
            assert server.process.wait(20) == code
            assert time.monotonic() - began < 2


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_server_runs_ends_it(tmp_path: Path, sign: signal.Signals, code: int) -> None:
    # As in a container, whose first process starts without handlers.
    first = (
        "import signal, llm_local.cli.serve as serve\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "serve._bind = lambda *_: (print('begun', flush=True), time.sleep(60))"
    )
    with started(tmp_path, first=first) as (process, log):
        begun(process, log, "begun")
        process.send_signal(sign)
        assert process.wait(5) == code
        assert "Traceback" not in log.read_text()


def test_an_engine_that_breaks_is_503_and_exit_code_1(tmp_path: Path) -> None:
    first = (
        "import llm_local.engine.engine_thread as engine\n"
        "def broken(*_): raise RuntimeError('a bug')\n"
        "engine.EngineThread._advance = broken"
    )
    with started(tmp_path, "--ctx", "512", first=first) as (process, log):
        begun(process, log, "ready: ")
        url = log.read_text().partition("listening on ")[2].partition(",")[0]
        answer = httpx.post(url + "/v1/completions", json={"prompt": "x"}, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
        assert process.wait(20) == 1
        assert "the engine thread died" in log.read_text()


@pytest.mark.parametrize("after_s", [0, 3], ids=["while it loads", "while it warms up"])
def test_sigterm_ends_a_start_promptly(tmp_path: Path, after_s: float) -> None:
    prefixes = tmp_path / "prefixes.json"
    prefixes.write_text(json.dumps([{"messages": [{"role": "system", "content": "Some words. " * 1300}]}]))
    with started(tmp_path, "--ctx", "8192", "--warm-prefixes", str(prefixes)) as (process, log):
        begun(process, log, "listening on")
        url = log.read_text().partition("listening on ")[2].partition(",")[0]
        assert httpx.get(url + "/health/live", timeout=30).status_code == 200
        time.sleep(after_s)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in log.read_text()


def test_sighup_reloads_keys_and_certificates_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = pair(authority, tmp_path, "a")
    keys = tmp_path / "keys.txt"
    keys.write_text("alice: old\n")
    keys.chmod(0o600)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    def status(port: int, sent: str) -> int:
        with httpx.Client(verify=trust) as http:
            return http.get(f"https://127.0.0.1:{port}/v1/models", headers={"x-api-key": sent}).status_code

    def shown(port: int) -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            trust.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            return secure.getpeercert(binary_form=True)

    files = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--api-keys-file", str(keys)]
    with started(tmp_path, "--ctx", "512", *files) as (process, log):
        begun(process, log, "ready: ")
        port = int(log.read_text().partition("listening on https://127.0.0.1:")[2].partition(",")[0])
        first = shown(port)
        assert [status(port, sent) for sent in ("old", "new")] == [200, 401]
        newer, newer_key = pair(authority, tmp_path, "b")
        newer.replace(certificate)
        newer_key.replace(key)
        keys.write_text("alice: new\n")
        process.send_signal(signal.SIGHUP)
        begun(process, log, "API keys reloaded")
        assert [status(port, sent) for sent in ("old", "new")] == [401, 200]
        second = shown(port)
        assert second != first
        certificate.write_text("no certificate")
        keys.write_text("# nobody\n")
        process.send_signal(signal.SIGHUP)
        begun(process, log, "API keys not reloaded, the old ones stay")
        assert "certificates not reloaded, the old ones stay" in log.read_text()
        assert [status(port, sent) for sent in ("old", "new")] == [401, 200]
        assert shown(port) == second
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_wrong_certificates_and_keys_are_known_before_the_weights_are_loaded(tmp_path: Path) -> None:
    for flag, says in (("--ssl-certfile", "LLM_SSL_CERTFILE"), ("--api-keys-file", "LLM_API_KEYS_FILE")):
        with started(tmp_path, flag, str(tmp_path / "none")) as (process, log):
            assert process.wait(30) == 2
            text = log.read_text()
            assert text.count("\n") == 1
            assert says in text
            assert "No such file" in text


def test_after_kill_9_in_mid_start_and_in_mid_answer_the_next_start_is_clean(tmp_path: Path) -> None:
    cache = ["--disk-cache-dir", str(tmp_path / "cache"), "--ctx", "4096", "--host-cache-mb", "8"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with started(tmp_path, "--port", port, *cache) as (process, log):
        begun(process, log, "listening on")
        process.kill()
    prompts = [f"{number} " + "Once upon a time. " * 50 for number in range(2)]
    with served(tmp_path, "--port", port, *cache) as server:
        for prompt in prompts:
            body = {"prompt": prompt, "max_tokens": 2}
            assert httpx.post(server.url + "/v1/completions", json=body, timeout=60).status_code == 200
        with answering(server) as lines:
            server.process.kill()
        assert "[DONE]" not in "".join(lines)
    with served(tmp_path, "--port", port, *cache) as server:
        for prompt in prompts:
            body = {"prompt": prompt, "max_tokens": 2}
            assert httpx.post(server.url + "/v1/completions", json=body, timeout=60).status_code == 200
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
        assert "WARNING" not in server.log.read_text()


def test_two_colons_listen_on_every_address_and_warn_without_a_key(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with started(tmp_path, "--host", "::", "--ctx", "512") as (process, log):
        begun(process, log, "anyone who reaches [::]:")
        port = int(log.read_text().partition("listening on http://[::]:")[2].partition(",")[0])
        for address in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{address}:{port}/health/live").status_code == 200
        assert "set LLM_API_KEYS" in log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
