"""Putting sessions on a server: clients that wait for their answers, or arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from llm_local.bench.client import Answer, Client, Request
from llm_local.bench.workloads import Session

PAUSE_AFTER_ERROR_S = 0.1
"""A client whose request failed waits a little: a server that refuses at once is not to be hammered."""

LEAVES_WITHIN = 32
"""Chunks within which a client that is to leave does; some leave before the first."""

Sessions = Callable[[int, int], Session]
"""The session of a client and turn."""


@dataclass(slots=True)
class Site:
    """One server in one round, and every answer it gave."""

    client: Client
    on_answer: Callable[[], None] = lambda: None
    leave: float = 0.0
    """Share of requests whose client leaves in the middle of the answer."""
    random: Random = field(default_factory=lambda: Random(0))
    answers: list[tuple[Request, Answer]] = field(default_factory=list)

    async def send(
        self, request: Request, *, due_s: float = 0.0, answer: Answer | None = None, may_leave: bool = True
    ) -> Answer:
        """Send a request and keep its answer; `due_s` is when it should have been sent, if that was earlier."""
        answer = answer or Answer()
        answer.due_s = due_s
        if may_leave and self.random.random() < self.leave:
            answer.leave_after = self.random.randrange(LEAVES_WITHIN)
        self.answers.append((request, answer))
        await self.client.send(request, answer)
        self.on_answer()
        return answer

    async def play(self, session: Session, *, due_s: float = 0.0) -> bool:
        """Send the requests of a session one after the other; tell whether all were answered."""
        fine = True
        try:
            request = next(session)
            while True:
                answer = await self.send(request, due_s=due_s)
                # Only the first request was due at a known time; the next one is when its answer has come.
                due_s, fine = 0.0, fine and not answer.error
                if not answer.end_s:
                    return fine
                request = session.send(answer)
        except StopIteration:
            return fine


async def closed_loop(site: Site, sessions: Sessions, clients: int, *, requests: int, seconds: float | None) -> None:
    """Let each client play `requests` sessions one after the other, or start new ones for `seconds`."""
    end = None if seconds is None else time.perf_counter() + seconds

    async def one(client: int) -> None:
        for turn in count():
            if (turn >= requests) if end is None else (time.perf_counter() >= end):
                return
            if not await site.play(sessions(client, turn)):
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    await asyncio.gather(*[one(client) for client in range(clients)])


async def waves(site: Site, sessions: Sessions, clients: int, *, requests: int) -> None:
    """Let all clients send at the same moment, and wait for each other before the next time."""
    for turn in range(requests):
        await asyncio.gather(*[site.play(sessions(client, turn)) for client in range(clients)])


def arrival_times(rate: float, random: Random, *, requests: int, seconds: float | None) -> list[float]:
    """Return Poisson arrivals in seconds from the start: exponential times between them, 1 / rate on average."""
    times: list[float] = []
    now = 0.0
    while True:
        now += random.expovariate(rate)
        if (now >= seconds) if seconds is not None else (len(times) >= requests):
            return times
        times.append(now)


async def open_loop(site: Site, sessions: Sessions, arrivals: list[float]) -> None:
    """Start a session at each arrival, whether earlier ones are answered or not.

    Latency counts from the scheduled arrival: a server that stalls, or a client that is late, cannot hide behind
    requests that were never sent ("coordinated omission", G. Tene).
    """
    began = time.perf_counter()

    async def one(number: int, arrival: float) -> None:
        await asyncio.sleep(began + arrival - time.perf_counter())
        await site.play(sessions(number, 0), due_s=began + arrival)

    await asyncio.gather(*[one(number, arrival) for number, arrival in enumerate(arrivals)])
