"""A whole run: every workload under every load, the servers in turn within each round, in alternating order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from llm_local.bench import prompts, scenes
from llm_local.bench.client import Answer, Client, Request
from llm_local.bench.extra import need
from llm_local.bench.load import Site, arrival_times, closed_loop, open_loop, waves
from llm_local.bench.measure import device_mb
from llm_local.bench.options import Load, Options, Server
from llm_local.bench.prompts import Scale
from llm_local.bench.result import Round, Run, summarize
from llm_local.bench.workloads import WORKLOADS, Session, Workload
from llm_local.bench.writer import Place, Writer
from llm_local.errors import StartupError

OPEN_LOOP_REQUESTS = 20
SETTLE_S = 0.3
SAMPLE_CHARACTERS = 400
"""Of the texts that tell how many characters make a token."""


class Progress(Protocol):
    """Told how far the run is."""

    def begin(self, workload: str, load: str, n_rounds: int) -> None:
        """A workload under a load begins."""

    def answer(self) -> None:
        """An answer came."""

    def round(self, number: int, rounds: dict[str, Round]) -> None:
        """All servers have had their round."""

    def note(self, text: str) -> None:
        """Say something once."""


@dataclass(slots=True)
class Findings:
    """What a run has found so far; it is filled while the run goes on, so that an interrupted one can be shown."""

    runs: list[Run] = field(default_factory=list)
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each server says about itself."""
    scale: Scale = field(default_factory=Scale)


def check_workloads(options: Options) -> None:
    """Refuse workloads that do not exist, have no open loop, or have nothing left to compare.

    Raises:
        StartupError: one of them.
    """
    for name in options.workloads:
        if name not in WORKLOADS:
            raise StartupError(f"there is no workload '{name}'; there are: {', '.join(WORKLOADS)}")
        if options.rates and (WORKLOADS[name].session is None or WORKLOADS[name].together):
            raise StartupError(f"the workload '{name}' has no open loop: leave --rate out")
        if options.plain_openai and name == "backchannel":
            raise StartupError("the workload 'backchannel' sends 'priority', which --plain-openai takes away")
        if name in ("schema", "mixed"):
            need("jsonschema", f"the workload '{name}'")


def loads(workload: Workload, options: Options) -> list[Load]:
    """Return the loads under which a workload is run."""
    if options.rates:
        return [Load(rate=rate) for rate in options.rates]
    return [Load(clients=clients) for clients in options.clients or workload.clients]


async def run(options: Options, findings: Findings, progress: Progress) -> None:
    """Run everything; what was found so far is in `findings` at any time."""
    clients = {
        server.name: Client(server.url, api_key=options.api_key, timeout_s=options.timeout_s)
        for server in options.servers
    }
    try:
        await _get_ready(options, clients, findings, progress)
        writer = _writer(options, findings)
        for name in options.workloads:
            for load in loads(WORKLOADS[name], options):
                await _rounds(WORKLOADS[name], load, writer, clients, findings, progress)
                for server in options.servers:
                    if server.pid:
                        findings.servers[server.name]["device_mb"] = device_mb(server.pid)
    finally:
        for client in clients.values():
            client.close()


async def _rounds(
    workload: Workload, load: Load, writer: Writer, clients: dict[str, Client], findings: Findings, progress: Progress
) -> None:
    options = writer.options
    result = Run(workload, load, tuple(clients), options.seed)
    findings.runs.append(result)
    progress.begin(workload.name, load.label, options.rounds)
    if workload.warm and workload.session:
        for name, client in clients.items():
            await Site(client).play(workload.session(writer, Place(workload.name, name, load.label, -1, 0, 0)))
    for number in range(options.rounds):
        order = options.servers if number % 2 == 0 else options.servers[::-1]
        rounds: dict[str, Round] = {}
        try:
            for server in order:
                site = Site(clients[server.name], progress.answer, options.leave, Random(f"leave {number}"))
                await _round(server, result, number, writer, site, findings, rounds)
                if workload.session is None:
                    # Answers were given up: the server may compute a moment longer, at the next one's expense.
                    await asyncio.sleep(SETTLE_S)
        except asyncio.CancelledError:
            # A round counts when every server had it, as ratios are taken within rounds; but one is better than none.
            result.cut_short = not result.rounds
            result.rounds = result.rounds or [rounds]
            raise
        result.rounds.append({name: rounds[name] for name in clients})
        progress.round(number, rounds)


