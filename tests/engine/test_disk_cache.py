"""The disk tier under the engine on the fake backend: what goes there, what comes back, what is never used."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_local.engine import disk_cache, disk_file, disk_worker, engine_thread, host_cache
from llm_local.engine.disk_cache import DiskCache
from llm_local.engine.disk_worker import Report
from llm_local.engine.engine import Engine
from llm_local.engine.host_cache import HostCache
from llm_local.engine.pins import Pins
from llm_local.engine.rates import Rates
from llm_local.engine.types import SamplingParams
from llm_local.engine.warm import warm
from llm_local.errors import DeadlineExceeded, StartupError
from tests.engine.test_engine import check_accounting, collect, request, running, sampled, without_end
from tests.examples import seeds
from tests.fakes import FakeBackend, expected_tokens

KEY = '{"model": "a"}'
GREEDY = SamplingParams(temperature=0.0, logprobs=0)


@pytest.fixture(autouse=True)
def a_model_that_computes_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake computes faster than any disk reads, and its sequences are short."""
    monkeypatch.setattr(disk_cache, "WORTH_STORING", 40)
    monkeypatch.setattr(disk_cache, "READ_AGAIN_S", 0.0)
    monkeypatch.setattr(engine_thread, "PROMPT_ROWS", 10**9)


def prompt_of(n: int, length: int = 80) -> tuple[int, ...]:
    return tuple(np.random.default_rng(n).integers(0, 256, length).tolist())


def array(tokens: tuple[int, ...]) -> np.ndarray:
    return np.array(tokens, np.int32)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kv"))


def put(folder: Path, tokens: tuple[int, ...], key: str = KEY) -> Path:
    """Write an entry as the fake backend saves it."""
    path = folder / disk_file.file_name(key, array(tokens))
    disk_file.write(path, key, array(tokens), bytearray(array(tokens).tobytes()))
    return path


def ask(folder: Path, prompt: tuple[int, ...], **options: object) -> tuple[int, int, DiskCache]:
    """Send one request to a fresh engine; return its cached tokens, the rows computed, and the disk tier."""
    disk = DiskCache.open(folder, KEY, 10**6)

    async def scenario() -> tuple[int, int]:
        backend = FakeBackend(n_ctx=512)
        async with running(backend, host=HostCache(100_000, disk), **options) as engine:
            out = await collect(engine.submit([request(prompt, 4, GREEDY)]))
            tokens = [entry.token for delta in out[0] for entry in delta.logprobs]
            assert tokens == without_end(expected_tokens(prompt, GREEDY, 4))
            check_accounting(engine, backend)
            return out[0][-1].usage.cached_tokens, backend.rows_computed

    cached, n_rows = asyncio.run(scenario())
    return cached, n_rows, disk


def test_what_was_parked_is_there_again_after_a_restart(tmp_path: Path) -> None:
    prompt = prompt_of(1)
    assert ask(tmp_path, prompt)[0] == 0
    assert len(files(tmp_path)) == 1
    cached, n_rows, disk = ask(tmp_path, (*prompt, 7, 8))
    assert cached == 80
    assert n_rows <= 2 + 4
    assert disk.n_read == 1


def test_an_entry_that_is_longer_than_sequences_may_be_now_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    prompt = prompt_of(1, length=100)
    ask(tmp_path, prompt)
    cached, _, disk = ask(tmp_path, (*prompt[:60], 7, 8), window=70)
    assert (cached, disk.n_read) == (60, 1)


def test_short_sequences_are_not_written(tmp_path: Path) -> None:
    ask(tmp_path, prompt_of(1, length=30))
    assert files(tmp_path) == []


