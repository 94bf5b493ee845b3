"""From an old environment file to a served model: fetched from the stand-in hub, loaded, answering."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.model.conftest import START_TIMEOUT_S, is_ready
from tests.models.conftest import environment, none_left, start  # noqa: F401
from tests.models.hub import Hub
from tests.models.test_commands import free_port, partial_bytes, wait_for

pytestmark = pytest.mark.model

FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"


def test_a_server_fetches_its_model_says_so_meanwhile_and_answers(smol_path: Path, tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as hub:
        published = hub.folder / "me" / "SmolLM2-GGUF" / FILE.lower()
        published.parent.mkdir(parents=True)
        published.symlink_to(smol_path)
        half = smol_path.stat().st_size // 2
        hub.faults.hold_at = half
        url = f"https://huggingface.co/me/SmolLM2-GGUF/resolve/main/{FILE}"
        env = environment(hub, tmp_path, LLM_MODEL=FILE, LLM_MODEL_URL=url, LLM_CTX="512")
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        first = start(["serve", "--port", str(port)], env)
        wait_for(lambda: first.poll() is not None or partial_bytes(tmp_path) == half)
        assert first.poll() is None, first.communicate()
        answer = httpx.get(base + "/health")
        assert answer.status_code == 503
        assert "downloading 50 % of smollm2-135m-instruct-q4_1 (98 MB)" in answer.json()["error"]["message"]
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
        assert httpx.post(base + "/v1/chat/completions", json=body).status_code == 503
        first.kill()
        first.communicate()

        hub.faults.hold_at = None
        second = start(["serve", "--port", str(port)], env)
        wait_for(lambda: is_ready(second, base), START_TIMEOUT_S)
        assert hub.seen[-1].range == f"bytes={half}-"
        answer = httpx.post(base + "/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["model"] == "smollm2-135m-instruct"
        assert [path.name for path in (tmp_path / "models").glob("*.gguf")] == [FILE.lower()]
        second.terminate()
        second.communicate(timeout=40)
        assert second.returncode == 0
