"""The engine step by step, without its thread: whoever leaves between any two steps, nothing is left and others go on.

Random traffic of everything that a request can ask for, on small caches; the books are checked after each step.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_local.engine import disk_cache, engine_thread, parking, prefix_cache, scheduler
from llm_local.engine.backend import NoRoom
from llm_local.engine.disk_cache import DiskCache
from llm_local.engine.drafts import Drafts
from llm_local.engine.engine import Engine
from llm_local.engine.host_cache import HostCache
from llm_local.engine.messages import Stop, Wake
from llm_local.engine.pace import Pace
from llm_local.engine.stream import Stream
from llm_local.engine.types import Delta, FinishReason, GenerationRequest, SamplingParams
from llm_local.errors import DeadlineExceeded, DecodeFailed, LLMLocalError, QueueFull
from llm_local.structured.spec import Spec
from tests.engine.test_constraints import GRAMMARS, SPECS
from tests.examples import seeds
from tests.fakes import END, FakeBackend, FakeDrafter, FakeSampler, draw, next_logits

MOST_STEPS = 20_000


class AtOnce:
    """An event loop that is never busy."""

    def call_soon_threadsafe(self, call: Callable[..., None], *args: object) -> None:
        call(*args)


@dataclass
class Client:
    """Who reads a stream, perhaps not to its end."""

    requests: list[GenerationRequest]
    spec: Spec | None
    stream: Stream
    leaves_after: int | None
    deltas: dict[int, list[Delta]] = field(default_factory=dict)
    error: LLMLocalError | None = None
    left: bool = False

    def read(self) -> None:
        """Take what came, as a reader on the loop does."""
        for delta in self.stream._waiting.values():
            self.deltas.setdefault(delta.index, []).append(delta)
        self.stream._waiting.clear()
        if self.stream._error is not None and self.error is None:
            self.error = self.stream._error
            self.stream.close()

    @property
    def ended(self) -> bool:
        return self.left or self.error is not None or not self.stream._open

    def check(self) -> None:
        """Compare with what no engine gives."""
        for index, request in enumerate(self.requests):
            text, finish, tokens = alone(request, self.spec)
            deltas = self.deltas[index]
            assert "".join(delta.text for delta in deltas) == text
            assert deltas[-1].finish is finish
            assert deltas[-1].usage is not None
            assert deltas[-1].usage.completion_tokens == len(tokens)
            if request.params.logprobs is not None and not request.stop:
                entries = [entry.token for delta in deltas for entry in delta.logprobs]
                assert entries == [token for token in tokens if token != END]
            if request.prompt_logprobs and request.max_tokens:
                assert [entry.token for d in deltas for entry in d.prompt_logprobs] == list(request.prompt)


def alone(request: GenerationRequest, spec: Spec | None) -> tuple[str, FinishReason, list[int]]:
    """What a request must get, computed without an engine: text, why it ended, tokens with that which ended it."""
    params, text, out = request.params, "", list[int]()
    random_ = np.random.default_rng((params.seed or 0) % 2**64)
    constraint = GRAMMARS.constraints(spec, [100])[0] if spec is not None else None
    forced: list[int] = []
    while len(out) < request.max_tokens:
        if constraint is not None and not forced and params.logprobs is None:
            forced = list(constraint.forced())
        if forced:
            token = forced.pop(0)
        else:
            logits = next_logits((*request.prompt, *out))
            token = draw(logits, params, random_)
            if constraint is not None and not constraint.allows(token):
                token = draw(np.where(constraint.allowed(), logits, -np.inf), params, random_)
        out.append(token)
        if token == END:
            whole = constraint is None or constraint.may_end
            return text, FinishReason.STOP if whole else FinishReason.LENGTH, out
        if constraint is not None:
            constraint.accept(token)
        text += chr(token)
        found = [(at + len(stop), at) for stop in request.stop if (at := text.find(stop)) >= 0]
        if found:
            text = text[: min(found)[1]]
            whole = constraint is None or constraint.completes(text)
            return text, FinishReason.STOP if whole else FinishReason.LENGTH, out
        if constraint is not None and constraint.must_end:
            return text, FinishReason.STOP, out
    return text, FinishReason.LENGTH, out


class Stepped:
    """An engine whose steps are taken by hand, and its clients."""

    def __init__(self, backend: FakeBackend, **options: Any) -> None:
        settings = {"max_running": 4, "queue_max": 100, "window": 128, "answer_reserve": 16, **options}
        self.backend = backend
        self.engine = Engine(backend, **settings)
        self.thread = self.engine._thread
        self.thread._loop = AtOnce()  # type: ignore[assignment]
        self.clients: list[Client] = []
        self.n_steps = 0

    def submit(
        self, requests: list[GenerationRequest], spec: Spec | None = None, leaves_after: int | None = None
    ) -> Client:
        constraints = GRAMMARS.constraints(spec, [100] * len(requests)) if spec is not None else []
        client = Client(requests, spec, self.engine.submit(requests, constraints=constraints), leaves_after)
        self.clients.append(client)
        return client

    def step(self) -> None:
        """Let those leave whose time has come, take a step, hand out what it made, and look at the books."""
        for client in self.clients:
            if client.leaves_after is not None and not client.ended:
                if client.leaves_after == 0:
                    client.stream.close()
                    client.left = True
                client.leaves_after -= 1
        self.thread.put(Wake())
        assert self.thread.step()
        self.thread._flush()
        for client in self.clients:
            if not client.left:
                client.read()
        self.n_steps += 1
        gone = {client.stream for client in self.clients if client.left}
        books = self.thread.scheduler
        assert not any(sequence.stream in gone for sequence in [*books.running, *books.waiting])
        self.check_books()

    def finish(self) -> None:
        """Step until all have their answers, and see that nothing is left of them."""
        while self.engine.n_open:
            assert self.n_steps < MOST_STEPS, "somebody waits for ever"
            self.step()
            if self.thread.scheduler.waits_for_disk:
                time.sleep(0.001)  # So does the engine's thread; else thousands of steps pass before a file is read.
        running = self.thread.scheduler
        assert not running.running
        assert not running.waiting
        assert not self.engine._streams - {client.stream for client in self.clients if not client.left}
        assert not any(sampler.open for sampler in self.backend.samplers)

    def check_books(self) -> None:
        books, cache = self.thread.scheduler, self.thread.scheduler.cache
        assert self.engine.n_open >= len(books.running) + len(books.waiting)
        assert len(books.running) <= self.engine.max_running
        assert {sequence.slot for sequence in books.running} == {slot.id for slot in cache.slots if slot.busy}
        for sequence in books.running:
            slot = cache.slots[sequence.slot]
            assert sequence.pending >= 1, "everybody has something to compute"
            assert slot.length == sequence.computed
            assert slot.length <= slot.reserved
            assert (slot.tokens[: slot.length] == sequence.tokens[: slot.length]).all()
            assert sequence.sampler.slot == slot.id  # type: ignore[attr-defined]
        for sequence in books.waiting:
            assert sequence.sampler.slot is None  # type: ignore[attr-defined]
            assert sequence not in books.running
        owned, promised = cache.cells.of_busy(cache.slots)
        assert int(owned.sum()) + promised <= cache.cells.total
        assert cache.cells.n_used == self.backend.n_used
        for slot in cache.slots:
            assert slot.busy or slot.reserved == 0
            assert slot.tokens[: slot.length].tolist() == self.backend.tokens[slot.id]
            assert cache.match(slot.tokens[: slot.length])[1] == slot.length


@contextmanager
def stepped(backend: FakeBackend, **options: Any) -> Iterator[Stepped]:
    made = Stepped(backend, **options)
    yield made
    made.thread.put(Stop())
    assert not made.thread.step()
    made.thread._close()
    assert backend.closed


def some_request(choose: random.Random, prompt: tuple[int, ...], seed: int, window: int) -> GenerationRequest:
    params = SamplingParams(
        temperature=choose.choice([0.0, 1.0]), seed=seed, logprobs=choose.choice([None, None, 0, 2]),
        ignore_eos=choose.random() < 0.3,
    )  # fmt: skip
    max_tokens = min(choose.choice([0, 1, 7, 40, 90]), window - len(prompt))
    fields: dict[str, Any] = {
        "priority": choose.choice([0, 0, -1, 1]), "cache_prompt": choose.random() < 0.9,
        "streamed": choose.random() < 0.5, "report_progress": choose.random() < 0.2,
        "prompt_logprobs": params.logprobs is not None and choose.random() < 0.3,
        "speculate": choose.random() < 0.5,
    }  # fmt: skip
    if choose.random() < 0.1:
        fields["deadline"] = time.monotonic() + choose.random() * 0.05
    if choose.random() < 0.4:
        right = alone(GenerationRequest(prompt, params, max_tokens), None)[2]
        fields |= {"prediction": tuple(token for token in right if token != END and choose.random() < 0.9)}
        fields["speculate"] = True
    return GenerationRequest(prompt, params, max_tokens, **fields)


def with_stops(choose: random.Random, request: GenerationRequest, spec: Spec | None) -> GenerationRequest:
    """The request with stop strings of which one is in its answer."""
    text = alone(request, spec)[0]
    if not text:
        return request
    at, n = choose.randrange(len(text)), choose.randint(1, 3)
    stops = (text[at : at + n], text[at : at + n + 1] + "?", "never")
    fields = {name: getattr(request, name) for name in request.__slots__}
    return GenerationRequest(**{**fields, "stop": stops})


def choose_at_random(choose: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chance decide what measured times would."""
    monkeypatch.setattr(Pace, "worthwhile_guesses", lambda self, expected, *_: choose.randint(0, len(expected)))
    monkeypatch.setattr(Drafts, "_worthwhile", lambda self, n, rows, answers, most: choose.randint(0, max(most, 0)))
    monkeypatch.setattr(Pace, "spare_work", lambda self, work: choose.choice([0.0, 1.0, 5.0, math.inf]))
    monkeypatch.setattr(Pace, "rows_apart", lambda self, n_max, *_, **__: choose.choice([0, 0, 3, n_max]))
    monkeypatch.setattr(scheduler, "PRIORITY_WORTH_S", choose.choice([0.0005, 10.0]))
    few = choose.choice([1, 32])
    monkeypatch.setattr(parking, "WORTH_PARKING", few)
    monkeypatch.setattr(prefix_cache, "LONG_PROMPT", choose.choice([10, 256]))
    monkeypatch.setattr(disk_cache, "WORTH_READING", few)
    monkeypatch.setattr(disk_cache, "WORTH_STORING", 20)
    monkeypatch.setattr(disk_cache, "READ_AGAIN_S", 0.01)
    monkeypatch.setattr(engine_thread, "PROMPT_ROWS", 10**9)


