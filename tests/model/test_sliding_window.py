"""Models with sliding windows: a tiny Gemma 3 with random weights, whose cells others come to use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from llm_local.engine.batch import Rows
from llm_local.engine.prefix_cache import PrefixCache
from llm_local.engine.slots import Slot
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.model import LlamaModel

pytestmark = pytest.mark.model

N_VOCAB, WIDTH, HEADS, HEAD, LAYERS, WINDOW = 64, 64, 2, 32, 6, 64


def write_gemma(path: Path) -> None:
    random = np.random.default_rng(1)
    out = gguf.GGUFWriter(path, "gemma3")
    out.add_block_count(LAYERS)
    out.add_context_length(4096)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(2 * WIDTH)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_key_length(HEAD)
    out.add_value_length(HEAD)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_sliding_window(WINDOW)
    out.add_rope_freq_base(1e4)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list([chr(65 + n) if n < 26 else f"t{n}" for n in range(N_VOCAB)])
    out.add_token_types([1] * N_VOCAB)
    out.add_token_merges(["A B"])
    out.add_eos_token_id(3)

    def matrix(name: str, *shape: int) -> None:
        out.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))

    def norm(name: str, n: int) -> None:
        out.add_tensor(f"{name}.weight", np.ones(n, np.float32))

    matrix("token_embd", N_VOCAB, WIDTH)
    norm("output_norm", WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            norm(block + name, WIDTH)
        norm(f"{block}attn_q_norm", HEAD)
        norm(f"{block}attn_k_norm", HEAD)
        for name in "qkv":
            matrix(f"{block}attn_{name}", HEADS * HEAD, WIDTH)
        matrix(f"{block}attn_output", WIDTH, HEADS * HEAD)
        matrix(f"{block}ffn_gate", 2 * WIDTH, WIDTH)
        matrix(f"{block}ffn_up", 2 * WIDTH, WIDTH)
        matrix(f"{block}ffn_down", WIDTH, 2 * WIDTH)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    path = tmp_path_factory.mktemp("gemma") / "tiny-gemma3.gguf"
    write_gemma(path)
    model = LlamaModel(path)
    yield model
    model.close()


class Run:
    """Computes sequences as the scheduler does, all in one step each."""

    def __init__(self, model: LlamaModel) -> None:
        self.backend = LlamaBackend(model, ContextParams(2048, 512, 512, n_running=4, n_slots=8, n_threads=1))
        self.cache = PrefixCache(self.backend, 8, self.backend.n_ctx, 1024)

    def __call__(self, tokens: list[int]) -> tuple[Slot, int, np.ndarray]:
        """Return the slot, how many tokens came from the cache, and the logits behind the last one."""
        array = np.array(tokens, np.int32)
        found = self.cache.acquire(array, len(array) - 1, len(array))
        assert found is not None
        slot, common = found
        self.cache.make_room(len(array) - common)
        rows = Rows(self.backend.n_batch)
        rows.extend(array[common:], common, slot.id, len(array) - common - 1)
        self.backend.decode(rows)
        self.cache.extend(slot, array[common:])
        return slot, common, self.backend.logits(len(array) - common - 1).copy()


def test_a_prefix_is_shared_only_where_all_of_its_window_is_there(gemma: LlamaModel) -> None:
    """With 50 tokens of `long` shared, of which its windows had lost all, logits were off by 6.5 (deviation 2.9)."""
    random = np.random.default_rng(2)
    early, long, other = (random.integers(4, N_VOCAB, n).tolist() for n in (40, 400, 200))
    beginning = long[:50] + random.integers(4, N_VOCAB, 6).tolist()
    assert llama_cpp.llama_model_n_swa(gemma.model) == WINDOW
    _, cached, control = Run(gemma)(beginning)
    assert cached == 0

    run = Run(gemma)
    run(long)
    _, cached, logits = run(beginning)
    assert cached == 50, "as long as nobody went over it, it is shared"
    assert np.abs(logits - control).max() < 0.1

    run = Run(gemma)
    slot, _, _ = run(early)
    kept, _, _ = run(long)
    run.cache.release(slot)
    run.cache.trim(slot, 0)
    run(other)
    assert kept.length == 400
    assert not run.backend.holds(kept.id, 50)
    assert run.backend.save(kept.id) == b""
    _, cached, logits = run(beginning)
    assert cached == 0
    assert np.abs(logits - control).max() < 0.1
    assert run.backend.holds(kept.id, 400), "its own answer goes on"
    assert '"whole_windows": true' in run.backend.state_key()


def test_without_windows_all_is_there(smol: LlamaModel) -> None:
    backend = LlamaBackend(smol, ContextParams(512, 64, 64, n_running=2, n_slots=4, n_threads=1))
    assert backend.holds(0, 100)
    assert "whole_windows" not in backend.state_key()
    backend.close()


@pytest.mark.parametrize("n_batch", [2, 3])
def test_the_smallest_batches_are_measured(smol: LlamaModel, n_batch: int) -> None:
    backend = LlamaBackend(smol, ContextParams(512, n_batch, 1, n_running=1, n_slots=4, n_threads=1))
    assert backend.warm_up(0.1)
    backend.close()
