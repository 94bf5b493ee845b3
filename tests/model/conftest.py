"""Real weights: the embedded SmolLM2 always, Qwen2.5 when LLM_LOCAL_TEST_QWEN names a GGUF."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from llm_local.llama.model import LlamaModel
from llm_local.models.locate import locate

START_TIMEOUT_S = 120


@dataclass
class Process:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(40)


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[Process]:
    """Run `python -m llm_local serve` on a free port, wait until it is ready, and stop it by its own handle."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "llm_local", "serve", "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    with log.open("w") as out:
        process = subprocess.Popen(command, stderr=out, stdout=out, text=True, env=environment)
    try:
        url = _wait_ready(process, log)
        yield Process(url, process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        found = re.search(r"listening on (http://[\d.:]+)", log.read_text())
        if found and httpx.get(found[1] + "/health").status_code == 200:
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def is_ready(process: subprocess.Popen[str], url: str) -> bool:
    """Whether a server that may not listen yet is ready; it must not have ended."""
    assert process.poll() is None
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def smol_path() -> Path:
    return locate("smollm2-135m", Path("models"))


@pytest.fixture(scope="session")
def qwen_path() -> Path:
    path = os.environ.get("LLM_LOCAL_TEST_QWEN")
    if not path:
        pytest.skip("LLM_LOCAL_TEST_QWEN does not name a GGUF")
    return Path(path)


@pytest.fixture(scope="session")
def smol(smol_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(smol_path)
    yield model
    model.close()


@pytest.fixture(scope="module")
def smol_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with served(tmp_path_factory.mktemp("smol"), "--ctx", "4096") as process:
        yield process


@pytest.fixture(scope="module")
def qwen_server(tmp_path_factory: pytest.TempPathFactory, qwen_path: Path) -> Iterator[Process]:
    arguments = ["--model", str(qwen_path), "--ctx", "8192", "--parallel", "8"]
    with served(tmp_path_factory.mktemp("qwen"), *arguments) as process:
        yield process
