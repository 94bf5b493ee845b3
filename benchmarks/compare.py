#!/usr/bin/env python3
"""Interleaved load on several OpenAI servers: throughput, time to first token, gaps between chunks, with spreads.

    compare.py ours=http://127.0.0.1:8080 peer=http://127.0.0.1:8081 --clients 1,4,8 --rounds 5 --json out.json

In each round every server gets the same requests, one server after the other, in an order that alternates. A ratio
is taken within a round, so that the machine's drift cancels out; the table gives its median and range. The client
is plain asyncio on purpose: on two cores a heavy client would take the time that is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

QUESTIONS = [
    "Расскажите о самом сложном проекте в вашей практике и о том, что вы в нём сделали лично.",
    "Как вы проверяете, что платёж не мошеннический, если данных о клиенте почти нет?",
    "Explain how you would find the slowest query of a busy database without stopping it.",
    "Опишите случай, когда вы не согласились с заказчиком. Чем всё закончилось?",
    "What would you measure first if a service became twice as slow overnight?",
    "Какие признаки в заявке на кредит насторожили бы вас в первую очередь и почему?",
    "Describe a time when you had to learn a new tool in a week. How did you go about it?",
    "Как вы объясните бизнесу, почему отчёт задерживается на два дня?",
]
INTERVIEWER = (
    "Ты проводишь собеседование. Отвечай только JSON с полями reply (реплика, одно-два предложения), next_node_id, "
    "scoring_update {block, delta, score} и red_flags (список строк)."
)
SCHEMA = {
    "type": "object",
    "properties": {
        "reply": {"type": "string"},
        "next_node_id": {"type": "string"},
        "scoring_update": {
            "type": "object",
            "properties": {
                "block": {"type": "string"},
                "delta": {"type": "integer"},
                "score": {"type": "number"},
            },
            "required": ["block", "delta", "score"],
            "additionalProperties": False,
        },
        "red_flags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    },
    "required": ["reply", "next_node_id", "scoring_update", "red_flags"],
    "additionalProperties": False,
}
SYSTEM = "Ты вежливый интервьюер. Отвечай коротко и по делу."


@dataclass
class Round:
    tokens: int = 0
    seconds: float = 0.0
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    e2e: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


async def chat(url: str, body: dict, into: Round) -> None:
    """One streamed request over a connection of its own."""
    target = urlparse(url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    began = time.perf_counter()
    writer.write(head.encode() + data)
    last = None
    tokens = 0
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter()
        if b'"usage":{' in line:
            usage = json.loads(line[6:]).get("usage")
            tokens = usage["completion_tokens"] if usage else tokens
        if b'"content":"' not in line or b'"content":""' in line:
            continue
        if last is None:
            into.ttft.append(now - began)
        else:
            into.gaps.append(now - last)
        last = now
    into.e2e.append(time.perf_counter() - began)
    into.tokens += tokens
    writer.close()
    if not tokens:
        raise SystemExit(f"{url} answered without usage")


async def one_round(
    name: str, url: str, clients: int, requests: int, number: int, args: argparse.Namespace, *, schema: bool = False
) -> Round:
    result = Round()

    async def client(index: int) -> None:
        for turn in range(requests):
            question = QUESTIONS[(index + turn) % len(QUESTIONS)]
            body = {
                "model": args.model,
                "messages": [
                    {"role": "system", "content": f"{args.run}.{number} {args.system}" if args.cold else args.system},
                    {"role": "user", "content": f"{args.run}.{number}.{index}.{turn}.{name}: {question}"},
                ],
                # Lengths differ, so that clients do not move in lock-step: prompts arrive while answers run.
                "max_tokens": args.max_tokens // 2 + (index * 37 + turn * 53 + number * 17) % args.max_tokens,
                "temperature": 0.7,
                "top_k": 40,
                "top_p": 0.9,
                "seed": index,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            if schema:
                # The answer ends by itself; the limit is for one that does not.
                body |= {"ignore_eos": False, "max_tokens": 2 * args.max_tokens}
                body["response_format"] = {"type": "json_schema", "json_schema": {"name": "turn", "schema": SCHEMA}}
            await chat(url, body, result)

    began = time.perf_counter()
    await asyncio.gather(*[client(index) for index in range(clients)])
    result.seconds = time.perf_counter() - began
    return result


def percentile(values: list[float], p: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * p), len(ordered) - 1)] if ordered else float("nan")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no process {pid}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="NAME=URL[@PID]", help="the first is compared with the others")
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2, help="per client and round")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--model", default=None)
    parser.add_argument("--system", default=SYSTEM)
    parser.add_argument("--system-repeat", type=int, default=1, help="a longer system prompt")
    parser.add_argument(
        "--schema", default="", help="names of servers that are asked for JSON by the interviewer's schema, by commas"
    )
    parser.add_argument("--cold", action="store_true", help="a new system prompt each round, shared by its clients")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    constrained = set(filter(None, args.schema.split(",")))
    if constrained:
        args.system = INTERVIEWER
    args.system *= args.system_repeat
    # No prompt of an earlier run may lie in a cache.
    args.run = secrets.token_hex(3)
    servers, pids = {}, {}
    for item in args.servers:
        name, _, url = item.partition("=")
        url, _, pid = url.partition("@")
        servers[name] = url
        if pid:
            pids[name] = int(pid)
    base = next(iter(servers))
    report: dict = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "date": time.strftime("%Y-%m-%d"),
        "args": vars(args) | {"json": None},
        "runs": [],
    }
    for name, url in servers.items():
        await one_round(name, url, 1, 1, 999, args)
    for clients in [int(part) for part in args.clients.split(",")]:
        rounds: dict[str, list[Round]] = {name: [] for name in servers}
        for number in range(args.rounds):
            order = list(servers) if number % 2 == 0 else list(reversed(servers))
            for name in order:
                schema = name in constrained
                rounds[name].append(
                    await one_round(name, servers[name], clients, args.requests, number, args, schema=schema)
                )
        print(f"\n{clients} clients, {args.rounds} rounds x {args.requests} requests x {args.max_tokens} tokens")
        print(f"{'server':12} {'tok/s':>22} {'TTFT p50 ms':>22} {'gap p50 ms':>22} {'gap p99 ms':>22}")
        for name, runs in rounds.items():
            columns = [
                [r.rate for r in runs],
                [percentile(r.ttft, 0.5) * 1e3 for r in runs],
                [percentile(r.gaps, 0.5) * 1e3 for r in runs],
                [percentile(r.gaps, 0.99) * 1e3 for r in runs],
            ]
            print(f"{name:12} " + " ".join(f"{spread(column):>22}" for column in columns))
            names = ("tok_s", "ttft_p50_ms", "gap_p50_ms", "gap_p99_ms")
            report["runs"].append({"clients": clients, "server": name, **dict(zip(names, columns, strict=True))})
        for name in list(servers)[1:]:
            pairs = list(zip(rounds[base], rounds[name], strict=True))
            rate = [a.rate / b.rate for a, b in pairs]
            ttft = [percentile(a.ttft, 0.5) / percentile(b.ttft, 0.5) for a, b in pairs]
            gap = [percentile(a.gaps, 0.99) / percentile(b.gaps, 0.99) for a, b in pairs]
            print(f"{base}/{name}: tok/s {spread(rate)}  TTFT p50 {spread(ttft)}  gap p99 {spread(gap)}")
            ratios = {"tok_s": rate, "ttft_p50": ttft, "gap_p99": gap}
            report["runs"].append({"clients": clients, "ratio": f"{base}/{name}", **ratios})
    if pids:
        print("\nresident memory, MB: " + ", ".join(f"{name} {rss_mb(pid):.0f}" for name, pid in pids.items()))
        report["rss_mb"] = {name: rss_mb(pid) for name, pid in pids.items()}
    if args.json:
        args.json.write_text(json.dumps(report, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
