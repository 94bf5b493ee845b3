"""The native side against llama.cpp itself: logits, sharing, sampling fields, embeddings. On the embedded SmolLM2."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
import numpy as np
import pytest

from llm_local.engine.batch import Batch
from llm_local.engine.engine import Engine
from llm_local.engine.logprobs import log_sum_exp
from llm_local.engine.types import GenerationRequest, SamplingParams
from llm_local.errors import DecodeFailed, StartupError, Unavailable
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.candidates import Candidates, Chain, NarrowedSampling, Rule
from llm_local.llama.embedder import Embedder
from llm_local.llama.header import read_shape
from llm_local.llama.host import locked_bytes
from llm_local.llama.model import LlamaModel
from llm_local.llama.need import kv_bytes_per_token
from llm_local.llama.pooling import Pooling
from llm_local.llama.threads import ThreadGovernor

pytestmark = pytest.mark.model

TEXT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"
LONG = "When I was young, my grandfather told me a story about a lighthouse keeper who lived alone. " * 6


@pytest.fixture
def backend(smol: LlamaModel) -> Iterator[LlamaBackend]:
    backend = LlamaBackend(smol, ContextParams(2048, 256, 256, n_running=4, n_slots=6, n_threads=2))
    yield backend
    backend.close()


def rows(backend: LlamaBackend, *parts: tuple[list[int], int, int]) -> None:
    """Decode parts of (tokens, first position, slot); the last row of each has logits."""
    batch = Batch(backend.n_batch)
    for tokens, position, slot in parts:
        sequence: Any = SimpleNamespace(
            tokens=np.array([0] * position + tokens, np.int32),
            computed=position, slot=slot, length=position + len(tokens), wants_prompt_logits=False, forced=[],
        )  # fmt: skip
        batch.add(sequence, len(tokens))
    backend.decode(batch)


def test_logits_are_those_of_llama_cpp(smol: LlamaModel, backend: LlamaBackend) -> None:
    tokens = smol.tokenize(TEXT)
    with contextlib.redirect_stderr(io.StringIO()):
        control = llama_cpp.Llama(
            str(smol.path), n_ctx=256, n_batch=256, logits_all=True, flash_attn=True, verbose=True
        )
    control.eval(tokens)
    rows(backend, (tokens, 0, 0))
    ours, theirs = backend.logits(len(tokens) - 1), control.scores[len(tokens) - 1]
    assert int(ours.argmax()) == int(theirs.argmax())
    assert float(np.abs(ours - theirs).max()) < 0.1
    control.close()


@pytest.mark.parametrize("how", ["trimmed", "shared", "shared from a busy slot"])
def test_a_reused_prefix_gives_the_logits_of_a_shape_matched_control(
    backend: LlamaBackend, smol: LlamaModel, how: str
) -> None:
    prefix, other, last = smol.tokenize(LONG), smol.tokenize("Something else"), smol.tokenize(" keeper")[-1:]
    n = len(prefix)
    rows(backend, (prefix, 0, 0))
    rows(backend, (last, n, 0))
    control = backend.logits(0).copy()
    if how == "trimmed":
        rows(backend, (other, n + 1, 0))
        backend.trim(0, n)
        slot = 0
    else:
        if how == "shared":
            backend.trim(0, n)
        backend.share(0, 1, n)
        slot = 1
    rows(backend, (last, n, slot))
    assert float(np.abs(backend.logits(0) - control).max()) == 0.0


def test_what_was_saved_continues_as_before_when_it_is_loaded(backend: LlamaBackend, smol: LlamaModel) -> None:
    tokens = smol.tokenize(LONG)
    rows(backend, (tokens, 0, 0))
    data = backend.save(0)
    rows(backend, ([5], len(tokens), 0))
    wanted = backend.logits(0).copy()
    backend.trim(0, 0)
    rows(backend, (tokens[::-1], 0, 1))
    assert backend.load(2, data)
    rows(backend, ([5], len(tokens), 2))
    # The cells lie elsewhere, so sums are taken in another order.
    assert np.abs(backend.logits(0) - wanted).max() < 0.05
    assert backend.logits(0).argmax() == wanted.argmax()


def test_what_cannot_be_loaded_is_refused_and_can_be_trimmed(backend: LlamaBackend, smol: LlamaModel) -> None:
    tokens = smol.tokenize(LONG)
    rows(backend, (tokens, 0, 0))
    data = backend.save(0)
    assert not backend.load(2, bytearray(data)[: len(data) // 2])
    assert not backend.load(2, bytearray(b"nonsense"))
    left = 2048 - len(tokens) - 50
    for slot in range(3, 6):
        for at in range(0, min(left, 750), 250):
            n = min(left - at, 250)
            rows(backend, (list(range(100, 100 + n)), at, slot))
        left -= min(left, 750)
    assert not backend.load(2, data), "there are not cells enough"
    backend.trim(2, 0)
    backend.trim(5, 0)
    assert backend.load(2, data)
    rows(backend, ([5], len(tokens), 2))


def test_a_device_that_computes_nothing_ends_the_start(backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda context, batch: -3)
    with pytest.raises(StartupError, match=r"cannot compute with .*\.gguf: .*-3.*LLM_GPU_LAYERS"):
        backend.warm_up()


def test_neighbours_in_a_batch_do_not_leak_into_each_other(backend: LlamaBackend, smol: LlamaModel) -> None:
    """Same shape, other neighbour: the logits are the same."""
    mine, a, b = smol.tokenize(TEXT), smol.tokenize("One two three four"), smol.tokenize("Red green blue pink")
    assert len(a) == len(b)
    rows(backend, (mine, 0, 0), (a, 0, 1))
    first = backend.logits(len(mine) - 1).copy()
    backend.trim(0, 0)
    backend.trim(1, 0)
    rows(backend, (mine, 0, 0), (b, 0, 1))
    assert float(np.abs(backend.logits(len(mine) - 1) - first).max()) == 0.0


def draw(backend: LlamaBackend, smol: LlamaModel, n: int = 40, prompt: str = TEXT, **params: Any) -> list[int]:
    """Generate `n` tokens with a real chain."""
    tokens = smol.tokenize(prompt)
    backend.trim(0, 0)
    rows(backend, (tokens, 0, 0))
    sampler = backend.new_sampler(SamplingParams(**params), tuple(tokens))
    row, out = len(tokens) - 1, []
    for step in range(n):
        out.append(sampler.sample(row))
        sampler.accept(out[-1])
        rows(backend, ([out[-1]], len(tokens) + step, 0))
        row = 0
    sampler.close()
    return out


def test_greedy_is_the_argmax_and_a_seed_repeats_itself(backend: LlamaBackend, smol: LlamaModel) -> None:
    greedy = draw(backend, smol, temperature=0.0)
    assert greedy == draw(backend, smol, temperature=1.5, top_k=1)
    assert greedy == draw(backend, smol, temperature=1.5, min_p=1.0)
    assert greedy == draw(backend, smol, temperature=1.5, top_p=1e-6)
    one = draw(backend, smol, temperature=1.0, seed=7)
    assert one == draw(backend, smol, temperature=1.0, seed=7)
    assert one != draw(backend, smol, temperature=1.0, seed=8)
    unseeded = [draw(backend, smol, temperature=1.0) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.3},
        {"top_k": 3},
        {"top_p": 0.3},
        {"min_p": 0.4},
        {"typical_p": 0.2},
        {"repeat_penalty": 1.8},
        {"repeat_penalty": 1.8, "repeat_last_n": 2},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"dry_multiplier": 3.0, "dry_allowed_length": 1},
        {"xtc_probability": 1.0, "xtc_threshold": 0.02},
        {"mirostat": 1, "mirostat_tau": 1.0},
        {"mirostat": 2, "mirostat_tau": 1.0},
    ],
    ids=str,
)
def test_every_sampling_field_changes_what_is_drawn(
    backend: LlamaBackend, smol: LlamaModel, params: dict[str, Any]
) -> None:
    neutral = draw(backend, smol, seed=3, temperature=1.0)
    assert draw(backend, smol, **{"seed": 3, "temperature": 1.0, **params}) != neutral


def test_penalties_do_what_they_say(backend: LlamaBackend, smol: LlamaModel) -> None:
    prompt = "la la la la la la la la la la"
    plain = draw(backend, smol, prompt=prompt, temperature=0.0, n=30)
    frequent = draw(backend, smol, prompt=prompt, temperature=0.0, n=30, frequency_penalty=2.0)
    assert max(Counter(frequent).values()) < max(Counter(plain).values())
    # OpenAI's penalties count what was sampled, llama.cpp's repeat_penalty sees the prompt, too.
    first = draw(backend, smol, prompt=TEXT * 3, temperature=0.0, n=1)
    assert first[0] in smol.tokenize(TEXT)
    assert draw(backend, smol, prompt=TEXT * 3, temperature=0.0, n=1, presence_penalty=2.0) == first
    assert draw(backend, smol, prompt=TEXT * 3, temperature=0.0, n=1, repeat_penalty=9.0) != first


def test_biases_force_and_ban(backend: LlamaBackend, smol: LlamaModel) -> None:
    greedy = draw(backend, smol, temperature=0.0, n=1)[0]
    assert greedy not in draw(backend, smol, temperature=1.0, n=40, seed=1, logit_bias=((greedy, -math.inf),))
    assert draw(backend, smol, temperature=0.0, n=5, logit_bias=((100, 100.0),)) == [100] * 5
    ends = set(smol.end_tokens)
    eager = {"logit_bias": tuple((token, 60.0) for token in ends), "temperature": 0.0, "n": 4}
    assert set(draw(backend, smol, **eager)) <= ends
    assert not set(draw(backend, smol, **{**eager, "logit_bias": ()}, ignore_eos=True)) & ends


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "frequency_penalty": 1.5, "presence_penalty": 1.0},
        {"top_k": 40, "top_p": 0.9, "temperature": 0.8},
        {"top_k": 200, "repeat_penalty": 1.3, "repeat_last_n": -1},
        {"top_k": 20, "xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"top_k": 50, "typical_p": 0.8, "min_p": 0.02},
        {"min_p": 0.05, "temperature": 1.3},
        {"min_p": 0.1, "repeat_penalty": 1.2, "logit_bias": ((50, 12.0), (60, -math.inf)), "ignore_eos": True},
    ],
    ids=str,
)
def test_narrowed_candidates_give_the_tokens_of_the_whole_vocabulary(
    backend: LlamaBackend, smol: LlamaModel, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same seed, same logits: the chain chooses the same tokens from the candidates as from everything."""
    used = []
    narrowed = NarrowedSampling.sample

    def counted(self: NarrowedSampling, logits: np.ndarray) -> int | None:
        used.append(narrowed(self, logits))
        return used[-1]

    monkeypatch.setattr(NarrowedSampling, "sample", counted)
    with_candidates = [draw(backend, smol, seed=seed, n=50, **params) for seed in range(3)]
    assert sum(token is not None for token in used) > 0.9 * len(used)
    monkeypatch.setattr(NarrowedSampling, "sample", lambda self, logits: None)
    assert with_candidates == [draw(backend, smol, seed=seed, n=50, **params) for seed in range(3)]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 0.9), (0.8, 0.6)])
