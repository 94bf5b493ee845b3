#!/usr/bin/env python3
"""Keep a server busy for long, with clients that leave: memory must stay flat and no slot may be lost.

    soak.py http://127.0.0.1:8080@PID --minutes 30 --clients 8 --leave 0.1

Chats, conversations, JSON by a schema, predictions, urgent asides and embeddings, in Russian and English; one answer in
ten is left in the middle. A line a minute: requests, errors, resident memory without idle prefixes (they have a limit,
`LLM_HOST_CACHE_MB`, and fill it in time) and those. At the end no sequence may be open, and as many answers as the
server runs together (`LLM_PARALLEL`) must speak before the first of them ends. Exit code 1 when something of that does
not hold, or a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

QUESTIONS = [
    "Расскажите о самом сложном проекте в вашей практике.",
    "Explain how you would find the slowest query of a busy database.",
    "Какие признаки в заявке на кредит насторожили бы вас и почему?",
    "What would you measure first if a service became twice as slow overnight?",
]
SYSTEM = "Ты вежливый интервьюер. Отвечай коротко и по делу. " * 12
GOOD = ("left", "whole 200", "embeddings 200", "stream 200 done")
SCHEMA = {
    "type": "object",
    "properties": {"reply": {"type": "string", "maxLength": 80}, "score": {"type": "integer"}},
    "required": ["reply", "score"],
    "additionalProperties": False,
}


def body(choose: random.Random, history: list[dict]) -> dict:
    """A request of one of the kinds; a conversation goes on now and then."""
    if len(history) > 6 or choose.random() < 0.4:
        history.clear()
    history.append({"role": "user", "content": f"{choose.random():.6f} {choose.choice(QUESTIONS)}"})
    out: dict = {"messages": [{"role": "system", "content": SYSTEM}, *history], "max_tokens": choose.randint(8, 48)}
    kind = choose.random()
    if kind < 0.2:
        out["response_format"] = {"type": "json_schema", "json_schema": {"name": "turn", "schema": SCHEMA}}
    elif kind < 0.3:
        out["prediction"] = {"type": "content", "content": choose.choice(QUESTIONS)}
    elif kind < 0.4:
        out |= {"priority": -1, "max_tokens": 8}
    return out | {"stream": choose.random() < 0.8}


class Soak:
    """All clients, and what happened to them."""

    def __init__(self, url: str, pid: int, args: argparse.Namespace) -> None:
        self.url, self.pid, self.args = url, pid, args
        self.counts: Counter[str] = Counter()
        self.memory: list[float] = []
        self.end = 0.0

    async def ready(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as http:
            while (answer := await http.get("/health/ready")).status_code != 200:
                print(f"not ready: {answer.text}", flush=True)
                await asyncio.sleep(1)

    async def client(self, number: int) -> None:
        choose, history = random.Random(number), []
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as http:
            while time.monotonic() < self.end:
                try:
                    await self.one(http, choose, history)
                except httpx.HTTPError as error:
                    self.counts[f"error {type(error).__name__}"] += 1

    async def one(self, http: httpx.AsyncClient, choose: random.Random, history: list[dict]) -> None:
        if choose.random() < 0.05:
            answer = await http.post("/v1/embeddings", json={"input": [choose.choice(QUESTIONS)] * 3})
            self.counts[f"embeddings {answer.status_code}"] += 1
            return
        request = body(choose, history)
        leaves = choose.random() < self.args.leave
        if not request["stream"]:
            try:
                answer = await http.post("/v1/chat/completions", json=request, timeout=0.5 if leaves else 600)
            except httpx.ReadTimeout:
                if not leaves:
                    raise
                self.counts["left"] += 1
                return
            self.counts[f"whole {answer.status_code}"] += 1
            return
        n_lines, last = 0, ""
        async with http.stream("POST", "/v1/chat/completions", json=request) as answer:
            async for line in answer.aiter_lines():
                # Comments keep the connection alive, also behind the end.
                n_lines, last = n_lines + 1, last if line.startswith(":") else line or last
                if leaves and n_lines > 6:
                    self.counts["left"] += 1
                    return
        done = last == "data: [DONE]"
        self.counts[f"stream {answer.status_code} {'done' if done else 'cut'}"] += 1
        if not done:
            print(f"cut: {answer.status_code} {answer.headers.get('x-request-id')} {last}", flush=True)

    async def watch(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            while time.monotonic() < self.end:
                await asyncio.sleep(min(60, max(self.end - time.monotonic(), 0.1)))
                tier = float((await http.get("/metrics")).text.split('kv_bytes{tier="host"} ')[1].split()[0]) / 2**20
                self.memory.append(resident_mb(self.pid) - tier)
                memory = f"{self.memory[-1]:7.1f} + {tier:.1f} MB"
                print(f"{len(self.memory):3} min  {memory}  {dict(self.counts)}", flush=True)

    async def run(self) -> bool:
        await self.ready()
        self.end = time.monotonic() + self.args.minutes * 60
        await asyncio.gather(self.watch(), *[self.client(number) for number in range(self.args.clients)])
        return await self.verdict()

    async def verdict(self) -> bool:
        """Whether all slots are there still, and memory has stayed where it was after the first third."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=httpx.Limits(max_connections=None)) as http:
            for _ in range(100):
                n_open = float((await http.get("/metrics")).text.split("\nllm_local_sequences ")[1].split()[0])
                if n_open == 0:
                    break
                await asyncio.sleep(0.3)
            limit = int(
                float((await http.get("/metrics")).text.split("\nllm_local_sequences_running_limit ")[1].split()[0])
            )
            n_together = await together(http, limit)
        third = len(self.memory) // 3
        early, late = (
            statistics.median(part) for part in (self.memory[third : 2 * third + 1], self.memory[-third - 1 :])
        )
        bad = {name: n for name, n in self.counts.items() if name not in GOOD}
        print(
            f"open at the end {n_open:.0f}, together {n_together} of {limit}, MB {early:.1f} -> {late:.1f}, bad: {bad}"
        )
        return n_open == 0 and n_together == limit and late - early < 20 and not bad


async def together(http: httpx.AsyncClient, n: int) -> int:
    """Ask for `n` answers at once; return how many of them have begun before any has ended."""
    ended, n_begun, most = asyncio.Event(), 0, 0
    request = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 200, "ignore_eos": True, "stream": True}

    async def one() -> None:
        nonlocal n_begun, most
        begun = False
        async with http.stream("POST", "/v1/chat/completions", json=request) as answer:
            async for line in answer.aiter_lines():
                if not begun and '"content":"' in line and '"content":""' not in line:
                    begun, n_begun = True, n_begun + 1
                    most = most if ended.is_set() else n_begun
                if begun and n_begun == n:
                    break
        ended.set()

    await asyncio.gather(*[one() for _ in range(n)])
    return most


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", metavar="URL@PID")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--leave", type=float, default=0.1, help="share of requests whose client leaves")
    arguments = parser.parse_args()
    url, _, pid = arguments.server.partition("@")
    sys.exit(0 if asyncio.run(Soak(url, int(pid), arguments).run()) else 1)
