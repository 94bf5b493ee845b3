"""A draft model on real weights: SmolLM2 drafts for itself, Qwen2.5-0.5B for the larger one that a variable names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm_local.engine.drafts import Drafts
from llm_local.engine.types import GenerationRequest, SamplingParams
from llm_local.errors import StartupError
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.drafter import LlamaDrafter, check_same_vocabulary
from llm_local.llama.model import LlamaModel
from tests.model.test_backend import LONG, TEXT, run_engine

pytestmark = pytest.mark.model

PARAMS = ContextParams(2048, 256, 256, n_running=4, n_slots=6, n_threads=2)


def test_a_model_that_drafts_for_itself_is_nearly_always_right(
    smol: LlamaModel, smol_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drafts, "_worthwhile", lambda self, n, rows, n_answers, most: min(most, 5))
    drafter = LlamaDrafter(LlamaModel(smol_path), PARAMS, 1024)
    greedy = SamplingParams(temperature=0.0, ignore_eos=True)
    texts = [TEXT, LONG + " Then one day", LONG + " In the end", "Once upon a time"]
    requests = [
        GenerationRequest(tuple(smol.tokenize(text)), greedy, 40, speculate=True, lookup=False) for text in texts
    ]
    out = run_engine(LlamaBackend(smol, PARAMS), requests, drafter=drafter)
    for deltas in out:
        usage = deltas[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 40
        assert usage.accepted_tokens > 20
        assert usage.accepted_tokens / usage.drafted_tokens > 0.7, "but for rounding, which also costs what follows"
    first = "".join(delta.text for delta in out[0])
    assert " Madrid" in first


def test_a_draft_model_reads_in_pieces_that_fit_a_small_batch(
    smol: LlamaModel, smol_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drafts, "_worthwhile", lambda self, n, rows, n_answers, most: min(most, 5))
    params = ContextParams(2048, 16, 16, n_running=4, n_slots=20, n_threads=2)
    drafter = LlamaDrafter(LlamaModel(smol_path), params, 1024)
    greedy = SamplingParams(temperature=0.0, ignore_eos=True)
    texts = [LONG + " Then one day", LONG + " In the end"]
    requests = [
        GenerationRequest(tuple(smol.tokenize(text)), greedy, 40, speculate=True, lookup=False) for text in texts
    ]
    for deltas in run_engine(LlamaBackend(smol, params), requests, drafter=drafter):
        usage = deltas[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 40
        assert usage.accepted_tokens > 5


@pytest.mark.parametrize("whole", [True, False])
def test_a_draft_model_goes_on_only_from_what_is_whole(
    smol: LlamaModel, smol_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """A sliding window leaves holes; see `Backend.holds`."""
    model = LlamaModel(smol_path)
    drafter = LlamaDrafter(model, PARAMS, 1024)
    tokens = np.array(smol.tokenize(LONG * 3), np.int32)
    read: list[int] = []
    decode = drafter._decode

    def counting() -> None:
        read.append(drafter._rows.n_rows)
        decode()

    monkeypatch.setattr(drafter, "_decode", counting)

    def rows_until_it_drafts(slot: int, length: int) -> int:
        read.clear()
        sequence: Any = SimpleNamespace(slot=slot, tokens=tokens, length=length)
        while not drafter.draft([sequence], 1)[0]:
            assert len(read) < 100
        return sum(read)

    assert rows_until_it_drafts(0, 200) == 200
    monkeypatch.setattr(drafter._backend, "holds", lambda slot, length: slot != 0 or whole)
    assert rows_until_it_drafts(1, 210) == (10 if whole else 210), "from another sequence"
    looks = [whole]
    monkeypatch.setattr(drafter._backend, "holds", lambda slot, length: looks.pop() if looks else True)
    assert rows_until_it_drafts(1, 215) == (5 if whole else 15), "from its own, or else from the other one"
    drafter.close()
    model.close()


def test_another_vocabulary_is_refused(smol: LlamaModel, qwen_path: Path) -> None:
    qwen = LlamaModel(qwen_path)
    check_same_vocabulary(qwen, qwen)
    with pytest.raises(StartupError, match="a draft model needs the same vocabulary"):
        check_same_vocabulary(qwen, smol)
    qwen.close()
