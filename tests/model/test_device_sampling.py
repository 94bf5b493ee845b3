"""`LLM_BACKEND_SAMPLING`: chains in the model's graph choose as those on the host do. On the embedded SmolLM2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np
import pytest

from llm_local.engine.types import GenerationRequest, SamplingParams
from llm_local.errors import StartupError
from llm_local.llama import device_sampling
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.device_sampling import DeviceSampling
from llm_local.llama.model import LlamaModel
from llm_local.llama.sampler import LlamaSampler
from tests.model.test_backend import TEXT, rows, run_engine

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0.0)
NUMBERS = "one two three four five six seven eight nine ten one two three four five six seven eight nine ten one two"


def new_backend(smol: LlamaModel, *, on_device: bool) -> LlamaBackend:
    params = ContextParams(2048, 256, 256, n_running=4, n_slots=6, n_threads=2, backend_sampling=on_device)
    return LlamaBackend(smol, params)


@pytest.fixture
def backend(smol: LlamaModel) -> Iterator[LlamaBackend]:
    backend = new_backend(smol, on_device=True)
    yield backend
    backend.close()


@pytest.fixture
def sampled_on_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the device has sampled."""
    tokens: list[int] = []
    token = DeviceSampling.token

    def recording(device: DeviceSampling, row: int) -> int:
        tokens.append(token(device, row))
        return tokens[-1]

    monkeypatch.setattr(DeviceSampling, "token", recording)
    return tokens


def texts(out: list[list[Any]]) -> list[str]:
    for deltas in out:
        assert deltas[-1].error is None, deltas[-1].error
    return ["".join(delta.text for delta in deltas) for deltas in out]


def test_greedy_answers_are_those_of_the_host_also_beside_those_that_are_sampled_there(
    smol: LlamaModel, sampled_on_device: list[int]
) -> None:
    """Penalties, log probabilities of answers and of prompts stay on the host; biases do not."""
    prompt = tuple(smol.tokenize(TEXT))
    the = smol.tokenize(" the")[0]
    some = [
        GREEDY,
        SamplingParams(temperature=0.0, logit_bias=((the, 50.0),)),
        SamplingParams(temperature=0.0, repeat_penalty=1.3),
        SamplingParams(temperature=0.0, logprobs=1),
    ]
    requests = [GenerationRequest(prompt, params, 12) for params in some]
    requests.append(GenerationRequest((*prompt, 5), GREEDY, 12, prompt_logprobs=True))
    on_host = texts(run_engine(new_backend(smol, on_device=False), requests))
    assert not sampled_on_device
    on_device = texts(run_engine(new_backend(smol, on_device=True), requests))
    assert on_device == on_host
    assert on_device[1] == " the" * 12
    assert len(sampled_on_device) == 2 * 12


@pytest.mark.parametrize(
    "params",
    [{"top_k": 4}, {"top_p": 0.8, "temperature": 1.5}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9, "temperature": 0.7}],
    ids=str,
)
def test_draws_have_the_distribution_of_the_host(backend: LlamaBackend, smol: LlamaModel, params: Any) -> None:
    tokens, n = smol.tokenize(TEXT)[:-2], 200
    rows(backend, (tokens[:-1], 0, 0), (tokens[:-1], 0, 1))
    position = len(tokens) - 1
    counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    chosen = {where: backend.new_sampler(SamplingParams(seed=7, **params), ()) for where in counts}
    for where, sampler in chosen.items():
        sampler.enter(int(where), freely=where)
    for _ in range(n):
        rows(backend, (tokens[-1:], position, 0), (tokens[-1:], position, 1))
        for where, sampler in chosen.items():
            token = sampler.sample(int(where))
            sampler.accept(token)
            counts[where][token] += 1
            backend.trim(int(where), position)
    for sampler in chosen.values():
        sampler.leave()
        sampler.close()
    assert len(counts[True]) > 2
    for token in set(counts[True]) | set(counts[False]):
        here, there = counts[True][token], counts[False][token]
        # Five standard deviations of the difference of two binomial counts.
        assert abs(here - there) <= 5 * np.sqrt(max(here + there, 1)), (token, here, there)


def test_a_chain_goes_on_in_another_slot_as_if_it_had_stayed(backend: LlamaBackend, smol: LlamaModel) -> None:
    tokens = smol.tokenize(TEXT)

    def draws(moves: bool) -> list[int]:
        sampler, slot, drawn = backend.new_sampler(SamplingParams(seed=11, top_k=50, temperature=2.0), ()), 0, []
        sampler.enter(slot, freely=True)
        for step in range(12):
            rows(backend, (tokens, 0, slot))
            drawn.append(sampler.sample(len(tokens) - 1))
            sampler.accept(drawn[-1])
            backend.trim(slot, 0)
            if moves and step in (3, 4, 9):
                sampler.leave()
                slot = (slot + 1) % 3
                sampler.enter(slot, freely=True)
        sampler.leave()
        sampler.close()
        return drawn

    stayed = draws(moves=False)
    assert len(set(stayed)) > 3
    assert draws(moves=True) == stayed