def test_draws_are_distributed_as_the_softmax_also_outside_the_candidates(
    backend: LlamaBackend, smol: LlamaModel, temperature: float, top_p: float
) -> None:
    """Chi-squared over bins of about equal mass; the far tail is in the last bin.

    (With `top_p` the tokens are not those of the chain on everything: it sums the mass of 49k tokens in float32.)
    """
    tokens = smol.tokenize("I think that")
    rows(backend, (tokens, 0, 0))
    row, n = len(tokens) - 1, 4000
    logits = backend.logits(row).astype(np.float64)
    order = np.argsort(-logits)
    p = np.exp(logits - logits.max())[order]
    p[np.searchsorted(np.cumsum(p), top_p * p.sum()) + 1 :] = 0.0
    p = p ** (1 / temperature)
    p /= p.sum()
    sampler = backend.new_sampler(SamplingParams(seed=5, temperature=temperature, top_p=top_p), ())
    drawn = np.array([sampler.sample(row) for _ in range(n)])
    sampler.close()
    edges = np.searchsorted(np.cumsum(p), np.linspace(0, 1, 12)[1:-1])
    place = np.empty(len(p), int)
    place[order] = np.arange(len(p))
    assert p[place[drawn]].min() > 0
    expected = np.bincount(np.searchsorted(edges, np.arange(len(p)), side="right"), weights=p) * n
    seen = np.bincount(np.searchsorted(edges, place[drawn], side="right"), minlength=len(expected))
    keep = expected > 5
    assert float(((seen - expected)[keep] ** 2 / expected[keep]).sum()) < 40, (seen, expected)


