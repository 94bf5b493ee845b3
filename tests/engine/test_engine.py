"""The engine on the fake backend: what every answer must be, whatever happens around it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from llm_local.engine import disk_cache, engine_thread, parking
from llm_local.engine.disk_cache import DiskCache
from llm_local.engine.drafts import Drafts
from llm_local.engine.engine import Engine
from llm_local.engine.host_cache import HostCache
from llm_local.engine.pace import Pace
from llm_local.engine.stream import Stream
from llm_local.engine.types import Delta, FinishReason, GenerationRequest, SamplingParams
from llm_local.engine.warm import warm
from llm_local.errors import DeadlineExceeded, DecodeFailed, Draining, EngineDead, QueueFull
from tests.examples import seeds
from tests.fakes import END, FakeBackend, FakeDrafter, FakeSampler, expected_tokens

GREEDY = SamplingParams(temperature=0.0, logprobs=0)


@asynccontextmanager
async def running(backend: FakeBackend, **options: object) -> AsyncIterator[Engine]:
    settings: dict = {
        "max_running": 4, "queue_max": 64, "window": 128, "prefill_chunk": 8, "answer_reserve": 16, **options,
    }  # fmt: skip
    engine = Engine(backend, **settings)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
        assert backend.closed
        assert not any(sampler.open for sampler in backend.samplers), "a sampler leaked"


def request(
    prompt: tuple[int, ...], max_tokens: int = 16, params: SamplingParams = GREEDY, **fields
) -> GenerationRequest:
    return GenerationRequest(prompt, params, max_tokens, **fields)


async def collect(stream: Stream) -> dict[int, list[Delta]]:
    out: dict[int, list[Delta]] = {}
    try:
        async for deltas in stream:
            for delta in deltas:
                out.setdefault(delta.index, []).append(delta)
    finally:
        stream.close()
    return out


async def sampled(stream: Stream) -> list[int]:
    """The tokens of a single-sequence stream, without the end token, from its log probabilities."""
    deltas = (await collect(stream))[0]
    return [entry.token for delta in deltas for entry in delta.logprobs]


def without_end(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token != END]


def check_accounting(engine: Engine, backend: FakeBackend) -> None:
    """Check that the books agree; a late report of the disk's thread may wake the engine in the middle of a look."""
    for _ in range(3):
        try:
            _check_accounting(engine, backend)
            return
        except AssertionError:
            time.sleep(0.05)
    _check_accounting(engine, backend)


def _check_accounting(engine: Engine, backend: FakeBackend) -> None:
    cache = engine._thread.scheduler.cache
    assert cache.cells.n_used == backend.n_used
    for slot in cache.slots:
        assert list(slot.tokens[: slot.length]) == backend.tokens[slot.id]
        assert cache.match(slot.tokens[: slot.length])[1] == slot.length