@pytest.mark.parametrize("seed", seeds(60, fast=4))
def test_whoever_leaves_or_fails_nothing_is_left_and_the_others_get_what_they_would_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        traffic(seed, patch, tmp_path)


def traffic(seed: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Send random requests, twice, the second time with what the first left on the disk."""
    choose = random.Random(seed)
    choose_at_random(choose, monkeypatch)
    faulty = choose.random() < 0.3
    sample = FakeSampler.sample

    def failing(sampler: FakeSampler, row: int, allowed: np.ndarray | None = None) -> int:
        if faulty and choose.random() < 0.01:
            raise DecodeFailed("no numbers")
        return sample(sampler, row, allowed)

    monkeypatch.setattr(FakeSampler, "sample", failing)
    prefixes = [tuple(choose.choices(range(256), k=choose.randint(1, 60))) for _ in range(3)]
    for _ in range(2):
        backend = FakeBackend(
            n_ctx=choose.choice([130, 200, 400]), n_batch=choose.choice([4, 16, 64]), n_slots=choose.choice([4, 5, 9]),
            n_outputs=choose.choice([9, 16, 40]),
        )  # fmt: skip
        disk = DiskCache.open(folder, "key", choose.choice([1500, 100_000])) if choose.random() < 0.4 else None
        options = {
            "window": choose.choice([100, 128]),
            "prefill_chunk": choose.choice([None, 1, 16]),
            "target_gap_s": choose.choice([None, 1e-4, 1e-2]),
            "answer_reserve": choose.choice([1, 4, 200]),
            "host": HostCache(choose.choice([400, 2000]), disk) if disk or choose.random() < 0.5 else None,
            "park_after": choose.choice([None, 1, 20]),
            "drafter": choose.choice([None, FakeDrafter()]),
        }
        backend.fail_load = choose.random() < 0.1
        backend.window = choose.choice([None, None, 8])
        with stepped(backend, **options) as run:
            for number in range(30):
                prompt = choose.choice(prefixes) + tuple(choose.choices(range(256), k=choose.randint(1, 20)))
                one = some_request(choose, prompt, number, options["window"])
                spec = choose.choice([None, *SPECS])
                if choose.random() < 0.3:
                    one = with_stops(choose, one, spec)
                leaves = choose.randint(0, 60) if choose.random() < 0.4 else None
                with contextlib.suppress(QueueFull, DeadlineExceeded):  # Its deadline is nearer than its turn.
                    run.submit([one] * choose.choice([1, 1, 1, 2, 3]), spec, leaves)
                for _ in range(choose.choice([0, 0, 1, 5, 30])):
                    if faulty and choose.random() < 0.05:
                        backend.fail_with = choose.choice([DecodeFailed("boom"), NoRoom("full")])
                    elif faulty and choose.random() < 0.03:
                        backend.fail_after_rows = 1
                    run.step()
            run.finish()
            for client in run.clients:
                if client.error is not None:
                    expected: tuple[type[LLMLocalError], ...] = (DeadlineExceeded, *[DecodeFailed] * faulty)
                    assert isinstance(client.error, expected), client.error
                elif not client.left:
                    client.check()


@pytest.mark.slow
def test_that_traffic_exercises_what_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards the property above: sequences step back, come from the tiers, are guessed, forced, and given up."""
    seen: Counter[str] = Counter()
    finish = Stepped.finish

    def counting(run: Stepped) -> None:
        finish(run)
        books = run.thread.scheduler
        seen["preempted"] += books.n_preempted
        seen["outpaced"] += books.n_outpaced
        seen["restored"] += books.cache.parking.n_restored
        for client in run.clients:
            ends = [deltas[-1] for deltas in client.deltas.values() if deltas[-1].usage is not None]
            seen["left"] += client.left
            seen["failed"] += client.error is not None
            seen["whole"] += not client.left and client.error is None
            seen["forced"] += sum(end.usage.forced_tokens for end in ends if end.usage is not None)
            seen["guessed"] += sum(end.usage.accepted_tokens for end in ends if end.usage is not None)

    monkeypatch.setattr(Stepped, "finish", counting)
    for seed in range(8):
        with monkeypatch.context() as patch:
            traffic(seed, patch, tmp_path)
    assert min(seen.values()) >= 3, seen  # How many step back depends on measured times.


@pytest.mark.parametrize("who", range(3))
def test_one_may_leave_after_any_step(who: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three who share a prefix, one of them forced and one guessed, on cells that are short for all."""
    monkeypatch.setattr(Pace, "worthwhile_guesses", lambda self, expected, *_: len(expected))
    monkeypatch.setattr(Pace, "spare_work", lambda self, work: 3.0)
    prefix = tuple(range(40))
    params = SamplingParams(temperature=1.0, seed=3, ignore_eos=True)
    right = tuple(alone(GenerationRequest((*prefix, 2), params, 40), None)[2])
    wanted = [
        (GenerationRequest((*prefix, 1), SamplingParams(seed=1), 60, speculate=True, lookup=False), SPECS[0]),
        (GenerationRequest((*prefix, 2), params, 40, speculate=True, prediction=right[:20]), None),
        (GenerationRequest((*prefix, 3), params, 50, priority=-1), None),
    ]
    n_preempted, after, longest = 0, 0, 1
    while after <= longest:
        with stepped(FakeBackend(n_ctx=130, n_batch=16), answer_reserve=1) as run:
            for number, (request, spec) in enumerate(wanted):
                run.submit([request], spec, after if number == who else None)
                run.step()
            run.finish()
            after, longest = after + 1, run.n_steps
            n_preempted += run.thread.scheduler.n_preempted + run.thread.scheduler.n_outpaced
            for client in run.clients:
                if not client.left:
                    client.check()
    assert n_preempted > 0
