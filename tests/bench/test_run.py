"""Whole runs against tiny servers: whose turn it is, which model is asked for, what a run leaves behind."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from llm_local.bench import scenes
from llm_local.bench.options import Options, Server
from llm_local.bench.progress import Lines
from llm_local.bench.run import Findings, run
from tests.bench.server import Behave, Peer, peer, well
from tests.examples import few

MODELS = [{"id": "talks", "meta": {"embeds": False}}, {"id": "embeds", "meta": {"embeds": True}}]


def played(**options: Any) -> tuple[Findings, list[tuple[str, dict[str, Any]]]]:
    """Run against two servers; return what was found and every POST in the order in which they came."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def noting(name: str) -> Behave:
        async def behave(peer: Peer, path: str, body: dict[str, Any]) -> None:
            if path.endswith("/models"):
                return await peer.answer(200, {"data": MODELS})
            seen.append((name, body))
            return await well(peer, path, body)

        return behave

    async def main() -> Findings:
        findings = Findings()
        async with peer(noting("a")) as a, peer(noting("b")) as b:
            servers = (Server("a", a), Server("b", b))
            await run(Options(servers=servers, **options), findings, Lines(io.StringIO()))
        return findings

    return asyncio.run(main()), seen


def test_servers_take_turns_and_the_order_alternates() -> None:
    found, seen = played(rounds=3, requests=1, clients=(1,), max_tokens=4)
    # Each gets the same four requests before, for the model and the size of a token.
    assert [name for name, _ in seen] == [*"aaaabbbb", *"ab", *"ba", *"ab"]
    assert [list(rounds) for rounds in found.runs[0].rounds] == [["a", "b"]] * 3


def test_no_server_sees_a_prompt_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "MAX_PAUSE_S", 0.001)
    monkeypatch.setattr("llm_local.bench.run.SETTLE_S", 0.0)
    monkeypatch.setattr(scenes, "N_RUNNING", 50)
    workloads = ("chat", "long-prompt", "multi-turn", "interrupt", "backchannel", "rewrite")
    _, seen = played(
        workloads=workloads, rounds=2, requests=few(2), clients=(1, 2), max_tokens=4, prompt_tokens=30, turns=1
    )
    prompts = [(name, str(body["messages"])) for name, body in seen]
    assert len(set(prompts)) == len(prompts)


def test_arrivals_are_the_same_for_every_server() -> None:
    found, _ = played(rounds=4, rates=(400.0,), seconds=0.05, max_tokens=2)
    counts = [[rounds[name].n_answers for rounds in found.runs[0].rounds] for name in "ab"]
    # 20 on average: by chance they would rarely be the same, and not four times.
    assert counts[0] == counts[1]
    assert len(set(counts[0])) > 1


def test_the_model_is_the_first_that_is_listed_and_for_embeddings_the_first_that_embeds() -> None:
    options = {"rounds": 1, "requests": 1, "clients": (1,), "max_tokens": 4}
    _, seen = played(workloads=("chat", "embeddings"), batch=2, **options)
    assert {body["model"] for _, body in seen if "messages" in body} == {"talks"}
    assert {body["model"] for _, body in seen if "input" in body} == {"embeds"}
    _, seen = played(model="mine", **options)
    assert {body["model"] for _, body in seen} == {"mine"}
