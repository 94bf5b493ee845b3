"""A draft model on real weights: SmolLM2 drafts for itself, Qwen2.5-0.5B for the larger one that a variable names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llm_local.engine.drafts import Drafts
from llm_local.engine.engine import Engine
from llm_local.engine.types import Delta, GenerationRequest, SamplingParams
from llm_local.errors import StartupError
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.drafter import LlamaDrafter, check_same_vocabulary
from llm_local.llama.model import LlamaModel
from tests.model.test_backend import LONG, TEXT

pytestmark = pytest.mark.model

PARAMS = ContextParams(2048, 256, 256, n_running=4, n_slots=6, n_threads=2)


def answers(model: LlamaModel, requests: list[GenerationRequest], drafter: LlamaDrafter | None) -> list[list[Delta]]:
    async def scenario() -> list[list[Delta]]:
        backend = LlamaBackend(model, PARAMS)
        engine = Engine(
            backend, max_running=4, queue_max=8, window=1024, answer_reserve=64, target_gap_s=10.0, drafter=drafter
        )
        for work, seconds in backend.warm_up(0.3):
            engine.step_time.note(work, seconds)
        engine.start()
        stream = engine.submit(requests)
        out: list[list[Delta]] = [[] for _ in requests]
        async for deltas in stream:
            for delta in deltas:
                out[delta.index].append(delta)
        stream.close()
        await engine.stop()
        return out

    return asyncio.run(scenario())


def test_a_model_that_drafts_for_itself_is_nearly_always_right(
    smol: LlamaModel, smol_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drafts, "_worthwhile", lambda self, n, rows, n_answers, most: min(most, 5))
    drafter = LlamaDrafter(LlamaModel(smol_path), PARAMS, 1024)
    greedy = SamplingParams(temperature=0.0, ignore_eos=True)
    texts = [TEXT, LONG + " Then one day", LONG + " In the end", "Once upon a time"]
    out = answers(
        smol,
        [GenerationRequest(tuple(smol.tokenize(text)), greedy, 40, speculate=True, lookup=False) for text in texts],
        drafter,
    )
    for deltas in out:
        usage = deltas[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 40
        assert usage.accepted_tokens > 20
        assert usage.accepted_tokens / usage.drafted_tokens > 0.7, "but for rounding, which also costs what follows"
    first = "".join(delta.text for delta in out[0])
    assert " Madrid" in first


def test_another_vocabulary_is_refused(smol: LlamaModel, qwen_path: Path) -> None:
    qwen = LlamaModel(qwen_path)
    check_same_vocabulary(qwen, qwen)
    with pytest.raises(StartupError, match="a draft model needs the same vocabulary"):
        check_same_vocabulary(qwen, smol)
    qwen.close()