def test_what_the_host_tier_drops_goes_to_the_disk_and_comes_back_from_there(tmp_path: Path) -> None:
    disk = DiskCache.open(tmp_path, KEY, 10**6)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=150)
        host = HostCache(400, disk)
        async with running(backend, host=host) as engine:
            for n in range(4):
                await collect(engine.submit([request(prompt_of(n), 1)]))
            while disk.n_written < 2:
                await collect(engine.submit([request((1, 2), 1)]))
                await asyncio.sleep(0.005)
            out = await collect(engine.submit([request((*prompt_of(0), 5), 1)]))
            assert out[0][-1].usage.cached_tokens == 80
            assert disk.n_read == 1
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_others_go_on_while_a_sequence_waits_for_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, gate, real = prompt_of(1), threading.Event(), disk_file.read
    put(tmp_path, prompt)

    def slow(path: Path, key: str) -> object:
        assert gate.wait(5)
        return real(path, key)

    monkeypatch.setattr(disk_file, "read", slow)
    disk = DiskCache.open(tmp_path, KEY, 10**6)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512)
        async with running(backend, max_running=1, host=HostCache(10**5, disk)) as engine:
            waits = asyncio.create_task(collect(engine.submit([request((*prompt, 1), 1)])))
            await asyncio.sleep(0.05)
            n_steps = engine.stats.steps
            other = await asyncio.wait_for(sampled(engine.submit([request((3, 4), 5, GREEDY)])), 2)
            assert other == without_end(expected_tokens((3, 4), GREEDY, 5))
            assert n_steps == 0, "and nothing is computed meanwhile"
            late = request((*prompt, 2), 1, deadline=time.monotonic() + 0.05)
            with pytest.raises(DeadlineExceeded):
                await collect(engine.submit([late]))
            assert not waits.done()
            gate.set()
            out = await asyncio.wait_for(waits, 2)
            assert out[0][-1].usage.cached_tokens == 80

    asyncio.run(scenario())


def test_the_engine_thread_sleeps_while_all_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, real = prompt_of(1), disk_file.read
    put(tmp_path, prompt)
    monkeypatch.setattr(disk_file, "read", lambda path, key: (time.sleep(0.15), real(path, key))[1])
    disk = DiskCache.open(tmp_path, KEY, 10**6)

    async def scenario() -> None:
        async with running(FakeBackend(n_ctx=512), host=HostCache(10**5, disk)) as engine:
            looks = []
            drain = engine._thread._drain_inbox
            engine._thread._drain_inbox = lambda: (looks.append(1), drain())[1]  # type: ignore[method-assign]
            await collect(engine.submit([request((*prompt, 1), 1)]))
            assert len(looks) < 40

    asyncio.run(scenario())


def test_entries_that_push_each_other_out_of_the_host_tier_do_not_do_so_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "READ_AGAIN_S", 1.0)
    monkeypatch.setattr(HostCache, "put", lambda *_: None)
    put(tmp_path, prompt_of(1))
    cached, _, disk = ask(tmp_path, (*prompt_of(1), 7))
    assert (cached, disk.n_read) == (0, 1)


def test_who_waits_too_long_for_the_disk_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, prompt_of(1))
    real = disk_file.read
    monkeypatch.setattr(disk_cache, "READ_TIMEOUT_S", 0.03)
    monkeypatch.setattr(disk_file, "read", lambda path, key: (time.sleep(0.15), real(path, key))[1])
    assert ask(tmp_path, (*prompt_of(1), 7))[0] == 0


@pytest.mark.parametrize("at", ["first byte of the data", "last byte", "cut", "header"])
def test_a_damaged_entry_is_removed_with_one_warning_and_never_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    prompt = prompt_of(1)
    path = put(tmp_path, prompt)
    whole = path.read_bytes()
    place = {"first byte of the data": len(whole) - 32 - 320, "last byte": len(whole) - 1, "header": 60}.get(at, 0)
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    path.write_bytes(whole[:-40] if at == "cut" else changed)
    cached, _, disk = ask(tmp_path, (*prompt, 7))
    assert cached == 0
    assert len([record for record in caplog.records if "damaged" in record.message]) == 1
    assert disk.n_read == 0
    assert path not in files(tmp_path)


def test_a_foreign_entry_is_left_alone_with_one_warning_and_never_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = prompt_of(1)
    theirs = [put(tmp_path, prompt, key=f'{{"model": "{name}"}}') for name in "bc"]
    (tmp_path / "notes.txt").write_text("not ours at all")
    assert ask(tmp_path, (*prompt, 7))[0] == 0
    assert [record.message for record in caplog.records if "left alone" in record.message] == [
        f"2 files of other models or settings in {tmp_path} are left alone"
    ]
    assert all(path.exists() for path in theirs)
    assert (tmp_path / "notes.txt").exists()


def test_what_llama_cpp_refuses_to_load_is_removed_and_not_tried_again(tmp_path: Path) -> None:
    prompt = prompt_of(1)
    path = put(tmp_path, prompt)
    disk = DiskCache.open(tmp_path, KEY, 10**6)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512)
        backend.fail_load = True
        async with running(backend, host=HostCache(10**5, disk)) as engine:
            out = await collect(engine.submit([request((*prompt, 7), 1)]))
            assert out[0][-1].usage.cached_tokens == 0
            assert len(disk) == 0
            check_accounting(engine, backend)

    asyncio.run(scenario())
    assert path not in files(tmp_path)


