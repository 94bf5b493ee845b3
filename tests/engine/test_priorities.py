"""People who wait: urgent requests, long prompts beside short ones, and that nobody starves."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from llm_local.engine import filling, scheduler
from llm_local.engine.pace import Pace
from llm_local.engine.types import SamplingParams
from tests.engine.test_engine import collect, request, running, sampled
from tests.fakes import FakeBackend, expected_tokens

ENDLESS = SamplingParams(temperature=0.0, ignore_eos=True, logprobs=0)


def test_an_urgent_request_takes_the_place_of_a_less_urgent_one_which_goes_on_after_it() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512)
        backend.delay_s = 0.001
        async with running(backend, max_running=2) as engine:
            order: list[str] = []

            async def client(name: str, prompt: tuple[int, ...], n: int, priority: int) -> list[int]:
                answer = await sampled(engine.submit([request(prompt, n, ENDLESS, priority=priority)]))
                order.append(name)
                return answer

            busy = [asyncio.create_task(client(f"busy {n}", (n, 5, 6), 100, 0)) for n in range(2)]
            while len(backend.batches) < 5:
                await asyncio.sleep(0.001)
            urgent = await client("urgent", (9, 9), 4, -1)
            assert order == ["urgent"]
            assert urgent == expected_tokens((9, 9), ENDLESS, 4)
            answers = await asyncio.gather(*busy)
            assert answers == [expected_tokens((n, 5, 6), ENDLESS, 100) for n in range(2)]
            assert engine._thread.scheduler.n_outpaced == 1
            assert backend.rows_computed == 2 * (3 + 99) + 2 + 3, "and what it had was not computed again"

    asyncio.run(scenario())


def test_equals_do_not_push_each_other_out() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512)
        backend.delay_s = 0.001
        async with running(backend, max_running=1) as engine:
            first = asyncio.create_task(collect(engine.submit([request((1,), 30, ENDLESS, priority=-1)])))
            await asyncio.sleep(0.01)
            await collect(engine.submit([request((2,), 3, ENDLESS, priority=-1)]))
            assert first.done()
            assert engine._thread.scheduler.n_outpaced == 0

    asyncio.run(scenario())


def test_a_flow_of_urgent_requests_does_not_starve_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PRIORITY_WORTH_S", 0.05)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512, n_slots=12)
        backend.delay_s = 0.001
        async with running(backend, max_running=1) as engine:
            patient = asyncio.create_task(collect(engine.submit([request((1,), 40, ENDLESS)])))
            await asyncio.sleep(0.005)
            flowing = True

            async def flow(n: int) -> None:
                while flowing:
                    await collect(engine.submit([request((2, n), 5, ENDLESS, priority=-1)]))

            flows = [asyncio.create_task(flow(n)) for n in range(8)]
            await asyncio.wait_for(patient, 5)
            flowing = False
            await asyncio.gather(*flows)
            assert engine._thread.scheduler.n_outpaced > 0

    asyncio.run(scenario())


def test_an_urgent_request_goes_on_past_one_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before it waits for cells; the urgent one has the cells of whom it replaces."""
    monkeypatch.setattr(scheduler, "PRIORITY_WORTH_S", 0.001)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=128)
        backend.delay_s = 0.001
        async with running(backend, max_running=4, answer_reserve=100) as engine:
            busy = engine.submit([request((1,), 100, ENDLESS)])
            await anext(busy)
            large = asyncio.create_task(collect(engine.submit([request(tuple(range(60)), 60, ENDLESS)])))
            await asyncio.sleep(0.005)
            began = time.monotonic()
            await collect(engine.submit([request((2, 3), 3, ENDLESS, priority=-1)]))
            assert not large.done()
            assert time.monotonic() - began < 1
            busy.close()
            await large

    asyncio.run(scenario())


def test_nobody_steps_back_for_one_that_would_not_fit_even_then() -> None:
    """The cells it lacks belong to one that is as urgent; what the less urgent one has would not be enough."""

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=128)
        backend.delay_s = 0.001
        async with running(backend, max_running=4, answer_reserve=100) as engine:
            equal = engine.submit([request((1,), 59, ENDLESS, priority=-1)])
            await anext(equal)
            less_urgent = engine.submit([request((2,), 29, ENDLESS)])
            await anext(less_urgent)
            urgent = asyncio.create_task(collect(engine.submit([request(tuple(range(60)), 60, ENDLESS, priority=-1)])))
            await asyncio.sleep(0.01)
            assert engine._thread.scheduler.n_outpaced == 0
            equal.close()
            await urgent
            assert engine._thread.scheduler.n_outpaced == 1, "then it is enough"
            less_urgent.close()

    asyncio.run(scenario())


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512, n_batch=8)
        backend.delay_s = 0.001
        async with running(backend, window=400) as engine:
            order: list[str] = []

            async def client(name: str, prompt: tuple[int, ...]) -> None:
                await collect(engine.submit([request(prompt, 1)]))
                order.append(name)

            long = asyncio.create_task(client("long", tuple(n % 250 for n in range(300))))
            await asyncio.sleep(0.005)
            await asyncio.gather(long, client("short", tuple(range(20, 50))))
            assert order == ["short", "long"]

    asyncio.run(scenario())


@dataclass(eq=False)
class Prompt:
    pending: int
    request: SimpleNamespace
    computed: int = 0
    wants_prompt_logits: bool = False


