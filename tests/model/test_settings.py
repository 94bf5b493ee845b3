"""Settings whose effect shows only on real weights: one server with all of them off their defaults."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import httpx
import llama_cpp
import pytest

from llm_local.cli import fit, load
from llm_local.cli.weights import WeightFiles
from llm_local.config import Settings
from llm_local.llama import host
from llm_local.llama.device_sampling import DeviceSampling
from llm_local.llama.header import read_shape
from llm_local.llama.model import LlamaModel
from llm_local.llama.need import MIB, kv_bytes_per_token
from tests.model.conftest import served
from tests.server.conftest import Served, serving
from tests.server.test_errors import error_of

pytestmark = pytest.mark.model

MESSAGES = [{"role": "user", "content": "Name three colours."}]
CHAT = "/v1/chat/completions"
TUNED: dict[str, Any] = {
    "model": "any/SmolLM2-own.gguf", "ctx": 1024, "seq_max": 160, "parallel": 2, "threads": 1, "threads_batch": 2,
    "batch_size": 64, "ubatch_size": 32, "n_predict": 7, "model_id": "mine", "model_aliases": "other", "mmap": False,
    "chat_template": "llama-3", "embedding_ctx": 9, "prefill_chunk": 16, "host_cache_mb": 3, "temperature": 0,
    "backend_sampling": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(smol_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # A file of its own, so that it is seen whether it is mapped.
    own = tmp_path_factory.mktemp("own") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    shutil.copy(smol_path, own)
    chosen = Settings.model_validate(TUNED)
    with serving(load=lambda: load.load_model(load.Weights(own), chosen, lambda: None), join=True,
                 wait=False, **TUNED) as server:  # fmt: skip
        end = time.monotonic() + 120
        while server.runtime.loaded is None:
            assert not server.failures, server.runtime.failed
            assert time.monotonic() < end
            time.sleep(0.05)
        yield server


@pytest.fixture(scope="module")
def http(tuned: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tuned.url, timeout=60) as client:
        yield client


def native(tuned: Served) -> Any:
    return tuned.engine._backend._context  # type: ignore[attr-defined]


def test_backend_sampling_leaves_plain_answers_to_the_device(
    tuned: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[int] = []
    token = DeviceSampling.token
    monkeypatch.setattr(DeviceSampling, "token", lambda device, row: sampled.append(row) or token(device, row))
    answer = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 5, "ignore_eos": True})
    assert answer.json()["usage"]["completion_tokens"] == len(sampled) == 5
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["red", "blue"]}}}
    answer = http.post(CHAT, json={"messages": MESSAGES, "response_format": schema})
    assert answer.json()["choices"][0]["message"]["content"] in ('"red"', '"blue"')
    assert len(sampled) == 5, "what is constrained needs logits"


def test_ctx_batch_size_ubatch_size_and_threads_are_those_of_the_context(tuned: Served) -> None:
    context = native(tuned)
    sizes = (llama_cpp.llama_n_ctx(context), llama_cpp.llama_n_batch(context), llama_cpp.llama_n_ubatch(context))
    assert sizes == (TUNED["ctx"], TUNED["batch_size"], TUNED["ubatch_size"])
    assert llama_cpp.llama_n_threads(context) == TUNED["threads"]
    assert llama_cpp.llama_n_threads_batch(context) <= TUNED["threads_batch"]


def test_seq_max_is_the_longest_prompt_and_answer(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": "word " * 300}]})
    assert "maximum context length is 160 tokens" in error_of(answer)["message"]
    body = {"messages": MESSAGES, "max_tokens": 5000, "ignore_eos": True}
    assert http.post(CHAT, json=body).json()["usage"]["total_tokens"] == TUNED["seq_max"]


def test_n_predict_is_the_length_of_an_answer_that_does_not_say(http: httpx.Client) -> None:
    usage = http.post(CHAT, json={"messages": MESSAGES, "ignore_eos": True}).json()["usage"]
    assert usage["completion_tokens"] == TUNED["n_predict"]


def test_parallel_is_how_many_choices_there_may_be(http: httpx.Client, tuned: Served) -> None:
    assert tuned.engine.max_running == TUNED["parallel"]
    assert len(http.post(CHAT, json={"messages": MESSAGES, "n": 2, "max_tokens": 1}).json()["choices"]) == 2
    assert "LLM_PARALLEL" in error_of(http.post(CHAT, json={"messages": MESSAGES, "n": 3}))["message"]


def test_model_id_and_model_aliases_are_the_names_and_what_the_environment_calls_it(http: httpx.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    assert model["id"] == "mine"
    for name in ("mine", "other", "smollm2-135m-instruct", "SmolLM2-own.gguf", "any/SmolLM2-own.gguf"):
        assert http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1, "model": name}).status_code == 200
    assert http.post(CHAT, json={"messages": MESSAGES, "model": "nope"}).status_code == 404


def test_chat_template_takes_the_place_of_the_ggufs_own(http: httpx.Client) -> None:
    assert "<|start_header_id|>user" in http.post("/apply-template", json={"messages": MESSAGES}).json()["prompt"]


def test_temperature_zero_is_greedy_where_the_request_is_silent(http: httpx.Client) -> None:
    texts = [http.post(CHAT, json={"messages": MESSAGES}).json()["choices"][0]["message"]["content"] for _ in range(3)]
    assert len(set(texts)) == 1


def test_mmap_false_reads_the_file(tuned: Served, smol_path: Path) -> None:
    own = tuned.runtime.loaded.model.vocabulary.path  # type: ignore[union-attr, attr-defined]
    assert own != smol_path
    assert str(own) not in Path("/proc/self/maps").read_text()


def test_prefill_chunk_and_host_cache_mb_reach_the_engine(tuned: Served) -> None:
    scheduler = tuned.engine._thread.scheduler
    assert scheduler._filling._pace._prefill_chunk == TUNED["prefill_chunk"]
    tier = scheduler.cache.parking._host
    assert tier is not None
    assert tier.max_bytes == tier._max_short_bytes == TUNED["host_cache_mb"] * MIB, (
        "who sets it, sets it for chats, too"
    )


def test_disk_cache_mb_is_the_limit_of_the_folder_and_host_cache_mb_0_is_no_tier(
    smol: LlamaModel, tmp_path: Path
) -> None:
    class Keyed:
        def state_key(self) -> str:
            return "key"

    settings = Settings(disk_cache_dir=tmp_path, disk_cache_mb=5)
    host = load._host_cache(settings, smol, Keyed(), 1)  # type: ignore[arg-type]
    assert host.disk.max_bytes == 5 * 2**20  # type: ignore[union-attr]
    host.disk.close()  # type: ignore[union-attr]
    assert load._host_cache(Settings(), smol, Keyed(), 0) is None  # type: ignore[arg-type]


def test_unless_it_is_set_the_host_cache_has_room_for_all_cells_within_shares_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def most(total: int, available: int, cells: int, *, n_gpu: int = 0, mapped: int = 0, **settings: int) -> int:
        """In MiB."""
        layers: Any = SimpleNamespace(model=n_gpu, plan=SimpleNamespace(host=SimpleNamespace(mapped=mapped * MIB)))
        monkeypatch.setattr(host, "memory", lambda: host.Memory(available * MIB, 0, total * MIB))
        return fit.host_cache_bytes(Settings.model_validate(settings), cells * MIB, layers) // MIB

    caplog.set_level("INFO", "llm_local")
    assert most(32768, 20000, 300) == 300
    assert "up to 300 MiB of memory (LLM_HOST_CACHE_MB)" in caplog.text
    assert most(32768, 20000, 3000) == 1024
    assert most(32768, 2000, 3000) == 500
    assert most(32768, 5000, 3000, mapped=3000) == 500, "weights that stay in their file count as available"
    assert most(2048, 1000, 3000) == most(32768, 200, 3000) == most(32768, 20000, 10) == 96
    assert most(32768, 20000, 300, n_gpu=-1) == 96, "there idle cells cost nothing"
    assert most(32768, 20000, 300, host_cache_mb=7) == 7
    assert most(32768, 20000, 300, host_cache_mb=0) == 0
    monkeypatch.setattr(host, "memory", lambda: None)
    nothing: Any = SimpleNamespace(model=0)
    assert fit.host_cache_bytes(Settings(), 300 * MIB, nothing) == 96 * MIB


def test_the_host_cache_of_a_server_is_for_its_cells(smol_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory", lambda: host.Memory(available=2**35, swap=0, total=2**37))
    settings = Settings(ctx=8192, embedding=False)
    loaded = load.load_model(load.Weights(smol_path), settings, lambda: None)
    tier = loaded.engine._thread.scheduler.cache.parking._host
    assert tier is not None
    cell_bytes = kv_bytes_per_token(read_shape(smol_path))
    assert tier.max_bytes == pytest.approx(8192 * cell_bytes, rel=0.001)
    assert tier.max_bytes > tier._max_short_bytes == 96 * MIB
    loaded.engine._backend.close()  # type: ignore[attr-defined]
    loaded.close()


def test_memory_that_loading_freed_goes_back_once_all_is_built(
    smol_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, order, gate = load.build_tokenizer, [], Event()

    def build_slowly(model: LlamaModel) -> Any:
        assert gate.wait(60)
        order.append("built")
        return build(model)

    monkeypatch.setattr(load, "build_tokenizer", build_slowly)
    monkeypatch.setattr(host, "give_back_freed_memory", lambda: order.append("given back"))
    loaded = load.load_model(load.Weights(smol_path), Settings(ctx=256, embedding=False), lambda: None)
    assert not order
    gate.set()
    end = time.monotonic() + 60
    while len(order) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert order == ["built", "given back"]
    loaded.engine._backend.close()  # type: ignore[attr-defined]
    loaded.close()


def test_draft_model_is_located_and_guesses(smol: LlamaModel) -> None:
    settings = Settings(draft_model="smollm2-135m", ctx=256)
    path = WeightFiles(settings).get().draft
    drafter = load._drafter(smol, path, settings, fit.context_params(settings, n_pinned=0), 0, 256)
    assert drafter is not None
    assert drafter.seconds([0]) is None or drafter.seconds([0]) > 0
    drafter.close()
    assert load._drafter(smol, None, Settings(), fit.context_params(settings, n_pinned=0), 0, 256) is None


def test_embedding_ctx_is_the_longest_input(http: httpx.Client) -> None:
    assert http.post("/v1/embeddings", json={"input": "short"}).status_code == 200
    answer = http.post("/v1/embeddings", json={"input": "one two three four five six seven eight nine ten"})
    assert "maximum context length is 9 tokens" in error_of(answer)["message"]


def test_embedding_pooling_is_what_it_says(smol: LlamaModel) -> None:
    for pooling in ("mean", "cls", "last"):
        embedder = load._embedder(smol, None, Settings(embedding_pooling=pooling), 1, 0)  # type: ignore[arg-type]
        assert embedder is not None
        assert embedder.pooling.value == pooling
        embedder.close(RuntimeError("end"))  # type: ignore[arg-type]


def test_only_a_context_that_other_programs_cannot_take_waits_for_its_first_request(
    smol: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(path: Path | None) -> bool:
        embedder = load._embedder(smol, path, Settings(embedding_ctx=64), 1, 0)
        assert embedder is not None
        made = embedder._context is not None
        embedder.close(RuntimeError("end"))  # type: ignore[arg-type]
        return made

    assert not made(None)
    assert made(smol.path), "weights of its own"
    monkeypatch.setattr(smol, "on_gpu", True)
    assert made(None)


def test_embedding_false_serves_none(smol: LlamaModel) -> None:
    assert load._embedder(smol, None, Settings(embedding=False), 1, 0) is None
    assert load._embedder(smol, None, Settings(embedding=True), 1, 0) is not None


def test_drain_timeout_is_what_a_running_answer_gets_at_shutdown_and_verbose_logs_llama_cpps_lines(
    tmp_path: Path,
) -> None:
    with served(
        tmp_path, "--ctx", "2048", "--drain-timeout", "1", "--verbose", "true", "--embedding", "false"
    ) as server:
        body = {"messages": MESSAGES, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            began = time.monotonic()
            server.process.terminate()
            rest: list[str] = []
            with contextlib.suppress(httpx.RemoteProtocolError):
                rest.extend(lines)
        assert "data: [DONE]" not in rest
        assert server.process.wait(20) == 0
        assert 0.5 < time.monotonic() - began < 8
        assert "DEBUG   llama.cpp: " in server.log.read_text()
