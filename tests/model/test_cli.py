"""The command line on real files: what cannot start says why in one line and exits with 2."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from llm_local.config import Settings
from tests.model.conftest import served

pytestmark = pytest.mark.model


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm_local", "serve", "--port", "0", "--log-level", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def damaged(smol_path: Path, folder: Path, kind: str) -> Path:
    data, path = smol_path.read_bytes(), folder / f"{kind}.gguf"
    if kind == "truncated in its tensors":
        data = data[: len(data) // 2]
    elif kind == "truncated in its header":
        data = data[:3000]
    elif kind == "of an unknown architecture":
        at = data.index(b"llama", data.index(b"general.architecture"))
        data = data[:at] + b"xlamx" + data[at + 5 :]
    elif kind == "not a GGUF":
        data = b"hello, this is text"
    elif kind == "empty":
        data = b""
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated in its tensors", "is cut off: it has 49181216 bytes of 98362432"),
        ("truncated in its header", "it may be damaged or cut off: remove it, and copy or fetch it again"),
        ("of an unknown architecture", "0 layers of the architecture 'xlamx'"),
        ("not a GGUF", "is not a GGUF file"),
        ("empty", "is not a GGUF file"),
    ],
)
def test_a_damaged_file_is_one_line_and_exit_2(smol_path: Path, tmp_path: Path, kind: str, says: str) -> None:
    result = start("--model", str(damaged(smol_path, tmp_path, kind)))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def test_no_memory_for_the_kv_cache_says_what_fits() -> None:
    result = start("--ctx", "200000000")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "set LLM_CTX to at most" in result.stderr


def test_a_port_in_use_is_known_before_the_weights_are_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = start("--port", str(taken.getsockname()[1]))
    assert result.returncode == 2
    assert "Address already in use" in result.stderr
    assert result.stderr.count("\n") == 1


def test_gpu_layers_on_a_cpu_build_are_refused_with_the_way_out() -> None:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build has a GPU backend")
    result = start("--gpu-layers", "5")
    assert result.returncode == 2
    assert "LLM_GPU_LAYERS=0" in result.stderr


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(tmp_path: Path, sign: signal.Signals) -> None:
    with served(tmp_path, "--ctx", "512") as server:
        body = {"prompt": "Once", "max_tokens": 5}
        assert httpx.post(server.url + "/v1/completions", json=body, timeout=60).status_code == 200
        began = time.monotonic()
        server.process.send_signal(sign)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in server.log.read_text()


def test_help_is_quick_and_names_every_flag() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "llm_local", "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert "--prefill-chunk" in out.stdout
    loaded = "import sys, llm_local.cli; sys.exit(any(m in sys.modules for m in ('fastapi', 'llama_cpp', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "on_gpu", "seconds"),
    [({}, False, None), ({}, True, 0.05), ({"target_gap_ms": 80}, True, 0.08), ({"target_gap_ms": 80}, False, 0.08)],
)
def test_the_target_gap_is_50_ms_on_a_gpu_unless_it_is_set(settings: dict, on_gpu: bool, seconds: float | None) -> None:
    from llm_local.cli.load import _target_gap_s

    assert _target_gap_s(Settings.model_validate(settings), on_gpu=on_gpu) == seconds