def test_the_chain_of_an_answer_that_is_over_is_not_copied_back(
    smol: LlamaModel, monkeypatch: pytest.MonkeyPatch, sampled_on_device: list[int]
) -> None:
    copies, clone = [], llama_cpp.llama_sampler_clone
    monkeypatch.setattr(llama_cpp, "llama_sampler_clone", lambda chain: copies.append(chain) or clone(chain))
    texts(run_engine(new_backend(smol, on_device=True), [GenerationRequest(tuple(smol.tokenize(TEXT)), GREEDY, 12)]))
    assert len(sampled_on_device) == 12
    assert len(copies) == 1, "to the device"


def test_a_slot_that_the_device_sampled_has_logits_for_the_next_one(backend: LlamaBackend, smol: LlamaModel) -> None:
    """Its chain stays behind when it leaves; one that is constrained or penalized takes it out."""
    tokens = smol.tokenize(TEXT)
    first, second = backend.new_sampler(GREEDY, ()), backend.new_sampler(GREEDY, ())
    first.enter(0, freely=True)
    rows(backend, (tokens, 0, 0))
    wanted = first.sample(len(tokens) - 1)
    first.leave()
    first.close()
    backend.trim(0, 0)
    second.enter(0, freely=False)
    rows(backend, (tokens, 0, 0))
    assert int(backend.logits(len(tokens) - 1).argmax()) == second.sample(len(tokens) - 1) == wanted
    second.leave()
    second.close()


def test_guesses_are_checked_by_tokens_of_the_device(smol: LlamaModel, sampled_on_device: list[int]) -> None:
    prompt = tuple(smol.tokenize(NUMBERS))
    plain = GenerationRequest(prompt, GREEDY, 24)
    guessing = GenerationRequest(prompt, GREEDY, 24, speculate=True)
    wanted = texts(run_engine(new_backend(smol, on_device=False), [plain]))
    backend = new_backend(smol, on_device=True)
    out = run_engine(backend, [guessing])
    assert texts(out) == wanted
    assert out[0][-1].usage.accepted_tokens > 0
    assert len(sampled_on_device) == 24


def test_a_device_that_cannot_sample_is_named_at_the_start(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_sampling.llama_cpp, "llama_get_sampled_token_ith", lambda context, row: -1)
    with pytest.raises(StartupError, match=r"LLM_BACKEND_SAMPLING: .*Unset it"):
        backend.warm_up()


def test_what_is_measured_at_the_start_is_computed(smol: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of a device takes fewer rows of a sequence than are measured, so that none may be left behind."""
    codes: list[int] = []
    decode = llama_cpp.llama_decode

    def recording(context: Any, batch: Any) -> int:
        codes.append(decode(context, batch))
        return codes[-1]

    monkeypatch.setattr(llama_cpp, "llama_decode", recording)
    backend = LlamaBackend(smol, ContextParams(256, 64, 64, n_running=4, n_slots=6, n_threads=1, backend_sampling=True))
    times = backend.warm_up(budget_s=600)
    backend.close()
    assert set(codes) == {0}
    assert len(times) == 6


@pytest.mark.parametrize(
    ("params", "there"),
    [
        ({}, True),
        ({"top_k": 40, "top_p": 0.9, "min_p": 0.1, "temperature": 0.5, "logit_bias": ((3, 1.0),)}, True),
        ({"temperature": 0.0, "typical_p": 0.5}, True),
        ({"typical_p": 0.5}, False),
        ({"mirostat": 2}, False),
        ({"xtc_probability": 0.5}, False),
        ({"presence_penalty": 0.5}, False),
        ({"frequency_penalty": 0.5}, False),
        ({"repeat_penalty": 1.1}, False),
        ({"dry_multiplier": 0.8}, False),
        ({"logprobs": 0}, False),
    ],
    ids=str,
)
def test_what_llama_cpp_has_for_devices_runs_there_and_all_else_on_the_host(
    backend: LlamaBackend, smol: LlamaModel, sampled_on_device: list[int], params: Any, there: bool
) -> None:
    sampler = backend.new_sampler(SamplingParams(seed=1, **params), ())
    assert isinstance(sampler, LlamaSampler)
    sampler.enter(2, freely=True)
    rows(backend, (smol.tokenize(TEXT), 0, 2))
    sampler.sample(len(smol.tokenize(TEXT)) - 1)
    assert bool(sampled_on_device) == there
    sampler.leave()
    sampler.close()