@pytest.mark.parametrize("seed", seeds(30, fast=4))
def test_an_answer_is_the_same_alone_batched_chunked_warm_shared_guessed_and_preempted(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random traffic with common prefixes, small caches, clients that leave: each answer is what no engine gives.

    With a disk tier and pinned prefixes for some seeds, and the second time with what the first one left on the disk.
    """
    choose = random.Random(seed)
    monkeypatch.setattr(Pace, "worthwhile_guesses", lambda self, expected, *_: choose.randint(0, len(expected)))
    monkeypatch.setattr(Drafts, "_worthwhile", lambda self, n, rows, answers, most: choose.randint(0, max(most, 0)))
    if choose.random() < 0.5:
        monkeypatch.setattr(Pace, "rows_apart", lambda self, n_max, *_, **__: choose.choice([0, 0, 3, n_max]))
    monkeypatch.setattr(disk_cache, "WORTH_STORING", 20)
    few = choose.choice([1, 32])
    monkeypatch.setattr(disk_cache, "WORTH_READING", few)
    monkeypatch.setattr(disk_cache, "READ_AGAIN_S", 0.01)
    monkeypatch.setattr(parking, "WORTH_PARKING", few)
    if choose.random() < 0.8:
        # The fake computes faster than any disk reads: unmeasured, reading pays.
        monkeypatch.setattr(engine_thread, "PROMPT_ROWS", 10**9)
    has_disk = seed % 3 != 0
    disk_bytes = choose.choice([1500, 100_000])
    prefixes = [tuple(choose.choices(range(256), k=choose.randint(1, 60))) for _ in range(3)]

    async def scenario() -> None:
        backend = FakeBackend(
            n_ctx=choose.choice([140, 200, 400]), n_batch=choose.choice([5, 16, 64]), n_slots=choose.choice([4, 5, 9]),
            n_outputs=16,
        )  # fmt: skip
        disk = DiskCache.open(tmp_path, "key", disk_bytes) if has_disk else None
        options = {
            "window": min(128, backend.n_ctx),
            "prefill_chunk": choose.choice([None, 1, 4, 16]),
            "target_gap_s": choose.choice([None, 1e-4, 1e-2]),
            "answer_reserve": choose.choice([1, 4, 200]),
            "host": choose.choice([HostCache(400, disk), HostCache(2000, disk)] + [None] * (not has_disk)),
            "park_after": choose.choice([None, 1, 20]),
            "drafter": choose.choice([None, FakeDrafter()]),
        }
        backend.fail_load = choose.random() < 0.1
        backend.window = choose.choice([None, None, 8])
        async with running(backend, **options) as engine:
            if choose.random() < 0.5:
                await warm(engine, [array(prefix) for prefix in prefixes if len(prefix) < 40])

            async def client(number: int) -> None:
                prompt = choose.choice(prefixes) + tuple(choose.choices(range(256), k=choose.randint(1, 20)))
                params = SamplingParams(
                    temperature=choose.choice([0.0, 1.0]), seed=number, logprobs=0, ignore_eos=choose.random() < 0.5
                )
                max_tokens = choose.randint(1, min(40, options["window"] - len(prompt)))
                fields: dict = {"priority": choose.randint(-1, 1), "cache_prompt": choose.random() < 0.8}
                if choose.random() < 0.6:
                    fields |= {"speculate": True, "prediction": nearly(expected_tokens(prompt, params, max_tokens))}
                await asyncio.sleep(choose.random() * 0.02)
                stream = engine.submit([request(prompt, max_tokens, params, **fields)])
                if choose.random() < 0.2:
                    await asyncio.sleep(choose.random() * 0.01)
                    stream.close()
                    return
                tokens = await sampled(stream)
                assert tokens == without_end(expected_tokens(prompt, params, max_tokens))

            await asyncio.wait_for(asyncio.gather(*[client(number) for number in range(20)]), 20)
            await settle(engine)
            check_accounting(engine, backend)
            assert engine.n_open == 0
        if disk is not None:
            assert disk.n_bytes == sum(file.stat().st_size for file in tmp_path.iterdir()) <= disk_bytes

    def nearly(tokens: list[int]) -> tuple[int, ...]:
        """A prediction that is right but for some places, or none at all."""
        if choose.random() < 0.3:
            return ()
        return tuple(token for token in tokens if token != END and choose.random() < 0.9)

    for _ in range(1 + has_disk):
        asyncio.run(scenario())


def array(tokens: tuple[int, ...]) -> np.ndarray:
    return np.array(tokens, np.int32)


async def settle(engine: Engine) -> None:
    """Wait until the engine has nothing left to do."""
    for _ in range(500):
        if engine.n_open == 0:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{engine.n_open} sequences are still open")


def test_small_caches_do_preempt() -> None:
    """Guards the property test above: the traffic of a small cache must really exercise preemption."""

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=128)
        async with running(backend, answer_reserve=1) as engine:
            params = SamplingParams(temperature=0.0, ignore_eos=True, logprobs=0)
            streams = [engine.submit([request((n,) * 10, 60, params)]) for n in range(4)]
            answers = await asyncio.gather(*[sampled(stream) for stream in streams])
            for n, answer in enumerate(answers):
                assert answer == expected_tokens((n,) * 10, params, 60)
            assert engine._thread.scheduler.n_preempted > 0

    asyncio.run(scenario())


def test_n_choices_compute_their_prompt_once() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512, n_batch=64)
        async with running(backend) as engine:
            prompt = tuple(range(50))
            params = [SamplingParams(seed=seed, logprobs=0) for seed in range(4)]
            out = await collect(engine.submit([request(prompt, 1, p) for p in params]))
            assert sorted(out) == [0, 1, 2, 3]
            assert backend.rows_computed == 50 + 3
            assert sorted(out[n][-1].usage.cached_tokens for n in out) == [0, 49, 49, 49]

    asyncio.run(scenario())


def test_requests_that_arrive_together_share_a_prefix_that_is_being_computed() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512, n_batch=16)
        async with running(backend, max_running=4) as engine:
            prefix = tuple(range(90))
            streams = [engine.submit([request((*prefix, 100 + n), 1)]) for n in range(4)]
            await asyncio.gather(*[collect(stream) for stream in streams])
            assert backend.rows_computed == 90 + 4

    asyncio.run(scenario())


def test_a_second_turn_computes_only_what_is_new() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with running(backend) as engine:
            prompt = tuple(range(40))
            answer = await sampled(engine.submit([request(prompt, 10, SamplingParams(logprobs=0, ignore_eos=True))]))
            before = backend.rows_computed
            out = await collect(engine.submit([request((*prompt, *answer, 7, 8), 1)]))
            # The last sampled token was never computed, so it is new, too.
            assert backend.rows_computed - before == 3
            assert out[0][-1].usage.cached_tokens == 49

    asyncio.run(scenario())


def test_a_branch_leaves_the_conversation_it_came_from_resident() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_slots=4)
        async with running(backend) as engine:
            long = tuple(range(60))
            await collect(engine.submit([request(long, 1)]))
            await collect(engine.submit([request((*long[:30], 200), 1)]))
            before = backend.rows_computed
            await collect(engine.submit([request((*long, 201), 1)]))
            assert backend.rows_computed - before == 1

    asyncio.run(scenario())


def test_cache_prompt_false_computes_everything() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with running(backend) as engine:
            prompt = tuple(range(40))
            for _ in range(2):
                await collect(engine.submit([request(prompt, 1, cache_prompt=False)]))
            assert backend.rows_computed == 80

    asyncio.run(scenario())


def test_running_answers_keep_their_pace_while_a_prompt_is_read() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512, n_batch=64)
        backend.delay_s = 0.001
        async with running(backend, prefill_chunk=8) as engine:
            params = SamplingParams(temperature=0.0, ignore_eos=True)
            first = engine.submit([request((1, 2, 3), 60, params)])
            await anext(first)
            await collect(engine.submit([request(tuple(range(100)), 1)]))
            mixed = [parts for parts in backend.batches if len(parts) == 2]
            assert len(mixed) >= 100 // 8
            assert all(rows <= 8 for parts in mixed for _, rows in parts)
            first.close()

    asyncio.run(scenario())


def test_the_more_urgent_of_those_that_wait_goes_first() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        backend.delay_s = 0.002
        async with running(backend, max_running=1) as engine:
            order: list[str] = []

            async def client(name: str, priority: int) -> None:
                await collect(engine.submit([request((5, 6, 7), 3, priority=priority)]))
                order.append(name)

            busy = asyncio.create_task(client("busy", 0))
            await asyncio.sleep(0.003)
            await asyncio.gather(busy, client("later", 2), client("usual", 1), client("sooner", 0))
            assert order == ["busy", "sooner", "usual", "later"]

    asyncio.run(scenario())


def test_a_client_that_leaves_frees_its_slot_at_the_next_step() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        backend.delay_s = 0.001
        async with running(backend, max_running=1) as engine:
            endless = SamplingParams(temperature=0.0, ignore_eos=True)
            stream = engine.submit([request((1, 2), 100, endless)])
            await anext(stream)
            stream.close()
            await settle(engine)
            assert len(backend.batches) < 20
            assert not any(sampler.open for sampler in backend.samplers)

    asyncio.run(scenario())


def test_a_queue_that_is_full_refuses_with_a_time_to_come_back() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        backend.delay_s = 0.002
        async with running(backend, max_running=1, queue_max=2) as engine:
            streams = [engine.submit([request((1, 2), 20)]) for _ in range(3)]
            with pytest.raises(QueueFull, match="3 sequences run or wait") as caught:
                engine.submit([request((1, 2), 20)])
            assert caught.value.retry_after_s is not None
            for stream in streams:
                await collect(stream)
            await collect(engine.submit([request((1, 2), 2)]))

    asyncio.run(scenario())


@pytest.mark.parametrize("max_running", [1, 4])
def test_a_deadline_ends_a_request_that_runs_or_waits(max_running: int) -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        backend.delay_s = 0.002
        async with running(backend, max_running=max_running) as engine:
            endless = SamplingParams(temperature=0.0, ignore_eos=True)
            busy = engine.submit([request((9, 9), 100, endless)])
            late = engine.submit([request((1, 2), 100, endless, deadline=time.monotonic() + 0.02)])
            with pytest.raises(DeadlineExceeded):
                await collect(late)
            assert len((await collect(busy))[0]) > 0

    asyncio.run(scenario())


def test_a_failed_batch_fails_only_its_own_sequences() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with running(backend) as engine:
            backend.fail_with = DecodeFailed("boom")
            with pytest.raises(DecodeFailed):
                await collect(engine.submit([request((1, 2, 3), 5)]))
            out = await collect(engine.submit([request((1, 2, 3), 5)]))
            assert out[0][-1].finish is not None
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_rows_that_a_failed_batch_left_behind_are_forgotten() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with running(backend) as engine:
            backend.fail_after_rows = 2
            with pytest.raises(DecodeFailed):
                await collect(engine.submit([request((1, 2, 3), 5)]))
            check_accounting(engine, backend)
            params = SamplingParams(temperature=0.0, logprobs=0)
            for prompt in ((1, 2, 3), (4, 5), (1, 2, 9)):
                tokens = await sampled(engine.submit([request(prompt, 5, params)]))
                assert tokens == without_end(expected_tokens(prompt, params, 5))

    asyncio.run(scenario())


def test_what_could_not_be_sampled_is_computed_anew_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(sampler: FakeSampler, row: int, allowed: np.ndarray | None = None) -> int:
        raise DecodeFailed("not numbers")

    async def scenario() -> None:
        backend, prompt = FakeBackend(), tuple(range(40))
        async with running(backend) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(FakeSampler, "sample", failing)
                with pytest.raises(DecodeFailed):
                    await collect(engine.submit([request(prompt, 5)]))
            out = await collect(engine.submit([request(prompt, 5)]))
            assert out[0][-1].usage.cached_tokens == 0
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_a_dead_engine_is_loud() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        deaths: list[bool] = []
        async with running(backend, on_death=lambda: deaths.append(True)) as engine:
            endless = SamplingParams(temperature=0.0, ignore_eos=True)
            backend.delay_s = 0.001
            streams = [engine.submit([request((n, 2), 100, endless)]) for n in range(6)]
            await anext(streams[0])
            backend.fail_with = ZeroDivisionError("a bug")
            for stream in streams:
                with pytest.raises(EngineDead):
                    await asyncio.wait_for(collect(stream), 5)
            with pytest.raises(EngineDead):
                engine.submit([request((1,), 1)])
            assert deaths == [True]

    asyncio.run(scenario())


def test_what_ended_in_the_step_that_the_engine_died_of_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = FakeSampler.sample

    async def scenario() -> None:
        rows: list[int] = []

        def second_fails(sampler: FakeSampler, row: int, allowed: np.ndarray | None = None) -> int:
            rows.append(row)
            if len(rows) > 1:
                raise ZeroDivisionError("a bug")
            return sample(sampler, row, allowed)

        monkeypatch.setattr(FakeSampler, "sample", second_fails)
        async with running(FakeBackend()) as engine:
            stream = engine.submit([request((1, 2), 1), request((3, 4), 5)])
            with pytest.raises(EngineDead):
                await collect(stream)
            await asyncio.sleep(0.05)
            assert engine.n_open == 0

    asyncio.run(scenario())


def test_stopping_ends_open_streams_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        backend.delay_s = 0.001
        async with running(backend) as engine:
            endless = SamplingParams(temperature=0.0, ignore_eos=True)
            stream = engine.submit([request((1, 2), 100, endless)])
            await anext(stream)
            await engine.stop()
            with pytest.raises(Draining):
                await collect(stream)
            with pytest.raises(Draining):
                engine.submit([request((1,), 1)])

    asyncio.run(scenario())


def test_max_tokens_zero_reads_the_prompt_and_says_length() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with running(backend) as engine:
            (delta,) = (await collect(engine.submit([request((1, 2, 3), 0)])))[0]
            assert (delta.text, delta.finish) == ("", FinishReason.LENGTH)
            assert delta.usage.completion_tokens == 0
            assert backend.rows_computed == 3

    asyncio.run(scenario())


def test_prompt_logprobs_cover_every_prompt_token_also_after_preemption() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=128, n_outputs=6)
        async with running(backend, answer_reserve=1) as engine:
            params = SamplingParams(temperature=0.0, logprobs=2)
            prompt = tuple(range(60))
            streams = [
                engine.submit([request(prompt, 4, params, prompt_logprobs=True)]),
                engine.submit([request((9, 9), 60, SamplingParams(temperature=0.0, ignore_eos=True))]),
                engine.submit([request(prompt, 4, params, prompt_logprobs=True)]),
            ]
            a, _, b = await asyncio.gather(*[collect(stream) for stream in streams])
            for out in (a, b):
                entries = [entry for delta in out[0] for entry in delta.prompt_logprobs]
                assert [entry.token for entry in entries] == list(prompt)
                assert entries[0].logprob is None
                assert all(entry.logprob is not None and len(entry.top) == 2 for entry in entries[1:])

    asyncio.run(scenario())


def test_a_slow_reader_gets_everything_in_fewer_deltas() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with running(backend) as engine:
            params = SamplingParams(temperature=0.0, ignore_eos=True, logprobs=0)
            stream = engine.submit([request((1, 2), 50, params)])
            await asyncio.sleep(0.1)
            out = (await collect(stream))[0]
            assert len(out) == 1
            assert [entry.token for entry in out[0].logprobs] == expected_tokens((1, 2), params, 50)

    asyncio.run(scenario())


def test_progress_is_reported_for_each_piece_of_a_prompt() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_batch=16)
        async with running(backend) as engine:
            out = await collect(engine.submit([request(tuple(range(40)), 1, report_progress=True)]))
            reported = [delta.progress for delta in out[0] if delta.progress is not None]
            assert reported
            assert reported[-1].total == 40

    asyncio.run(scenario())


def test_an_idle_sequence_is_parked_and_comes_back_without_being_computed() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512)
        host = HostCache(100_000)
        async with running(backend, host=host, park_after=5) as engine:
            first, other = tuple(range(80)), tuple(range(100, 110))
            await collect(engine.submit([request(first, 1)]))
            await collect(engine.submit([request(other, 20, SamplingParams(ignore_eos=True))]))
            assert len(host) == 1
            assert backend.n_used <= 30 + 20, "its cells are free"
            before = backend.rows_computed
            out = await collect(engine.submit([request((*first, 7), 1)]))
            assert backend.rows_computed - before == 1
            assert out[0][-1].usage.cached_tokens == 80
            assert len(host) == 0
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_what_is_evicted_for_want_of_cells_comes_back() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=150)
        async with running(backend, host=HostCache(100_000)) as engine:
            prompts = [tuple(range(n, n + 90)) for n in (0, 100)]
            for prompt in prompts:
                await collect(engine.submit([request(prompt, 1)]))
            before = backend.rows_computed
            for prompt in prompts * 2:
                out = await collect(engine.submit([request((*prompt, 1), 1)]))
                assert out[0][-1].usage.cached_tokens >= 90
            assert backend.rows_computed - before <= 8
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_a_hot_prefix_stays_resident() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512, n_slots=8)
        host = HostCache(100_000)
        async with running(backend, host=host, park_after=4) as engine:
            system = tuple(range(60))
            for n in range(12):
                await collect(engine.submit([request((*system, 200 + n), 3, SamplingParams(ignore_eos=True))]))
            assert engine._thread.scheduler.cache.parking.n_restored == 0
            assert backend.rows_computed == 60 + 12 * 3

    asyncio.run(scenario())


def test_the_host_cache_keeps_its_limit_and_what_was_used_last() -> None:
    host = HostCache(100)
    sequences = [np.arange(n, n + 9, dtype=np.int32) for n in (0, 100, 200)]
    for tokens in sequences:
        host.put(tokens, bytearray(45))
        assert host.refresh(sequences[0])
    assert (len(host), host.n_bytes) == (2, 90)
    assert host.match(sequences[0])[1] == 9
    assert host.match(sequences[1])[1] == 0
    host.put(np.arange(20, dtype=np.int32), bytearray(50))
    assert (len(host), host.n_bytes) == (2, 95), "a longer one supersedes its beginning"
    host.put(sequences[1], bytearray(101))
    assert host.n_bytes <= 100


def test_what_cannot_be_loaded_is_computed_and_not_tried_again() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512)
        backend.fail_load = True
        host = HostCache(100_000)
        async with running(backend, host=host) as engine:
            prompt = tuple(range(80))
            host.put(np.array([*prompt, 1, 2, 3], np.int32), bytearray(np.array([*prompt, 1, 2, 3], np.int32)))
            out = await collect(engine.submit([request((*prompt, 7), 1)]))
            assert out[0][-1].usage.cached_tokens == 0
            assert len(host) == 0
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_at_debug_level_the_log_says_where_the_time_of_a_step_goes(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(FakeBackend()) as engine:
            await collect(engine.submit([request((1, 2, 3), 5)]))

    caplog.set_level("INFO")
    asyncio.run(scenario())
    assert "decode" not in caplog.text
    caplog.set_level("DEBUG", "llm_local.engine.stats")
    asyncio.run(scenario())
    assert "1 steps: 3.0 rows, 1.00 tokens (0 refused)" in caplog.text


def test_what_is_resident_behind_a_long_prompt_that_is_gone_is_moved_to_the_front() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=2048, n_batch=256)
        async with running(backend, host=HostCache(100_000), park_after=1, window=1500) as engine:
            system, long = tuple(range(60)), tuple(n % 250 for n in range(7, 1300))
            await collect(engine.submit([request((*system, 1), 2)]))
            cache = engine._thread.scheduler.cache
            await collect(engine.submit([request(long, 8, SamplingParams(ignore_eos=True))]))
            await collect(engine.submit([request((*system, 2), 8, SamplingParams(ignore_eos=True))]))
            before, parked = backend.rows_computed, cache.parking.n_parked
            out = await collect(engine.submit([request((*system, 3), 1)]))
            assert cache.parking.n_parked > parked
            assert cache.cells.peak < 200, "the cells of the long prompt are no longer walked over"
            assert out[0][-1].usage.cached_tokens >= 60
            assert backend.rows_computed - before == 1, "and nothing was computed again"
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_without_a_place_to_move_it_to_a_shared_prefix_stays_where_it_is() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_ctx=2048, n_batch=256)
        async with running(backend, park_after=1, window=1500) as engine:
            system = tuple(range(60))
            await collect(engine.submit([request((*system, 1), 2)]))
            await collect(engine.submit([request(tuple(n % 250 for n in range(7, 1300)), 2, cache_prompt=False)]))
            engine._thread.scheduler.cache.cells.peak = 10**6
            out = await collect(engine.submit([request((*system, 2), 2)]))
            assert out[0][-1].usage.cached_tokens == 60

    asyncio.run(scenario())