def test_temperature_one_draws_from_the_softmax(backend: LlamaBackend, smol: LlamaModel) -> None:
    tokens = smol.tokenize("I think that")
    rows(backend, (tokens, 0, 0))
    row = len(tokens) - 1
    logits = backend.logits(row).astype(np.float64)
    p = np.exp(logits - log_sum_exp(backend.logits(row)))
    sampler = backend.new_sampler(SamplingParams(seed=11), ())
    n = 3000
    seen = Counter(sampler.sample(row) for _ in range(n))
    sampler.close()
    for token in np.argsort(-p)[:8]:
        expected, sigma = n * p[token], math.sqrt(n * p[token] * (1 - p[token]))
        assert abs(seen[int(token)] - expected) < 5 * sigma


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_low_temperatures_with_a_banned_favourite_never_draw_from_the_tail(
    backend: LlamaBackend, smol: LlamaModel, temperature: float, top_p: float
) -> None:
    """What is left after a ban is far below the largest logit; the mass of the rest must not be lost in rounding."""
    tokens = smol.tokenize(TEXT)
    rows(backend, (tokens, 0, 0))
    row = len(tokens) - 1
    logits = backend.logits(row)
    logits[123] = logits.max() + 9.0
    best = np.argsort(-logits)[1:4]
    params = {"logit_bias": ((123, -math.inf),), "frequency_penalty": 0.01, "top_p": top_p}
    sampler = backend.new_sampler(SamplingParams(seed=1, temperature=temperature, **params), ())
    drawn = Counter(sampler.sample(row) for _ in range(200))
    sampler.close()
    assert 123 not in drawn
    if temperature <= 0.1:
        assert sum(drawn[int(token)] for token in best) > 190


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-44, 1e-40, 1e-38, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize(
    "more", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}, {"typical_p": 0.9}, {"mirostat": 2}]
)
def test_a_temperature_near_zero_is_greedy(
    backend: LlamaBackend, smol: LlamaModel, temperature: float, more: dict[str, Any]
) -> None:
    """In 32-bit floats a logit divided by it is infinite, or 0 / 0: that chose the last token, or one that is none."""
    best = draw(backend, smol, temperature=0.0, n=1)[0]
    assert draw(backend, smol, temperature=temperature, n=3, seed=1, **more)[0] == best


