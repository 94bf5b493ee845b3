"""A row more in batches that leave three over."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np
import pytest

from llm_local.engine.backend import NoRoom
from llm_local.errors import DecodeFailed
from llm_local.llama import devices, spare_row
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.model import LlamaModel
from llm_local.llama.need import MIB, Layer
from llm_local.llama.place import Device
from llm_local.llama.spare_row import pays
from tests.llama.shapes import shape
from tests.model.test_backend import TEXT, backend, rows

pytestmark = pytest.mark.model

__all__ = ["backend"]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows, and of them those with logits, of each decode."""
    sizes: list[tuple[int, int]] = []
    decode = llama_cpp.llama_decode

    def recording(context: Any, batch: Any) -> int:
        sizes.append((batch.n_tokens, sum(batch.logits[: batch.n_tokens])))
        return int(decode(context, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", recording)
    return sizes


def test_a_spare_row_changes_nothing_for_the_others(
    backend: LlamaBackend, smol: LlamaModel, decoded: list[tuple[int, int]]
) -> None:
    tokens = smol.tokenize(TEXT)
    steps = [[(tokens, 0, 0), (tokens[:8], 0, 1), (tokens[:4], 0, 2)], *([([5 + n], len(tokens) + n, 0),
             ([6], 8 + n, 1), ([7 + n], 4 + n, 2)] for n in range(5))]  # fmt: skip

    def logits(pays: bool) -> list[Any]:
        backend._spare.pays = pays
        decoded.clear()
        found = []
        for parts in steps:
            rows(backend, *parts)
            ends = np.cumsum([len(part[0]) for part in parts]) - 1
            found += [backend.logits(int(end)).copy() for end in ends]
        for slot in range(3):
            backend.trim(slot, 0)
        return found

    without = logits(False)
    assert decoded[1:] == [(3, 3)] * 5
    with_it = logits(True)
    assert decoded[1:] == [(4, 3)] * 5
    for one, other in zip(without, with_it, strict=True):
        assert float(np.abs(one - other).max()) < 0.5
        assert int(one.argmax()) == int(other.argmax())


def test_a_spare_row_takes_no_cell_from_others_and_is_part_of_one_pass(
    smol: LlamaModel, decoded: list[tuple[int, int]]
) -> None:
    backend = LlamaBackend(smol, ContextParams(256, 68, 64, n_running=2, n_slots=4, n_threads=2))
    backend._spare.pays = True
    for n, computed in ((63, 63), (19, 19), (15, 16), (14, 14), (13, 13), (12, 12), (11, 12), (3, 4)):
        rows(backend, (list(range(100, 100 + n)), 0, 0))
        assert decoded.pop()[0] == computed
        backend.trim(0, 0)
    left = backend.n_ctx - 3
    for at in range(0, left, 60):
        rows(backend, (list(range(100, 100 + min(60, left - at))), at, 0))
    decoded.clear()
    rows(backend, ([1, 2, 3], left, 0))
    assert [n for n, _ in decoded] == [4, 3], "the cache is full: without it, then"
    with pytest.raises(NoRoom):
        rows(backend, ([1, 2, 3], 0, 1))
    backend.close()


@pytest.mark.parametrize("n_ubatch", [1, 2, 3, 4, 5, 7])
def test_in_small_passes_there_is_no_spare_row_that_costs_one(
    smol: LlamaModel, decoded: list[tuple[int, int]], n_ubatch: int
) -> None:
    backend = LlamaBackend(smol, ContextParams(256, 64, n_ubatch, n_running=2, n_slots=4, n_threads=2))
    backend._spare.pays = True
    for n in (3, 7):
        rows(backend, (list(range(100, 100 + n)), 0, 0))
        assert decoded.pop()[0] == n + (n < n_ubatch)
        backend.trim(0, 0)
    backend.close()


def test_after_a_batch_that_failed_the_spare_row_is_gone(
    backend: LlamaBackend, decoded: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend._spare.pays = True
    recording = llama_cpp.llama_decode

    def failing(context: Any, batch: Any) -> int:
        recording(context, batch)
        return -3

    monkeypatch.setattr(llama_cpp, "llama_decode", failing)
    with pytest.raises(DecodeFailed):
        rows(backend, ([1, 2, 3], 0, 0))
    monkeypatch.setattr(llama_cpp, "llama_decode", recording)
    backend.trim(0, 0)
    rows(backend, ([1, 2, 3], 0, 0))
    assert [n for n, _ in decoded] == [4, 4]


def test_a_spare_row_is_for_weights_that_are_repacked() -> None:
    def of(*, repacked: int, output: int = 0, experts: float = 1.0, state: int = 0) -> bool:
        """Of a model with 80 bytes in its layers and 20 in its head."""
        layers = (Layer(n_bytes=40, repacked_bytes=repacked), Layer(n_bytes=40, state_bytes=state))
        return pays(
            shape(layers=layers, output_bytes=20, output_repacked_bytes=output, input_bytes=900, expert_share=experts)
        )

    assert of(repacked=30)
    assert of(repacked=20, output=10)
    assert not of(repacked=29)
    assert not of(repacked=40, experts=0.1), "experts take rows one by one"
    assert not of(repacked=40, state=1)


def test_a_model_that_is_repacked_gets_spare_rows(smol: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    params = ContextParams(256, 64, 64, n_running=2, n_slots=4, n_threads=1)
    gpu = Device("CUDA0", "", "CUDA", MIB, MIB)
    for worth, found, used in ((0.0, [], True), (2.0, [], False), (0.0, [gpu], False)):
        monkeypatch.setattr(spare_row, "WORTH", worth)
        monkeypatch.setattr(devices, "gpu_devices", lambda available, found=found: found)
        backend = LlamaBackend(smol, params)
        assert backend._spare.pays is used
        backend.close()
