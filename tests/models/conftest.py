"""A stand-in hub that the real client talks to, in this process or in others. Nothing here reaches the real one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from llm_local.models.patience import Patience
from llm_local.models.progress import Progress
from tests.models.hub import Hub

QWEN = "Qwen/Qwen2.5-7B-Instruct-GGUF"
Q5 = ["qwen2.5-7b-instruct-q5_k_m-00001-of-00002.gguf", "qwen2.5-7b-instruct-q5_k_m-00002-of-00002.gguf"]
ROOT = Path(__file__).parent.parent.parent


@cache
def weights(name: str, n: int = 300_000) -> bytes:
    """Bytes that begin as a GGUF does, others for each name."""
    return b"GGUF" + random.Random(name).randbytes(n - 4)


def use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process' client ask `url`, as HF_ENDPOINT does where it is set before the start."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template[len(constants.ENDPOINT) :])
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever forgets the stand-in reaches a port of this machine where nobody listens, and a cache of its own."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    use_endpoint("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub with Qwen2.5-7B as it is published; this process' client uses it."""
    with Hub(tmp_path / "hub") as standin:
        for file in [
            *Q5,
            "qwen2.5-7b-instruct-q2_k.gguf",
            *(f"qwen2.5-7b-instruct-fp16-0000{n}-of-00004.gguf" for n in (1, 2, 3, 4)),
        ]:
            standin.add(QWEN, file, weights(file))
        standin.add(QWEN, "README.md", b"# Qwen")
        use_endpoint(standin.url, monkeypatch)
        close_session()
        yield standin
        close_session()


@dataclass
class Waits:
    """Takes the place of sleeping: time passes at once."""

    slept: list[float] = field(default_factory=list)
    now: float = 0.0
    meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()

    def clock(self) -> float:
        return self.now

    def patience(self, retries: int = 3, timeout_s: float = 3600) -> Patience:
        return Patience(retries, timeout_s, sleep=self.sleep, clock=self.clock)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@dataclass
class Told:
    """What was said on the way."""

    notes: list[str] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        if progress.note is not None:
            self.notes.append(progress.note)


_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    for process in _STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    _STARTED.clear()


def environment(hub: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process that sees this hub alone."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "LLM_")) and "proxy" not in name.lower()
    }
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return {**plain, **home, "LLM_MODELS_DIR": str(tmp_path / "models"), **more}


def start(arguments: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    command = [sys.executable, "-m", "llm_local", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)
    _STARTED.append(process)
    return process