def test_a_folder_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(StartupError, match=r"disk_cache_dir is .*cannot be read and written") as caught:
            DiskCache.open(folder, KEY, 10**6)
        assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_at_the_start_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tier = Tier(tmp_path, 10**6)
    tier.store(prompt_of(1))
    tier.disk.close()

    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_cache.tempfile, "NamedTemporaryFile", full)
    with caplog.at_level(logging.WARNING):
        again = Tier(tmp_path, 10**6)
    assert f"the disk of {tmp_path} is full" in caplog.text
    assert again.has(prompt_of(1))
    again.disk.close()


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    tier = Tier(tmp_path / "cache", 10**6)
    tier.store(prompt_of(1))
    shutil.rmtree(tmp_path / "cache")
    tier.store(prompt_of(2))
    assert len(files(tmp_path / "cache")) == 1
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    tier.disk.close()


def test_no_two_writers_have_the_same_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = os.open

    def noting(path: Any, *given: Any, **more: Any) -> int:
        opened.append(str(path))
        return really(path, *given, **more)

    monkeypatch.setattr(disk_file.os, "open", noting)
    for _ in range(2):
        disk_file.write(tmp_path / "same.kv", KEY, array(prompt_of(1)), bytearray(10))
    temporary = [path for path in opened if path.endswith(".tmp")]
    assert len(set(temporary)) == 2


def test_nothing_goes_for_what_cannot_be_written_beside_what_is_being_written(tmp_path: Path) -> None:
    size = disk_file.file_bytes(KEY, 80, 1000)
    tier = Tier(tmp_path, 3 * size)
    tier.store(prompt_of(1))
    # As at shutdown, where nobody takes in that the second one is written.
    tier.disk.store(array(prompt_of(2)), bytearray(1000))
    tier.disk.store(array(prompt_of(3)), bytearray(1000 + 2 * size))
    assert tier.has(prompt_of(1))
    tier.disk.close()


def test_what_the_host_tier_could_not_take_back_is_not_written(tmp_path: Path) -> None:
    disk = DiskCache.open(tmp_path, KEY, 10**6)
    host = HostCache(400, disk)
    assert host.wants_stored(array(prompt_of(1)), 399)
    assert not host.wants_stored(array(prompt_of(1)), 400)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=512)
        async with running(backend, host=host) as engine:
            await collect(engine.submit([request(prompt_of(1, length=90), 1)]))
            await collect(engine.submit([request(prompt_of(2, length=110), 1)]))

    asyncio.run(scenario())
    assert len(files(tmp_path)) == 1


def test_a_disk_that_is_full_turns_the_tier_off_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    disk = DiskCache.open(tmp_path, KEY, 10**6)
    monkeypatch.setattr(disk_file.os, "fsync", full)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=150)
        async with running(backend, host=HostCache(400, disk)) as engine:
            for n in range(8):
                tokens = await sampled(engine.submit([request(prompt_of(n), 3, GREEDY)]))
                assert tokens == without_end(expected_tokens(prompt_of(n), GREEDY, 3))
            while not disk.off or disk._writing:
                await collect(engine.submit([request((1, 2), 1)]))

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.message for record in caplog.records if "off from now on" in record.message] == [
        f"the disk cache in {tmp_path} is off from now on: No space left on device"
    ]
    assert list(tmp_path.iterdir()) == []
    assert disk.n_bytes == 0


