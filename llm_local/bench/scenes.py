"""Workloads in which requests meet: a long prompt among running answers, a backchannel under full load."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

from llm_local.bench import prompts
from llm_local.bench.client import Answer, Request
from llm_local.bench.load import PAUSE_AFTER_ERROR_S, Site
from llm_local.bench.prompts import system, user
from llm_local.bench.workloads import backchannel_request, language_of, question
from llm_local.bench.writer import Place, Writer

N_RUNNING = 768
"""Tokens of an answer that has to last until a long prompt is read."""
N_AFTER_LONG_PROMPT = 16
RUNNING, ARRIVING, LOAD = "running answers", "long prompt", "the load"
MAX_PAUSE_S = 0.5


async def interrupt(
    site: Site, writer: Writer, place: Callable[[int, int], Place], clients: int, requests: int
) -> None:
    """Let a long prompt arrive while `clients` answers run, `requests` times.

    Of the running answers those gaps count that reach into the time from its arrival to its first token. Each is
    followed to its end: a server that stops them until the prompt is read shows one gap as long as that.
    """
    for number in range(requests):

        def place_here(client: int, turn: int, number: int = number) -> Place:
            return place(client, 1000 * number + turn)

        await _one_interruption(site, writer, place_here, clients)


async def _one_interruption(site: Site, writer: Writer, place: Callable[[int, int], Place], clients: int) -> None:
    running: list[Answer] = []

    def ask(client: int, turn: int) -> Request:
        at = place(client, turn)
        return writer.chat(at, [system(prompts.SYSTEM), user(question(writer, at))], n=N_RUNNING, group=RUNNING)

    async with _load(site, ask, clients, running):
        await _until(lambda: _all_speak(running, clients) or _failed(running))
        at = place(clients, 0)
        text = writer.text(at, writer.options.prompt_tokens or 4000, language_of(at))
        messages = [system(prompts.SYSTEM), user(f"{writer.tag(at)}: {text}\n\n{prompts.QUESTIONS[0]}")]
        long = await site.send(writer.chat(at, messages, n=N_AFTER_LONG_PROMPT, group=ARRIVING), may_leave=False)
        window = (long.due_s, long.first_s or long.end_s)
        # A gap that began in the window ends with the next chunk after it.
        await _until(lambda: _spoke_after(running, window[1]))
    for answer in running:
        answer.window = window


async def backchannel(
    site: Site, writer: Writer, place: Callable[[int, int], Place], clients: int, requests: int
) -> None:
    """Ask `requests` times with priority and as often without, in turn, while `clients` others keep the server full."""
    running: list[Answer] = []

    def ask(client: int, turn: int) -> Request:
        at = place(client, turn)
        return writer.chat(at, [system(prompts.SYSTEM), user(question(writer, at))], group=LOAD)

    async with _load(site, ask, clients, running):
        await _until(lambda: any(answer.first_s for answer in running) or _failed(running))
        for turn in range(2 * requests):
            at = place(clients, turn)
            # Aside after aside would always meet the load at the same point of its step.
            await asyncio.sleep(writer.random(at, "pause").random() * MAX_PAUSE_S)
            urgent = (turn + at.round) % 2 == 0
            group = "with priority" if urgent else "without"
            await site.send(backchannel_request(writer, at, urgent=urgent, group=group), may_leave=False)


@contextlib.asynccontextmanager
async def _load(
    site: Site, ask: Callable[[int, int], Request], clients: int, running: list[Answer]
) -> AsyncIterator[None]:
    """Keep `clients` answers running; at the end those that still run are given up, which is no error."""

    async def one(client: int) -> None:
        for turn in count():
            answer = Answer()
            running.append(answer)
            await site.send(ask(client, turn), answer=answer)
            if answer.error:
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(one(client)) for client in range(clients)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _all_speak(running: list[Answer], clients: int) -> bool:
    return sum(1 for answer in running if len(answer.chunk_times) > 1 and not answer.end_s) >= clients


def _failed(running: list[Answer]) -> bool:
    return any(answer.error for answer in running)


def _spoke_after(running: list[Answer], moment: float) -> bool:
    return all(answer.end_s or (answer.chunk_times and answer.chunk_times[-1] > moment) for answer in running)


async def _until(condition: Callable[[], Any], limit_s: float = 60.0) -> None:
    """Wait until something is so; a server on which it never is has its errors counted instead."""
    end = time.perf_counter() + limit_s
    while not condition() and time.perf_counter() < end:
        await asyncio.sleep(0.005)
