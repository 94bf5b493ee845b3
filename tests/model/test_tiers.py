"""Prefixes that leave the KV cells and come back, on real weights: by the host's memory, a file, a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from llm_local.cli import load
from llm_local.cli.fit import context_params
from llm_local.config import Settings
from llm_local.engine import disk_file
from llm_local.engine.state_bytes import allocate
from llm_local.errors import StartupError
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.fingerprint import fingerprint
from llm_local.llama.model import LlamaModel
from tests.model.conftest import Process, served
from tests.model.test_backend import LONG, rows
from tests.model.test_cli import start

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
RULES = [
    "You are an interviewer who asks one question at a time and never answers it yourself.",
    "Ask about the work that the person did, what they decided and why, and what they would do differently.",
    "Never ask for more than one thing at once, and do not thank the person for each answer.",
    "When an answer is short, ask for an example; when it is long, pick the one point that matters most.",
    "Speak plainly, without slang, and keep to the language in which you are addressed.",
    "Do not judge. Do not give advice. Do not speak about yourself, and do not invent facts about the company.",
]
SYSTEM = " ".join(f"Rule {number}: {rule}" for number, rule in enumerate(RULES * 2, 1))


@pytest.fixture(scope="module")
def qwen(qwen_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(qwen_path)
    yield model
    model.close()


def new_backend(model: LlamaModel, n_ctx: int = 1024) -> LlamaBackend:
    return LlamaBackend(model, ContextParams(n_ctx, 256, 256, n_running=4, n_slots=6, n_threads=2))


def next_logits(backend: LlamaBackend, slot: int, n: int) -> np.ndarray:
    rows(backend, ([5], n, slot))
    return backend.logits(0).copy()


@pytest.mark.parametrize("which", ["smol", "qwen"])
def test_logits_after_a_load_are_exactly_those_before(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same cells, the same shape: by the host's memory, through a file, and in another context of another size."""
    model: LlamaModel = request.getfixturevalue(which)
    tokens = model.tokenize(LONG)[:200]
    n, backend = len(tokens), new_backend(model)
    rows(backend, (tokens, 0, 0))
    data, key = backend.save(0), backend.state_key()
    before = next_logits(backend, 0, n)

    backend.trim(0, 0)
    assert backend.load(0, data)
    assert float(np.abs(next_logits(backend, 0, n) - before).max()) == 0.0

    path = tmp_path / "entry.kv"
    disk_file.write(path, key, np.array(tokens, np.int32), data)
    backend.trim(0, 0)
    assert backend.load(0, disk_file.read(path, key)[1])
    assert float(np.abs(next_logits(backend, 0, n) - before).max()) == 0.0
    backend.close()

    other = new_backend(model, n_ctx=2048)
    assert other.state_key() == key, "the number of cells does not matter"
    assert other.load(3, disk_file.read(path, key)[1])
    assert float(np.abs(next_logits(other, 3, n) - before).max()) == 0.0
    other.close()


def test_a_cell_has_the_bytes_that_saving_it_takes(smol: LlamaModel) -> None:
    backend = new_backend(smol)
    backend.warm_up()
    tokens = smol.tokenize(LONG)[:200]
    rows(backend, (tokens, 0, 0))
    data = backend.save(0)
    assert len(data) == pytest.approx(len(tokens) * backend.cell_bytes, rel=0.01)
    assert type(data) is type(allocate(1)), "which the system gets back"
    backend.close()


def test_the_key_tells_weights_and_context_parameters_apart(smol: LlamaModel, smol_path: Path, tmp_path: Path) -> None:
    backend = new_backend(smol)
    key = json.loads(backend.state_key())
    assert key["sha256_of_parts"] == fingerprint(smol_path)
    for name in ("type_k", "type_v", "flash_attn_type", "rope_freq_base"):
        value = getattr(backend._params, name)
        setattr(backend._params, name, type(value)(value + 1))
        assert json.loads(backend.state_key()) != key
        setattr(backend._params, name, value)
    assert json.loads(backend.state_key()) == key
    backend.close()
    whole = bytearray(smol_path.read_bytes())
    changed = tmp_path / "fine-tuned.gguf"
    start, n = len(whole) // 2, len(whole) // 64
    whole[start : start + n] = bytes(n)
    changed.write_bytes(whole)
    assert fingerprint(changed) != fingerprint(smol_path), "one tensor in the middle is another"


