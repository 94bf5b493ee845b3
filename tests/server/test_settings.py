"""Settings whose effect shows on fakes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_local.cli.serve import _bind
from llm_local.config import Settings
from llm_local.server.generation import sampling_params
from llm_local.server.schema import ChatRequest
from tests.server.conftest import ByteVocabulary, serving
from tests.server.test_errors import error_of

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("name", "default", "asked"),
    [
        ("temperature", 0.7, 0.2),
        ("top_p", 0.9, 0.5),
        ("top_k", 40, 7),
        ("min_p", 0.05, 0.3),
        ("repeat_penalty", 1.1, 1.5),
    ],
)
def test_sampling_settings_hold_where_the_request_is_silent(name: str, default: float, asked: float) -> None:
    settings = Settings.model_validate({name: default})

    def params(**fields: Any) -> Any:
        body = ChatRequest.model_validate({"messages": MESSAGES, **fields})
        return getattr(sampling_params(body, settings, ByteVocabulary(), None), name)

    assert params() == default
    assert params(**{name: asked}) == asked


def test_request_timeout_is_the_deadline_of_every_request() -> None:
    with serving(request_timeout=0.1) as served:
        served.backend.delay_s = 0.01
        answer = httpx.post(served.url + CHAT, json={"messages": MESSAGES, "max_tokens": 400, "ignore_eos": True})
        assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")


def test_host_and_port_are_where_it_listens() -> None:
    with _bind("127.0.0.2", 0) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.2"
    with _bind("127.0.0.2", port) as again:
        assert again.getsockname() == ("127.0.0.2", port)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "logged", "unlogged"),
    [
        (["--log-level", "info"], "INFO", "DEBUG"),
        (["--log-level", "warning"], "WARNING", "INFO"),
        (["--log-level", "warning", "--verbose", "true"], "DEBUG", "nothing"),
    ],
)
def test_log_level_and_verbose_are_how_much_is_logged(
    tmp_path: Path, arguments: list[str], logged: str, unlogged: str
) -> None:
    log, name = tmp_path / "log", "smollm2-135m-instruct"
    command = [sys.executable, "-m", "llm_local", "serve", "--port", "0", "--model", name, *arguments]
    upstream = ["--engine", "openai_compatible", "--upstream-url", "http://127.0.0.1:9"]
    with log.open("w") as out:
        process = subprocess.Popen([*command, *upstream], stderr=out, env={"PATH": "/usr/bin"})
        try:
            end = time.monotonic() + 30
            while "not ready: " not in log.read_text():
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
        finally:
            process.terminate()
            assert process.wait(20) == 0
    assert f" {logged} " in log.read_text()
    assert f" {unlogged} " not in log.read_text()
