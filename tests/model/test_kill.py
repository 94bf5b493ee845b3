"""kill -9 at each step of a start, from the download to the first entry of the disk cache: nothing is lost by it.

The process halts itself at the step and says so, so that no moment has to be guessed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.model.conftest import START_TIMEOUT_S, is_ready
from tests.models.conftest import environment, none_left, start  # noqa: F401
from tests.models.hub import Hub
from tests.models.test_commands import free_port, wait_for

pytestmark = [pytest.mark.model, pytest.mark.slow]

FILE = "smollm2-135m-instruct-q4_1.gguf"
SYSTEM = "Answer in few words, politely, and never twice the same. " * 40
"""Enough tokens for an entry of the disk cache."""

STEPS = {
    "the whole file has not its name yet": ("llm_local.models.pull", "_Pull._finish"),
    "the file has its name, its origin is not noted": ("llm_local.models.pull", "note_origin"),
    "the weights are about to be loaded": ("llm_local.llama.model", "LlamaModel.__init__"),
    "the grammar tables are built": ("llm_local.cli.load", "build_tokenizer"),
    "the context is made": ("llm_local.llama.backend", "LlamaBackend.__init__"),
    "it warms up": ("llm_local.llama.backend", "LlamaBackend.warm_up"),
    "a prefix is written and not durable": ("llm_local.engine.disk_file", "os.fsync"),
    "a prefix is durable and has not its name yet": ("llm_local.engine.disk_file", "Path.replace"),
}
"""What is happening, in the order of a start, and the function that begins with it."""

HALT = """
import importlib, sys, time
module, _, name = sys.argv.pop(1).partition(":")
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
def halt(*_, **__):
    sys.stderr.write("HALTED\\n")
    sys.stderr.flush()
    time.sleep(600)
setattr(owner, last, halt)
from llm_local.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def halting(step: str, arguments: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a server until it is at a step of its start."""
    module, name = STEPS[step]
    command = [sys.executable, "-c", HALT, f"{module}:{name}", *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, text=True)
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while "HALTED" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def test_kill_9_at_each_step_of_a_start_loses_nothing_and_the_next_start_is_clean(
    smol_path: Path, tmp_path: Path
) -> None:
    prefixes, cache = tmp_path / "prefixes.json", tmp_path / "cache"
    prefixes.write_text(json.dumps([SYSTEM]))
    with Hub(tmp_path / "hub") as hub:
        published = hub.folder / "me" / "SmolLM2-GGUF" / FILE
        published.parent.mkdir(parents=True)
        published.symlink_to(smol_path)
        settings = {"LLM_CTX": "2048", "LLM_DISK_CACHE_DIR": str(cache), "LLM_WARM_PREFIXES": str(prefixes)}
        env = environment(hub, tmp_path, LLM_MODEL=f"me/SmolLM2-GGUF:{FILE}", **settings)
        port = str(free_port())
        base = f"http://127.0.0.1:{port}"
        for step in STEPS:
            with halting(step, ["serve", "--port", port], env, tmp_path / "halted.log") as process:
                assert httpx.get(base + "/health/live").status_code == 200
                process.kill()
            assert list(cache.glob("*.kv")) == [], "what is not whole has no name"
        assert hub.sent[FILE] == smol_path.stat().st_size, "no byte was fetched twice"

        for _ in ("an entry is written", "it is found"):
            last = start(["serve", "--port", port], env)
            wait_for(partial(is_ready, last, base), START_TIMEOUT_S)
            body = {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello."}]}
            answer = httpx.post(base + "/v1/chat/completions", json={**body, "max_tokens": 4}, timeout=60).json()
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 200
            last.terminate()
            _, said = last.communicate(timeout=40)
            assert last.returncode == 0
            assert "Traceback" not in said
            assert "WARNING" not in said
            assert list(cache.glob("*.kv")) != []
        assert "prefixes of " in said
        assert hub.sent[FILE] == smol_path.stat().st_size