@pytest.mark.parametrize("penalty", [5e-324, 1e-50, 1e-40, 1e-38, 1e-20])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_repeat_penalty_near_zero_repeats(
    backend: LlamaBackend, smol: LlamaModel, penalty: float, temperature: float
) -> None:
    seen = set(smol.tokenize(TEXT))
    assert set(draw(backend, smol, n=5, temperature=temperature, seed=1, repeat_penalty=penalty)) <= seen


def test_a_draw_without_numbers_is_left_to_the_chain(backend: LlamaBackend, smol: LlamaModel) -> None:
    tokens = smol.tokenize(TEXT)
    rows(backend, (tokens, 0, 0))
    sampler = NarrowedSampling(
        Candidates(smol.n_vocab), Chain(0, [], []), SamplingParams(temperature=1e-50), Rule.DRAW, [], [], 1
    )
    with np.errstate(all="ignore"):
        assert sampler.sample(backend.logits(len(tokens) - 1)) is None


def test_logits_that_are_no_numbers_are_an_error_and_no_token(backend: LlamaBackend, smol: LlamaModel) -> None:
    tokens = smol.tokenize(TEXT)
    rows(backend, (tokens, 0, 0))
    backend.logits(len(tokens) - 1)[:] = np.nan
    for params in ({"temperature": 0.0}, {}, {"top_k": 40}, {"min_p": 0.1}, {"top_p": 0.9}):
        sampler = backend.new_sampler(SamplingParams(seed=1, **params), ())
        with pytest.raises(DecodeFailed, match="not numbers"):
            sampler.sample(len(tokens) - 1)
        sampler.close()