class Tier:
    """A disk tier whose worker is waited for after each step."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.disk = DiskCache.open(folder, KEY, max_bytes)
        self.reports: list[Report] = []
        self.pins = Pins()
        self.disk.connect(self.reports.append, self.pins)
        self.rates = Rates()

    def settle(self) -> list[tuple[np.ndarray, bytearray]]:
        done = threading.Event()
        self.disk.worker._add(disk_worker.WRITE, done.set)
        assert done.wait(5)
        got = [self.disk.take(report, self.rates) for report in self.reports]
        self.reports.clear()
        return [entry for entry in got if entry is not None]

    def store(self, tokens: tuple[int, ...], n_bytes: int = 1000) -> None:
        self.disk.store(array(tokens), bytearray(n_bytes))
        self.settle()

    def has(self, tokens: tuple[int, ...]) -> bool:
        asked = self.disk.fetch(array(tokens), 0, self.rates, 10**6)
        return asked and len(self.settle()) == 1


def test_the_limit_is_kept_and_the_least_recently_used_goes_also_after_a_restart(tmp_path: Path) -> None:
    size = disk_file.file_bytes(KEY, 80, 1000)
    tier = Tier(tmp_path, 3 * size)
    for n in range(3):
        tier.store(prompt_of(n))
        os.utime(tmp_path / disk_file.file_name(KEY, array(prompt_of(n))), (1000 + n, 1000 + n))
    assert tier.has(prompt_of(0))
    tier.store(prompt_of(3))
    assert [tier.has(prompt_of(n)) for n in range(4)] == [True, False, True, True]
    assert tier.disk.n_bytes == 3 * size == sum(path.stat().st_size for path in files(tmp_path))
    tier.disk.close()
    for at, n in enumerate((3, 0, 2)):
        os.utime(tmp_path / disk_file.file_name(KEY, array(prompt_of(n))), (2000 + at, 2000 + at))
    smaller = Tier(tmp_path, 2 * size)
    assert len(files(tmp_path)) == 2, "a lower limit is kept from the start"
    assert [smaller.has(prompt_of(n)) for n in (3, 0, 2)] == [False, True, True]
    smaller.disk.close()


def test_using_an_entry_is_noted_on_its_file(tmp_path: Path) -> None:
    path = put(tmp_path, prompt_of(0))
    os.utime(path, (1000, 1000))
    tier = Tier(tmp_path, 10**6)
    assert tier.has(prompt_of(0))
    assert path.stat().st_mtime > 1e9
    os.utime(path, (1000, 1000))
    tier.store(prompt_of(0))
    tier.settle()
    assert path.stat().st_mtime > 1e9, "also by who would have written it again"
    tier.disk.close()


def test_a_longer_sequence_takes_the_place_of_its_beginning_but_not_of_a_pinned_one(tmp_path: Path) -> None:
    tier = Tier(tmp_path, 10**6)
    long = prompt_of(0)
    tier.pins.add(array(long[:50]))
    for n in (50, 60, 80, 70):
        tier.store(long[:n])
    tier.settle()
    lengths = sorted(len(disk_file.read_tokens(path, KEY)[0]) for path in files(tmp_path))
    assert lengths == [50, 80]
    tier.disk.close()


def test_short_ones_are_not_written_when_the_host_tier_drops_them(tmp_path: Path) -> None:
    tier = Tier(tmp_path, 10**6)
    tier.store(prompt_of(0, length=39))
    tier.store(prompt_of(1, length=40))
    assert [len(disk_file.read_tokens(path, KEY)[0]) for path in files(tmp_path)] == [40]
    tier.disk.close()


def test_a_file_that_changed_or_vanished_after_the_start_is_answered_for_at_once_and_forgotten(tmp_path: Path) -> None:
    paths = [put(tmp_path, prompt_of(n)) for n in range(3)]
    tier = Tier(tmp_path, 10**6)
    paths[0].write_bytes(paths[1].read_bytes())
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"x")
    paths[2].unlink()
    for n in range(3):
        assert tier.disk.fetch(array(prompt_of(n)), 0, tier.rates, 10**6)
        assert tier.settle() == []
        assert len(tier.disk) == 2 - n
    assert files(tmp_path) == []
    tier.disk.close()


def test_pinned_entries_go_last(tmp_path: Path) -> None:
    tier = Tier(tmp_path, 2 * disk_file.file_bytes(KEY, 80, 1000))
    tier.pins.add(array(prompt_of(0)))
    for n in range(5):
        tier.store(prompt_of(n))
    assert [tier.has(prompt_of(n)) for n in range(5)] == [True, False, False, False, True]
    tier.disk.close()


def test_an_entry_is_read_only_if_that_beats_computing_as_both_were_measured(tmp_path: Path) -> None:
    tier = Tier(tmp_path, 10**6)
    tier.store(prompt_of(0))
    tier.rates.computed.add(1000, 1.0)
    tier.rates.read.add(1000, 1.0)
    assert not tier.has(prompt_of(0)), "a second for its bytes, 0.08 to compute it"
    tier.rates.read.add(10**9, 1.0)
    assert tier.has(prompt_of(0))
    tier.rates.computed.add(10**9, 1.0)
    assert not tier.has(prompt_of(0))
    tier.disk.close()


def test_an_entry_that_the_tier_above_cannot_hold_is_not_asked_for(tmp_path: Path) -> None:
    put(tmp_path, prompt_of(1))
    tier = Tier(tmp_path, 10**6)
    assert not tier.disk.fetch(array(prompt_of(1)), 0, tier.rates, 100)
    tier.disk.close()


def test_files_that_a_writer_left_half_written_are_removed_when_they_are_old(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.kv.12.tmp", tmp_path / ".b.kv.13.tmp"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    DiskCache.open(tmp_path, KEY, 10**6)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_at_the_stop_large_ones_wait_for_room_among_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "MAX_UNWRITTEN_BYTES", 25_600)
    monkeypatch.setattr(host_cache, "MAX_UNWRITTEN_BYTES", 25_600)
    write = disk_file.write

    def slowly(*args: Any) -> None:
        time.sleep(0.02)
        write(*args)

    monkeypatch.setattr(disk_file, "write", slowly)
    host = HostCache(10**6, DiskCache.open(tmp_path, KEY, 10**6))
    host.connect(lambda report: None, Pins())
    for n, size in enumerate((17_000, 9_000, 17_000, 9_000)):
        host.put(array(prompt_of(n)), bytearray(size))
    host.close(keep=True)
    assert len(files(tmp_path)) == 4


def test_nothing_is_written_after_the_engine_died(tmp_path: Path) -> None:
    disk = DiskCache.open(tmp_path, KEY, 10**6)

    async def scenario() -> None:
        backend, host = FakeBackend(n_ctx=512), HostCache(10**5, disk)
        async with running(backend, host=host) as engine:
            await collect(engine.submit([request(prompt_of(1), 1)]))
            host.put(array(prompt_of(2)), bytearray(320))
            backend.fail_with = ZeroDivisionError("a bug")
            with pytest.raises(Exception, match="internal error"):
                await collect(engine.submit([request((1, 2), 1)]))

    asyncio.run(scenario())
    assert files(tmp_path) == []


def test_warm_prefixes_are_on_the_disk_at_once_and_resident_whatever_comes(tmp_path: Path) -> None:
    disk = DiskCache.open(tmp_path, KEY, 10**6)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=250)
        async with running(backend, host=HostCache(400, disk)) as engine:
            await warm(engine, [array(prompt_of(1))])
            await engine_is_idle(engine)
            assert not disk.wants(array(prompt_of(1)))
            for n in range(2, 12):
                await collect(engine.submit([request(prompt_of(n, length=90), 1)]))
            assert engine._thread.scheduler.cache.match(array(prompt_of(1)))[1] == 80

    asyncio.run(scenario())


async def engine_is_idle(engine: Engine) -> None:
    while engine._thread.scheduler.running or engine._thread.scheduler.waiting:
        await asyncio.sleep(0.001)


def test_warm_prefixes_are_computed_once_and_come_from_the_disk_the_next_time(tmp_path: Path) -> None:
    prefixes = [array(prompt_of(1)), array((*prompt_of(1)[:40], *prompt_of(2)[:50]))]

    async def scenario(disk: DiskCache) -> int:
        backend = FakeBackend(n_ctx=512)
        async with running(backend, host=HostCache(10**5, disk)) as engine:
            await warm(engine, prefixes)
            n_rows = backend.rows_computed
            for prefix in prefixes:
                out = await collect(engine.submit([request((*prefix.tolist(), 1, 2), 1)]))
                assert out[0][-1].usage.cached_tokens == len(prefix)
            return n_rows

    first = DiskCache.open(tmp_path, KEY, 10**6)
    assert asyncio.run(scenario(first)) == 80 + 50 + 2
    second = DiskCache.open(tmp_path, KEY, 10**6)
    assert asyncio.run(scenario(second)) == 2, "one token after each is always computed"
    assert second.n_read >= 1


@pytest.mark.parametrize("seed", seeds(6))
def test_cached_tokens_are_exactly_those_that_were_not_computed_whatever_tier_they_came_from(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = np.random.default_rng(seed)
    monkeypatch.setattr(engine_thread, "WAIT_FOR_DISK_S", 0.001)
    disk = DiskCache.open(tmp_path, KEY, 4000)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=200, n_slots=4)
        host = HostCache(700, disk)
        async with running(backend, host=host, park_after=[None, 3][seed % 2]) as engine:
            if seed % 3 == 0:
                await warm(engine, [array(prompt_of(0))])
            for _ in range(80):
                begun = prompt_of(int(choose.integers(0, 7)))[: int(choose.integers(1, 81))]
                prompt = (*begun, *choose.integers(0, 256, int(choose.integers(1, 10))).tolist())
                before = backend.rows_computed
                out = await collect(engine.submit([request(prompt, int(choose.integers(1, 6)), GREEDY)]))
                usage = out[0][-1].usage
                # The last token that is sampled is not computed any more.
                rows = len(prompt) - usage.cached_tokens + usage.completion_tokens - 1
                assert backend.rows_computed - before == rows
                while disk._writing:
                    await asyncio.sleep(0.001)
            assert engine._thread.scheduler.cache.parking.n_restored > 0
            assert disk.n_read > 0
            check_accounting(engine, backend)

    asyncio.run(scenario())