def ask(server: Process, user: str = "I have just joined a team.") -> tuple[dict[str, float], int]:
    """The most likely first tokens of an answer with their log probabilities, and how many tokens were cached."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": 24,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    answer = httpx.post(server.url + CHAT, json=body, timeout=60).json()
    first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return {entry["token"]: entry["logprob"] for entry in first}, cached


def are_near(one: dict[str, float], other: dict[str, float]) -> bool:
    """Tell whether all is the same but for rounding, which depends on how many threads share the attention."""
    both = one.keys() & other.keys()
    return len(both) >= 4 and all(abs(one[token] - other[token]) < 0.2 for token in both)


def test_a_warm_prefix_survives_a_restart_on_the_disk(tmp_path: Path, qwen_path: Path, qwen: LlamaModel) -> None:
    warm = tmp_path / "warm.jsonl"
    warm.write_text(json.dumps(SYSTEM) + "\n")
    cache = tmp_path / "cache"
    arguments = [
        "--model", str(qwen_path), "--ctx", "2048", "--embedding", "false",
        "--warm-prefixes", str(warm), "--disk-cache-dir", str(cache),
    ]  # fmt: skip
    # Without the newline after `user`, which would be one token with another one after it.
    prefix = qwen.tokenize(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user")
    assert len(prefix) > 250
    with served(tmp_path, *arguments) as server:
        first, cached = ask(server)
        assert cached == len(prefix)
        log = server.log.read_text()
        assert f"warm prefix 1 of 1: {len(prefix)} tokens, {len(prefix)} of them computed" in log
        assert log.index("warm prefix 1 of 1") < log.index("ready:")
    assert len(list(cache.glob("*.kv"))) >= 1
    with served(tmp_path, *arguments) as server:
        again, cached = ask(server)
        assert cached == len(prefix)
        assert are_near(again, first)
        assert f"warm prefix 1 of 1: {len(prefix)} tokens, 0 of them computed" in server.log.read_text()


def test_a_conversation_survives_a_restart_on_the_disk_and_a_flipped_byte_does_not(
    tmp_path: Path, qwen_path: Path
) -> None:
    cache = tmp_path / "cache"
    arguments = [
        "--model", str(qwen_path), "--ctx", "2048", "--embedding", "false", "--disk-cache-dir", str(cache),
    ]  # fmt: skip
    with served(tmp_path, *arguments) as server:
        assert ask(server)[1] == 0
        # The last token of its prompt is computed alone, as it will be after the restart.
        warm, _ = ask(server)
        assert not are_near(warm, ask(server, "Wie spät ist es?")[0])
    with served(tmp_path, *arguments) as server:
        again, cached = ask(server)
        assert are_near(again, warm)
        assert cached > 250
    for path in cache.glob("*.kv"):
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 4
        path.write_bytes(whole)
    with served(tmp_path, *arguments) as server:
        assert ask(server)[1] == 0
        assert "is damaged and removed" in server.log.read_text()


def test_what_the_tiers_cannot_do_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('"fine"\n{"broken": 1}\n')
    (tmp_path / "long.json").write_text(json.dumps(SYSTEM))
    for arguments, says in (
        (["--disk-cache-dir", str(tmp_path / "file")], "cannot be read and written"),
        (["--warm-prefixes", str(tmp_path / "file")], "line 2: Unknown parameter: 'broken'"),
        (["--warm-prefixes", str(tmp_path / "long.json"), "--ctx", "400"], "half of LLM_CTX"),
        (["--disk-cache-dir", str(tmp_path / "x"), "--host-cache-mb", "0"], "needs host_cache_mb"),
    ):
        result = start(*arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("\n") == 1
        assert says in result.stderr


def test_a_prefix_that_cannot_come_back_through_the_host_tier_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(host_cache_mb=1, disk_cache_dir=Path("x"))
    prefixes = [np.zeros(n, np.int32) for n in (3, 100)]
    load._check_prefixes_come_back(prefixes, 2**20 // 100, settings, 2**20)
    assert not caplog.records
    load._check_prefixes_come_back(prefixes, 2**20 // 99, settings, 2**20)
    assert "it is computed at each start" in caplog.text


def test_the_smallest_batch_has_the_rows_that_measuring_needs() -> None:
    assert context_params(Settings(parallel=1, batch_size=1), n_pinned=0).n_batch == 2


def test_each_warm_prefix_has_a_slot_and_too_many_are_refused() -> None:
    settings = Settings(parallel=100)
    assert context_params(settings, n_pinned=50).n_slots == context_params(settings, n_pinned=0).n_slots + 50
    with pytest.raises(StartupError, match=r"148 warm prefixes are too many: .* slots for 147"):
        context_params(settings, n_pinned=148)
