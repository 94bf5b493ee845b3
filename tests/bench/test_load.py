"""Clients that wait, arrivals that do not, and requests that meet."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from llm_local.bench import load as load_module
from llm_local.bench import scenes
from llm_local.bench.client import Answer, Client, Request
from llm_local.bench.load import Site, arrival_times, closed_loop, open_loop, waves
from llm_local.bench.options import Options, Server
from llm_local.bench.prompts import Scale
from llm_local.bench.result import ALL, Round, summarize
from llm_local.bench.scenes import ARRIVING, LOAD, RUNNING, backchannel, interrupt
from llm_local.bench.workloads import Session, multi_turn
from llm_local.bench.writer import Place, Writer
from tests.bench.server import Behave, Peer, peer, well

SERVER = Server("tiny", "")


def one(number: int = 0, n: int = 2) -> Session:
    messages = [{"role": "user", "content": f"{number}"}]
    yield Request({"messages": messages, "max_tokens": n, "stream": True})


def load(work: Callable[[Site], Coroutine[Any, Any, None]], behave: Behave = well) -> tuple[Round, Site]:
    async def main() -> tuple[Round, Site]:
        async with peer(behave) as url:
            site = Site(Client(url, timeout_s=2))
            began = time.perf_counter()
            await work(site)
            result = summarize(SERVER, site.answers, time.perf_counter() - began)
            site.client.close()
            return result, site

    return asyncio.run(main())


def writer(**options: Any) -> Writer:
    return Writer(Options(servers=(SERVER,), **options), Scale(), {}, {})


def place(client: int, turn: int) -> Place:
    return Place("test", "tiny", "", 0, client, turn)


def test_each_client_of_the_closed_loop_plays_its_sessions_one_after_the_other() -> None:
    running: dict[str, int] = {}
    most = []

    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        client = body["messages"][0]["content"]
        running[client] = running.get(client, 0) + 1
        most.append((running[client], sum(running.values())))
        await asyncio.sleep(0.002)
        await well(peer, path, body)
        running[client] -= 1

    result, _ = load(lambda site: closed_loop(site, lambda c, _: one(c), 3, requests=4, seconds=None), behave)
    assert result.n_answers == 12
    assert max(of_one for of_one, _ in most) == 1
    assert max(of_all for _, of_all in most) == 3


def test_a_round_by_seconds_ends() -> None:
    began = time.perf_counter()
    result, _ = load(lambda site: closed_loop(site, lambda c, _: one(c), 2, requests=1, seconds=0.05))
    assert result.n_answers > 4
    assert time.perf_counter() - began < 1


def test_a_server_that_refuses_at_once_is_not_hammered() -> None:
    async def refuses(peer: Peer, path: str, body: dict[str, Any]) -> None:
        await peer.answer(503, {"error": {"code": "draining"}})

    result, _ = load(lambda site: closed_loop(site, lambda c, _: one(c), 2, requests=1, seconds=0.15), refuses)
    assert result.errors == {"http 503 draining": result.n_answers}
    assert result.n_answers <= 4


def test_a_round_in_which_all_failed_is_a_zero_and_not_left_out() -> None:
    async def breaks(peer: Peer, path: str, body: dict[str, Any]) -> None:
        await peer.answer(500, {})

    result, _ = load(lambda site: closed_loop(site, lambda *_: one(), 1, requests=2, seconds=None), breaks)
    figures = result.groups[""]
    assert (figures["tok_s"], figures["requests_s"]) == (0.0, 0.0)
    assert math.isnan(figures["inputs_s"])
    assert math.isnan(figures["ttft_p50_ms"])
    vectors = Request({"input": ["a"]}, "/embeddings")
    failed, fine = Answer(end_s=1.0, error="http 500"), Answer(end_s=1.0, n_inputs=1)
    figures = summarize(SERVER, [(vectors, failed)], 1.0).groups[""]
    assert figures["inputs_s"] == 0.0
    assert math.isnan(figures["tok_s"])
    assert summarize(SERVER, [(vectors, failed), (vectors, fine)], 1.0).groups[""]["inputs_s"] == 1.0


def test_only_those_that_were_to_leave_count_as_left() -> None:
    given_up, left = Answer(), Answer(leave_after=3)
    result = summarize(SERVER, [(Request({"stream": True}), answer) for answer in (given_up, left)], 1.0)
    assert (result.n_left, result.n_answers) == (1, 0)


def test_the_speeds_of_answers_have_percentiles() -> None:
    answers = [Answer(end_s=9.0, first_s=1.0, chunk_times=[1.0, 2.0], output_tokens=n + 1) for n in range(1, 12)]
    request = Request({"stream": True})
    result = summarize(SERVER, [(request, answer) for answer in answers], 10.0)
    assert [result.groups[""][f"answer_tok_s_p{p}"] for p in (10, 50, 90)] == [2.0, 6.0, 10.0]
    assert [sample["tok_s"] for sample in result.samples] == [float(n) for n in range(1, 12)]


def test_what_is_measured_beside_a_load_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "MAX_PAUSE_S", 0.001)
    monkeypatch.setattr(scenes, "N_RUNNING", 100)

    async def work(site: Site) -> None:
        site.leave = 1.0
        write = writer(max_tokens=200, prompt_tokens=10)
        await interrupt(site, write, place, 1, 2)
        await backchannel(site, write, place, 1, 2)

    _, site = load(work)
    assert {answer.group for _, answer in site.answers if answer.leave_after is not None} == {RUNNING, LOAD}
    answered = {answer.group for _, answer in site.answers if answer.end_s and not answer.error}
    assert answered >= {ARRIVING, "with priority", "without"}


def test_waves_wait_for_each_other() -> None:
    running: set[int] = set()
    together: list[set[int]] = []

    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        number = int(body["messages"][0]["content"])
        running.add(number)
        together.append(set(running))
        await asyncio.sleep(0.002 * (1 + number % 3))
        await well(peer, path, body)
        running.remove(number)

    load(lambda site: waves(site, lambda client, turn: one(10 * turn + client), 3, requests=3), behave)
    assert {10, 11, 12} in together
    assert all(len({number // 10 for number in numbers}) == 1 for numbers in together)


def test_arrivals_are_poisson_and_the_same_for_the_same_seed() -> None:
    times = arrival_times(5.0, Random("a"), requests=4000, seconds=None)
    gaps = [late - early for early, late in zip([0.0, *times], times, strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 5, rel=0.05)
    # An exponential distribution has a deviation as large as its mean, and 1 - 1/e of it lies below the mean.
    assert statistics.pstdev(gaps) == pytest.approx(1 / 5, rel=0.08)
    assert sum(gap < 1 / 5 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.03)
    assert times == arrival_times(5.0, Random("a"), requests=4000, seconds=None)
    assert times != arrival_times(5.0, Random("b"), requests=4000, seconds=None)
    assert all(time < 3 for time in arrival_times(5.0, Random("a"), requests=1, seconds=3.0))


def test_a_stalling_server_cannot_hide_from_the_open_loop() -> None:
    """One stall of 0.2 s while ten requests arrive: a client that waits sees it once, arrivals all see it."""
    opened = 0.0
    lock = asyncio.Lock()

    async def stalls(peer: Peer, path: str, body: dict[str, Any]) -> None:
        nonlocal opened
        async with lock:
            opened = opened or time.perf_counter() + 0.2
            await asyncio.sleep(opened - time.perf_counter())
            await well(peer, path, body)

    arrivals = [0.02 * number for number in range(10)]
    open_round, _ = load(lambda site: open_loop(site, lambda n, _: one(n), arrivals), stalls)
    opened = 0.0
    closed_round, _ = load(lambda site: closed_loop(site, lambda n, _: one(n), 1, requests=10, seconds=None), stalls)
    waited = sorted(sample["e2e_s"] for sample in open_round.samples)
    # The request that was due at t waited 0.2 - t.
    assert waited[4] >= 0.07
    assert sorted(sample["e2e_s"] for sample in closed_round.samples)[4] < waited[4] / 2


def test_a_client_that_is_late_counts_from_the_scheduled_arrival() -> None:
    async def late(site: Site) -> None:
        task = asyncio.ensure_future(open_loop(site, lambda n, _: one(n), [0.01]))
        await asyncio.sleep(0)
        time.sleep(0.08)  # The load generator itself is stopped.
        await task

    result, _ = load(late)
    assert result.groups[""]["ttft_p50_ms"] >= 65


def test_only_the_first_request_of_a_session_was_due_at_its_arrival() -> None:
    w = writer(turns=2, max_tokens=4)

    async def late(site: Site) -> None:
        await site.play(multi_turn(w, place(0, 0)), due_s=time.perf_counter() - 1)

    result, _ = load(late)
    first, second = (sample["e2e_s"] for sample in result.samples)
    assert second < 1 <= first


def test_clients_that_are_to_leave_close_their_connection_in_mid_answer() -> None:
    closed = []

    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        try:
            for _ in range(40):
                peer.text("x ")
                await peer.writer.drain()
                await asyncio.sleep(0.001)
            peer.end_stream(1, 40)
        except ConnectionError:
            closed.append(peer)
            raise

    async def work(site: Site) -> None:
        site.leave = 0.5
        await closed_loop(site, lambda client, _: one(client), 4, requests=4, seconds=None)
        await asyncio.sleep(0.02)

    result, _ = load(work, behave)
    assert result.n_answers + result.n_left == 16
    assert len(closed) == result.n_left > 2
    assert result.errors == {}


def test_answers_that_were_cut_or_do_not_pass_their_check_are_counted_as_invalid() -> None:
    def ask(n: int) -> Session:
        yield Request(next(one(n=n)).body, check=lambda text: None if text == "w0 " else "too long")

    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        for number in range(body["max_tokens"]):
            peer.text(f"w{number} ")
        peer.end_stream(1, 1, finish="length" if body["max_tokens"] == 3 else "stop")

    async def work(site: Site) -> None:
        for n in (1, 2, 3):
            await site.play(ask(n))

    result, _ = load(work, behave)
    assert (result.errors, result.invalid) == ({}, {"too long": 1, "cut by max_tokens": 1})


def test_a_conversation_goes_on_from_what_was_said_and_ends_at_an_error() -> None:
    bodies = []

    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        bodies.append(body)
        if len(bodies) == 3:
            return await peer.answer(400, {"error": {"code": "context_length_exceeded"}})
        return await well(peer, path, body)

    async def talk(site: Site) -> None:
        assert not await site.play(multi_turn(writer(turns=5, max_tokens=4), place(0, 0)))

    result, _ = load(talk, behave)
    assert len(bodies) == 3
    assert bodies[1]["messages"][:2] == bodies[0]["messages"]
    assert bodies[1]["messages"][2]["content"].startswith("w0 w1 ")
    assert [sample["group"] for sample in result.samples] == ["first turn", "later turns", "later turns"]
    assert result.errors == {"http 400 context_length_exceeded": 1}
    assert list(result.groups) == ["first turn", "later turns", ALL]


def test_answers_that_stop_while_a_long_prompt_is_read_show_one_gap_as_long_as_that() -> None:
    reading = asyncio.Event()
    reading.set()

    async def stops_for_prompts(peer: Peer, path: str, body: dict[str, Any]) -> None:
        peer.begin_stream()
        if len(body["messages"][1]["content"]) > 1000:
            reading.clear()
            await asyncio.sleep(0.1)
            peer.text("x ")
            peer.end_stream(1, 1)
            await asyncio.sleep(0.02)
            return reading.set()
        for _ in range(body["max_tokens"]):
            await reading.wait()
            peer.text("x ")
            await asyncio.sleep(0.003)
        return peer.end_stream(1, 1)

    w = writer(prompt_tokens=1000)
    result, site = load(lambda site: interrupt(site, w, place, clients=3, requests=2), stops_for_prompts)
    # Also when they go on only some time after the prompt's first token.
    assert result.groups[RUNNING]["gap_max_ms"] >= 119
    assert result.groups[RUNNING]["requests_s"] == 0
    assert result.groups[ARRIVING]["ttft_p50_ms"] >= 100
    # Those that were given up at the end are no errors, and no answers.
    assert (result.errors, result.n_answers) == ({}, 2)
    assert len(site.answers) == 8


def test_backchannels_go_with_and_without_priority_in_turn_while_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scenes, "MAX_PAUSE_S", 0.01)
    asides = []
    others_done = 0

    async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
        nonlocal others_done
        is_aside = body["max_tokens"] == 8
        if is_aside:
            asides.append(body.get("priority"))
            while not others_done:
                await asyncio.sleep(0.001)
        await well(peer, path, body)
        others_done += not is_aside

    w = writer()
    result, _ = load(lambda site: backchannel(site, w, place, clients=2, requests=1), behave)
    assert asides == [-1, None]
    assert result.groups["with priority"]["output_tokens"] == 8
    assert result.groups[LOAD]["requests_s"] > 0


def test_scenes_on_a_server_that_fails_end_with_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (load_module, scenes):
        monkeypatch.setattr(module, "PAUSE_AFTER_ERROR_S", 0.01)
    monkeypatch.setattr(scenes, "MAX_PAUSE_S", 0.01)

    async def breaks(peer: Peer, path: str, body: dict[str, Any]) -> None:
        await peer.answer(500, {})

    w = writer(prompt_tokens=50)
    for scene in (interrupt, backchannel):
        began = time.perf_counter()
        result, _ = load(lambda site, scene=scene: scene(site, w, place, clients=2, requests=1), breaks)  # type: ignore[misc]
        assert set(result.errors) == {"http 500"}
        assert time.perf_counter() - began < 10