def run_engine(backend: LlamaBackend, requests: list[GenerationRequest], **options: Any) -> list[list[Any]]:
    async def scenario() -> list[list[Any]]:
        settings = {
            "max_running": 4,
            "queue_max": 50,
            "window": 1024,
            "prefill_chunk": 32,
            "answer_reserve": 64,
            **options,
        }
        engine = Engine(backend, **settings)
        engine.start()
        stream = engine.submit(requests)
        out: list[list[Any]] = [[] for _ in requests]
        async for deltas in stream:
            for delta in deltas:
                out[delta.index].append(delta)
        stream.close()
        await engine.stop()
        return out

    return asyncio.run(scenario())


def test_logprobs_are_the_log_softmax_of_the_logits(smol: LlamaModel) -> None:
    backend = LlamaBackend(smol, ContextParams(1024, 256, 256, n_running=4, n_slots=6, n_threads=2))
    prompt = tuple(smol.tokenize(TEXT))
    params = SamplingParams(temperature=0.0, logprobs=5)
    out = run_engine(backend, [GenerationRequest(prompt, params, 8, prompt_logprobs=True)])[0]
    entries = [entry for delta in out for entry in delta.prompt_logprobs]
    answer = [entry for delta in out for entry in delta.logprobs]
    tokens = [*prompt, *(entry.token for entry in answer)]
    with contextlib.redirect_stderr(io.StringIO()):
        control = llama_cpp.Llama(
            str(smol.path), n_ctx=256, n_batch=256, logits_all=True, flash_attn=True, verbose=True
        )
    control.eval(tokens)
    for position, entry in enumerate([*entries, *answer]):
        assert entry.token == tokens[position]
        if position == 0:
            assert entry.logprob is None
            continue
        scores = control.scores[position - 1]
        expected = scores[entry.token] - log_sum_exp(scores)
        assert entry.logprob == pytest.approx(expected, abs=0.1)
        assert len(entry.top) == 5
        assert [lp for _, _, lp in entry.top] == sorted((lp for _, _, lp in entry.top), reverse=True)
    control.close()


def pooled_by_llama_cpp(path: Path, text: str) -> np.ndarray:
    with contextlib.redirect_stderr(io.StringIO()):
        control = llama_cpp.Llama(
            str(path), n_ctx=512, n_batch=512, n_ubatch=512, embedding=True, flash_attn=True,
            pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN, verbose=True,
        )  # fmt: skip
        vector = np.array(control.embed(text, normalize=True))
        control.close()
    return vector


def embed(embedder: Embedder, texts: list[str]) -> list[np.ndarray]:
    async def scenario() -> list[np.ndarray]:
        embedder.connect(lambda: None, lambda job, value: job.deliver(value))
        task = asyncio.create_task(embedder.embed([embedder.model.tokenize(text) for text in texts]))
        await asyncio.sleep(0)
        while embedder.pending:
            embedder.step()
        return await task

    return asyncio.run(scenario())


