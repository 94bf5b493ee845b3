"""What is shown of addresses, wherever they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_local import config
from llm_local.address import shown
from llm_local.cli import main, serve
from llm_local.client import LocalLLMClient, ServerUnreachable, Target

SIGNED = "https://me:sesame@files.test/my-Q4_0.gguf?signature=sesame"
OTHER = "ftp://me:sesame@files.test/x?signature=sesame"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (SIGNED, "https://files.test/my-Q4_0.gguf?..."),
        ("https://files.test/a@b.gguf", "https://files.test/a@b.gguf"),
        ("http://me:p@ss@[::1]:80/x#sesame", "http://[::1]:80/x"),
        ("http://[::1", "http://[::1"),
        ("http://me@[::1?sesame", "http://[::1?..."),
        ("owner/name:file.gguf", "owner/name:file.gguf"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_what_lets_others_in(address: str, text: str) -> None:
    assert shown(address) == text


@pytest.mark.parametrize("name", ["model", "model_url", "upstream_url", "draft_model", "embedding_model"])
def test_config_shows_no_secret_of_an_address(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", config.flag_name(name), SIGNED]) == 0
    out = capsys.readouterr().out
    assert "https://files.test/my-Q4_0.gguf" in out
    assert "sesame" not in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["pull", OTHER],
        ["doctor", "--model", OTHER],
        ["doctor", "--model-url", OTHER],
        ["doctor", "--model", "qwen2.5-7b-instruct", "--model-url", "https://me:sesame@[files.test/x?signature=sesame"],
        ["doctor", "--engine", "openai_compatible", "--upstream-url", OTHER],
    ],
)
def test_neither_does_an_error_or_doctor(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--models-dir", str(tmp_path)]) in (1, 2)
    out, err = capsys.readouterr()
    assert "sesame" not in out + err
    assert "files.test" in out + err


def test_doctor_shows_no_secret_of_what_would_be_fetched_or_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["--model", SIGNED],
        ["--model-url", SIGNED],
        ["--engine", "openai_compatible", "--upstream-url", "https://me:sesame@files.test/v1"],
    ):
        main(["doctor", "--json", "--port", "0", *arguments, "--models-dir", str(tmp_path)])
        out = capsys.readouterr().out
        assert "sesame" not in out
        assert "files.test" in json.dumps(json.loads(out))


def test_the_client_shows_no_secret_of_its_address() -> None:
    target = Target(base_url="http://me:sesame@127.0.0.1:9/v1")
    with LocalLLMClient(target, n_retries=0) as client, pytest.raises(ServerUnreachable) as error:
        client.chat_completion([])
    assert str(error.value).startswith("no server answers at http://127.0.0.1:9/v1: ")


def test_an_address_is_no_name_of_a_model_at_an_upstream() -> None:
    settings = config.Settings(engine="openai_compatible", upstream_url="http://x", model=SIGNED)
    assert serve._upstream(settings).names == ()
