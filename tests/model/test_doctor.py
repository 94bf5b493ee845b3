"""`llm-local doctor` on this machine and the embedded model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model


def doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    command = [sys.executable, "-m", "llm_local", "doctor", "--port", "0", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**environment, **variables}
    )


def test_it_says_what_there_is_and_that_the_server_would_start(tmp_path: Path) -> None:
    result = doctor("--models-dir", str(tmp_path))
    assert result.returncode == 0, result.stdout
    for says in ("CPU ", "Memory ", "GPUs ", "Build ", "llama, 30 layers, 135 million weights, 92 MiB", "Plan ",
                 "tokens a second", "Server ", "Disk ", str(tmp_path), "llguidance", "would start"):  # fmt: skip
        assert says in result.stdout
    assert "\033[" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 160


def test_the_same_as_json() -> None:
    found = json.loads(doctor("--json", "--kv-type", "q8_0", "--threads", "1").stdout)
    assert found["would_start"] is True
    assert found["reasons"] == []
    assert found["model"]["n_layers"] == 30
    assert found["model"]["kv_bytes_per_token"] == 23040 * 34 // 64
    assert found["cpu"]["threads"] == 1
    assert found["plan"]["host"]["kv_bytes"] > 0
    assert found["speed"]["host_bytes_per_second"] > 1e8
    assert found["packages"]["llama-cpp-python"]


@pytest.mark.parametrize(
    ("arguments", "variables", "reason"),
    [
        (["--ctx", "200000000"], {}, "set LLM_CTX to at most"),
        (["--model", "nowhere"], {}, "no such model"),
        (["--draft-model", "nowhere"], {}, "no such model"),
        (["--ctx", "x"], {}, "bad value for --ctx (flag)"),
        ([], {"LLM_CTXX": "1"}, "unknown setting LLM_CTXX"),
        (["--host", "203.0.113.1"], {}, "cannot listen on 203.0.113.1:0"),
        (["--host", "a..b"], {}, "cannot listen on a..b:0"),
        (["--api-keys-file", "/nowhere"], {}, "cannot read the keys in /nowhere"),
        (["--ssl-certfile", "/nowhere"], {}, "cannot read /nowhere (LLM_SSL_CERTFILE"),
        (["--chat-template", "/nowhere"], {}, "chat_template is '/nowhere'"),
        (["--disk-cache-dir", "/dev/null"], {}, "disk_cache_dir is /dev/null, which cannot be read and written"),
        (["--model", "qwen2.5-7b-instruct"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and Qwen/Qwen2.5-7B"),
    ],
)
def test_what_would_not_start_is_exit_1_with_the_reason(arguments: list, variables: dict, reason: str) -> None:
    result = doctor("--json", *arguments, **variables)
    assert result.returncode == 1
    assert reason in json.loads(result.stdout)["reasons"][0]
    assert result.stderr == ""


def test_a_port_that_is_taken_is_a_reason() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = doctor("--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert "taken" in result.stdout


def test_a_damaged_header_is_a_reason(tmp_path: Path, smol_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(smol_path.read_bytes()[:3000])
    result = doctor("--model", str(tmp_path / "cut.gguf"))
    assert result.returncode == 1
    assert "cannot load" in result.stdout


def test_a_file_that_was_copied_in_part_is_a_reason(tmp_path: Path, smol_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(smol_path.read_bytes()[:50_000_000])
    result = doctor("--json", "--model", str(tmp_path / "half.gguf"))
    assert result.returncode == 1
    assert "half.gguf is cut off: it has 50000000 bytes of 98362432" in json.loads(result.stdout)["reasons"][0]