async def _round(
    server: Server, result: Run, number: int, writer: Writer, site: Site, findings: Findings, rounds: dict[str, Round]
) -> None:
    """Let one server have its round; its figures are put into `rounds` also when it is interrupted."""
    began = time.perf_counter()
    try:
        await _work(server.name, result.workload, result.load, number, writer, site)
    finally:
        seconds = time.perf_counter() - began
        rounds[server.name] = summarize(server, site.answers, seconds, together=result.workload.session is not None)
    fingerprints = {answer.fingerprint for _, answer in site.answers if answer.fingerprint}
    if fingerprints:
        findings.servers.setdefault(server.name, {})["system_fingerprint"] = sorted(fingerprints)[0]


async def _work(name: str, workload: Workload, load: Load, number: int, writer: Writer, site: Site) -> None:
    options = writer.options
    requests = options.requests or workload.requests

    def place(client: int, turn: int) -> Place:
        return Place(workload.name, name, load.label, number, client, turn)

    if workload.session is None:
        scene = {"interrupt": scenes.interrupt, "backchannel": scenes.backchannel}[workload.name]
        await scene(site, writer, place, load.clients or 1, requests)
        return
    write = workload.session

    def sessions(client: int, turn: int) -> Session:
        return write(writer, place(client, turn))

    if load.rate is not None:
        # The same arrivals for every server: they depend on the seed, the round and the rate.
        random = Random(f"{options.seed} {number} {load.rate}")
        n = options.requests or OPEN_LOOP_REQUESTS
        await open_loop(site, sessions, arrival_times(load.rate, random, requests=n, seconds=options.seconds))
    elif workload.together:
        await waves(site, sessions, load.clients or 1, requests=requests)
    else:
        await closed_loop(site, sessions, load.clients or 1, requests=requests, seconds=options.seconds)


async def _get_ready(options: Options, clients: dict[str, Client], findings: Findings, progress: Progress) -> None:
    """Ask what is served, send one request to each, and find how many characters make a token."""
    for name, client in clients.items():
        findings.servers[name] = await _about(client, options)
    writer = _writer(options, findings)
    embeds = all(name == "embeddings" for name in options.workloads)
    for name, client in clients.items():
        count = _counter(writer, name, client, embeds=embeds)
        n_tokens, error = await count("1")
        if error:
            progress.note(f"{name} does not answer a first request: {error}")
            continue
        # All get these requests, so that none is warmer than the others; the first one's count decides.
        scale = await _measure_scale(count, n_tokens)
        findings.scale = scale if findings.scale == Scale() else findings.scale


async def _about(client: Client, options: Options) -> dict[str, Any]:
    """Return the models that a server is asked for, and what it says about the first of them."""
    listed = await client.get("/models")
    models = listed.get("data") if isinstance(listed, dict) else None
    models = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    chosen = next((model for model in models if model.get("id") == options.model), models[0] if models else {})
    # llm_local says which of its models embeds; elsewhere it is the one that there is.
    embeds = next((model for model in models if (model.get("meta") or {}).get("embeds") is True), chosen)
    return {"model": chosen.get("id"), "embedding_model": embeds.get("id"), "about": chosen}


def _writer(options: Options, findings: Findings) -> Writer:
    models = {name: about.get("model") for name, about in findings.servers.items()}
    embedding = {name: about.get("embedding_model") for name, about in findings.servers.items()}
    return Writer(options, findings.scale, models, embedding)


def _counter(writer: Writer, name: str, client: Client, *, embeds: bool) -> Callable[[str], Any]:
    """Return a function that asks the server how many tokens a prompt has; what went wrong comes with it."""

    async def count(text: str) -> tuple[int, str]:
        place = Place("first", name, "", 0, 0, 0)
        if embeds:
            request = Request(
                writer.finish(place, {"input": text, "encoding_format": "base64"}, embeds=True), "/embeddings"
            )
        else:
            request = writer.chat(place, [prompts.user(text)], n=1)
        answer = await client.send(request, Answer())
        return answer.prompt_tokens, answer.error

    return count


async def _measure_scale(count: Callable[[str], Any], overhead: int) -> Scale:
    """Return how many characters a token of our texts has, by the server's own count; or a guess."""
    guess = Scale()
    texts = {
        "russian": prompts.filler(Random(0), SAMPLE_CHARACTERS, "ru"),
        "english": prompts.filler(Random(0), SAMPLE_CHARACTERS, "en"),
        "json": prompts.document(Random(0), SAMPLE_CHARACTERS)[0],
    }
    found = {}
    for kind, text in texts.items():
        n_tokens, _ = await count(text)
        n_tokens -= overhead - 1
        found[kind] = len(text) / n_tokens if n_tokens > 0 else getattr(guess, kind)
    return Scale(**found)