@pytest.mark.parametrize(
    ("prompts", "room", "shares"),
    [
        ([(300, 0)], 32, [32]),
        ([(300, 0), (50, 0), (20, 0)], 32, [16, 0, 16]),
        ([(300, 0), (50, 0), (10, 0)], 32, [16, 6, 10]),
        ([(10, 0), (300, 0)], 32, [10, 22]),
        ([(300, 0), (20, -1), (5, 0)], 30, [15, 15, 0]),
        ([(300, -1), (20, 0)], 32, [32, 0]),
        ([(300, 0), (4, 0)], 32, [28, 4]),
        ([(40, 0), (40, 0)], 32, [32, 0]),
        ([(300, 0), (290, 0), (160, 0)], 32, [32, 0, 0]),
        ([(300, 0), (290, 0), (150, 0)], 32, [16, 0, 16]),
        ([(300, 0), (290, -1)], 32, [16, 16]),
        ([(30, 0), (97, 0)], 64, [30, 34]),
        ([(97, 0), (30, 0)], 64, [34, 30]),
    ],
)
def test_prompt_rows_go_to_the_oldest_and_half_of_them_to_much_shorter_and_more_urgent_ones(
    prompts: list[tuple[int, int]], room: int, shares: list[int]
) -> None:
    sequences: list[Any] = [Prompt(pending, SimpleNamespace(priority=priority)) for pending, priority in prompts]
    got = dict(filling._shares(sequences, filling._sooner(sequences), room, 0))
    assert [got[sequence] for sequence in sequences] == shares


def test_what_a_prompt_that_wants_logits_cannot_have_is_the_next_ones() -> None:
    prompts: list[Any] = [Prompt(n, SimpleNamespace(priority=0), wants_prompt_logits=n == 300) for n in (300, 290)]
    assert filling._shares(prompts, [], 32, 10) == [(prompts[0], 10), (prompts[1], 22)]


@pytest.mark.parametrize(
    ("prompts", "position"),
    [
        ([(300, 5000), (300, 0)], 5000),
        ([(32, 0), (300, 8000)], 4000),
        ([(300, 5000), (100, 0)], 2500),
        ([(8, 40), (8, 80)], 60),
    ],
)
def test_what_prompts_cost_is_asked_where_their_next_rows_are(prompts: list[tuple[int, int]], position: int) -> None:
    sequences: list[Any] = [Prompt(pending, SimpleNamespace(priority=0), computed) for pending, computed in prompts]
    assert filling._next_position(sequences, filling._sooner(sequences)) == position


def test_steps_know_where_the_prompts_are_that_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    positions: list[int] = []
    monkeypatch.setattr(Pace, "prompt_rows", lambda self, *_, position, **__: positions.append(position) or 8)

    async def scenario() -> None:
        async with running(FakeBackend(n_ctx=1024, n_batch=64), window=300) as engine:
            prompts = [tuple((first + n) % 250 for n in range(200)) for first in (0, 80, 160)]
            await asyncio.gather(*(collect(engine.submit([request(prompt, 1)])) for prompt in prompts))

    asyncio.run(scenario())
    assert positions[:16] == [*range(0, 128, 8)], "not the mean of those that wait"


def test_steps_of_a_prompt_alone_take_turns_with_those_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "rows_apart", lambda self, n_max, *_, **__: 8)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=400, n_batch=64)
        backend.delay_s = 0.001  # The answer still runs when the prompt comes.
        async with running(backend, window=200) as engine:
            params = SamplingParams(temperature=0.0, ignore_eos=True)
            answering = engine.submit([request((1, 2, 3), 150, params)])
            await anext(answering)
            began = len(backend.batches)
            await collect(engine.submit([request(tuple(range(5, 105)), 1, params)]))
            rows = [sum(n for _, n in batch) for batch in backend.batches[began:]]
            first = rows.index(8)
            assert rows[first : first + 20] == [8, 1] * 10
            answering.close()

    asyncio.run(scenario())


def test_a_prompt_that_fills_no_tile_is_not_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[int] = []
    monkeypatch.setattr(Pace, "rows_apart", lambda self, n_max, *_, **__: most.append(n_max) or 0)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=400, n_batch=64)
        backend.delay_s = 0.001  # The answer still runs when the prompt comes.
        async with running(backend, window=200) as engine:
            answering = engine.submit([request((1, 2, 3), 150, ENDLESS)])
            await anext(answering)
            await collect(engine.submit([request(tuple(range(5, 45)), 1, ENDLESS)]))
            answering.close()

    asyncio.run(scenario())
    assert most
    assert max(most) == 40, "not more than is to be read, whatever fits a batch"


class SideJob:
    """Other work, which looks whether tokens wait for it."""

    pending = False

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.engine: Any = None

    def step(self) -> None:
        self.waiting.append(len(self.engine._thread._outbox))

    def close(self, error: Exception) -> None:
        pass


def test_tokens_do_not_wait_for_other_work_of_the_thread() -> None:
    async def scenario() -> None:
        job = SideJob()
        async with running(FakeBackend(), side_job=job) as engine:
            job.engine = engine
            job.pending = True
            await collect(engine.submit([request((1, 2, 3), 20, ENDLESS)]))
            job.pending = False
            assert len(job.waiting) >= 10
            assert not any(job.waiting)

    asyncio.run(scenario())