def test_pooling_in_chunks_is_the_mean_that_llama_cpp_takes(smol: LlamaModel) -> None:
    embedder = Embedder(smol, window=512, n_threads=2)
    texts = [TEXT, LONG, "short", *[f"number {n}" for n in range(40)]]
    vectors = embed(embedder, texts)
    for text, vector in zip(texts[:3], vectors, strict=False):
        assert float(vector @ pooled_by_llama_cpp(smol.path, text)) > 0.999
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
    (alone,) = embed(embedder, [texts[20]])
    assert float(alone @ vectors[20]) > 0.999
    embedder.close(RuntimeError("end"))  # type: ignore[arg-type]


def test_a_context_that_is_created_at_the_first_request(
    smol: LlamaModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at_once, later = Embedder(smol, window=256, n_threads=2), Embedder(smol, window=256, n_threads=2, at_once=False)
    create, there_is_memory, created = llama_cpp.llama_init_from_model, [False], []

    def note(*arguments: Any) -> Any:
        created.append(there_is_memory[0])
        return create(*arguments) if there_is_memory[0] else None

    monkeypatch.setattr(llama_cpp, "llama_init_from_model", note)
    later.step()
    assert not created, "nobody waits"

    async def two_at_once() -> list[Any]:
        later.connect(lambda: None, lambda job, value: job.deliver(value))
        inputs = [smol.tokenize(TEXT)] * 20
        tasks = [asyncio.create_task(later.embed(inputs)) for _ in range(2)]
        await asyncio.sleep(0)
        while later.pending:
            later.step()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for n in (1, 2):
        for error in asyncio.run(two_at_once()):
            assert isinstance(error, Unavailable)
            assert str(error) == "There is no memory for embeddings now."
            assert error.retry_after_s == 30
        assert "cannot create the embedding context with 256 cells" in caplog.text, "what the operator has to know"
        assert "Lower LLM_EMBEDDING_CTX." in caplog.text
        caplog.clear()
        assert created == [False] * n, "once for all who wait, and again for the next"
        assert not later.pending
    there_is_memory[0] = True
    texts = [TEXT, LONG, "short"]
    for mine, expected in zip(embed(later, texts), embed(at_once, texts), strict=True):
        assert float(mine @ expected) > 0.9999
    assert len(embed(later, [TEXT])) == 1
    assert created == [False, False, True]
    for embedder in (at_once, later, Embedder(smol, window=256, n_threads=2, at_once=False)):
        embedder.close(RuntimeError("end"))  # type: ignore[arg-type]


def test_poolings_differ(smol: LlamaModel) -> None:
    vectors = []
    for pooling in Pooling:
        embedder = Embedder(smol, window=256, n_threads=2, pooling=pooling)
        vectors.append(embed(embedder, [TEXT])[0])
        embedder.close(RuntimeError("end"))  # type: ignore[arg-type]
    assert float(vectors[0] @ vectors[1]) < 0.99
    assert float(vectors[1] @ vectors[2]) < 0.99


@pytest.mark.parametrize(("on_gpu", "most"), [(False, 192), (True, 512)])
def test_an_encoder_computes_a_few_hundred_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, most: int
) -> None:
    path = os.environ.get("LLM_LOCAL_TEST_EMBEDDING")
    if path is None:
        pytest.skip("LLM_LOCAL_TEST_EMBEDDING does not name a GGUF")
    model, sizes = LlamaModel(Path(path)), []
    monkeypatch.setattr(model, "on_gpu", on_gpu)
    decode = llama_cpp.llama_decode
    monkeypatch.setattr(
        llama_cpp, "llama_decode", lambda it, batch: (sizes.append(batch.n_tokens), decode(it, batch))[1]
    )
    embedder = Embedder(model, window=512, n_threads=2, owns_model=True)
    vectors = embed(embedder, [TEXT[:200]] * 30)
    assert len(vectors) == 30
    assert most / 2 < max(sizes) <= most
    embedder.close(RuntimeError("end"))  # type: ignore[arg-type]


def test_a_lower_bound_of_tokens_is_one_and_is_quick(smol: LlamaModel) -> None:
    """Text of many special tokens takes llama.cpp a time that grows with the square of their number."""
    for text in ("<|im_start|>" * 7000, "word " * 20000, "<|im_start|>user\nпривет<|im_end|>\n" * 3000, " " * 70000):
        assert 0 < smol.least_tokens(text) <= len(smol.tokenize(text))
    assert smol.least_tokens("<|im_start|>" * 300_000) == 300_000
    assert smol.least_tokens("<|im_start|>" * 100) == 0


def test_no_double_bos(smol: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    bos = smol.special["bos"]
    monkeypatch.setattr(LlamaModel, "adds_bos", True)
    assert smol.special_text("bos") == "<|im_start|>"
    assert smol.tokenize_prompt("<|im_start|>user\nhi").count(bos) == 1


def computed(model: LlamaModel, **options: Any) -> tuple[LlamaBackend, np.ndarray, int]:
    """A backend that has read TEXT, the logits after it, and the bytes of its KV."""
    backend = LlamaBackend(model, ContextParams(1024, 256, 256, n_running=4, n_slots=6, n_threads=2, **options))
    tokens = model.tokenize(TEXT)
    rows(backend, (tokens, 0, 0))
    return backend, backend.logits(len(tokens) - 1).copy(), len(backend.save(0))


def test_smaller_kv_types_take_less_memory_and_answer_nearly_the_same(smol: LlamaModel) -> None:
    results = {kv_type: computed(smol, kv_type=kv_type) for kv_type in ("f16", "q8_0", "q4_0")}
    shape, (_, exact, n_bytes) = read_shape(smol.path), results["f16"]
    for kv_type, share in (("q8_0", 34 / 64), ("q4_0", 18 / 64)):
        assert results[kv_type][2] / n_bytes == pytest.approx(share, abs=0.02)
        assert kv_bytes_per_token(shape, kv_type) / kv_bytes_per_token(shape) == pytest.approx(share, abs=0.001)
    assert np.corrcoef(exact, results["q8_0"][1])[0, 1] > 0.999
    assert np.abs(exact - results["q8_0"][1]).max() > 0
    for backend, _, _ in results.values():
        backend.close()


def test_flash_attention_can_be_switched_off(smol: LlamaModel) -> None:
    on, off = computed(smol, flash_attention="on"), computed(smol, flash_attention="off")
    assert np.abs(on[1] - off[1]).max() > 0, "other arithmetic"
    assert np.corrcoef(on[1], off[1])[0, 1] > 0.999, "the same logits but for rounding"
    on[0].close()
    off[0].close()


def test_prompts_may_have_threads_of_their_own(smol: LlamaModel) -> None:
    backend, *_ = computed(smol, n_threads_batch=1)
    assert llama_cpp.llama_n_threads(backend._context) == 2
    assert llama_cpp.llama_n_threads_batch(backend._context) == 1
    backend.close()


def test_a_thread_makes_way_for_other_processes_in_both_contexts(
    smol: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadGovernor, "look", lambda _: 1)
    backend, *_ = computed(smol, n_threads_batch=4)
    embedder = Embedder(smol, window=64, n_threads=2)
    embed(embedder, ["short"])
    assert llama_cpp.llama_n_threads(backend._context) == 1
    assert llama_cpp.llama_n_threads_batch(backend._context) == 2, "in proportion"
    assert llama_cpp.llama_n_threads_batch(embedder._context) == 1
    backend.close()
    embedder.close(RuntimeError("end"))  # type: ignore[arg-type]


def test_weights_are_mapped_or_read_and_locked_when_told_to(smol_path: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(smol_path, tmp_path / "own.gguf"))

    def mapped() -> bool:
        return str(own) in Path("/proc/self/maps").read_text()

    model = LlamaModel(own)
    assert mapped()
    model.close()
    before = locked_bytes() or 0
    model = LlamaModel(own, mmap=False, mlock=True)
    assert not mapped()
    assert (locked_bytes() or 0) - before > 0.9 * model.size_bytes
    model.close()
