"""A server over a real socket, on the fake backend and a byte tokenizer."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from llm_local.chat.template import ChatTemplate, named_template
from llm_local.config import Settings
from llm_local.engine.engine import Engine
from llm_local.engine.host_cache import HostCache
from llm_local.errors import ContextLengthExceeded
from llm_local.server.app import create_app
from llm_local.server.connection import Connection
from llm_local.server.runtime import Loaded, Runtime, ServedModel
from llm_local.server.warm_prefixes import read_warm_prompts, warm_tokens
from llm_local.structured.grammars import Grammars
from tests.fakes import END, N_VOCAB, FakeBackend, fake_grammars

TEMPLATE = ChatTemplate(named_template("chatml"))


class ByteVocabulary:
    """Token n is the character n: one token a byte of Latin-1, UTF-8 bytes for the rest."""

    n_vocab = N_VOCAB
    adds_bos = False

    def __init__(self) -> None:
        self.special = {"eos": END}

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def tokenize_prompt(self, text: str) -> list[int]:
        return self.tokenize(text)

    def least_tokens(self, text: str) -> int:
        return len(text) if len(text) > 5000 else 0

    def count_special(self, text: str) -> int:
        return text.count("<") if len(text) > 5000 else 0

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return b"" if token == END else chr(token).encode()

    def detokenize(self, tokens: list[int]) -> str:
        return bytes(t for t in tokens if t != END).decode("utf-8", "replace")


class FakeEmbeddings:
    window = 64
    n_embd = 8

    async def embed(self, inputs: list[list[int]]) -> list[np.ndarray]:
        out = []
        for tokens in inputs:
            vector = np.random.default_rng(sum(tokens)).normal(size=8)
            out.append((vector / np.linalg.norm(vector)).astype(np.float32))
        return out


def _grammars(chosen: Settings) -> Grammars:
    # `auto` would fall back to what real weights have, which is tested on them.
    engine = "llama" if chosen.grammar_engine == "llama" else "llguidance"
    return fake_grammars(compact=chosen.json_compact, close_json=chosen.json_close, engine=engine)


@dataclass
class Served:
    """A running server and what is inside it."""

    url: str
    backend: FakeBackend
    runtime: Runtime
    app: FastAPI
    failures: list[bool] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def engine(self) -> Engine:
        assert self.runtime.loaded is not None
        return self.runtime.loaded.engine

    def wait_idle(self, timeout_s: float = 5.0) -> None:
        end = time.monotonic() + timeout_s
        while self.engine.n_open:
            assert time.monotonic() < end, f"{self.engine.n_open} sequences are still open"
            time.sleep(0.005)


@contextmanager
def serving(
    backend: FakeBackend | None = None,
    *,
    window: int = 1024,
    max_running: int = 4,
    host: HostCache | None = None,
    load: Callable[[], Loaded] | None = None,
    wait: bool = True,
    embeddings: Any = None,
    join: bool = False,
    send_buffer: int | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """Run a server on a free port of 127.0.0.1, and stop it at the end; with `join`, wait until it has stopped.

    (Without `join` the next test need not wait for that; the session does.) With a small `send_buffer`, a reader that
    takes nothing is felt soon.
    """
    backend = backend or FakeBackend(n_ctx=2048, n_batch=256, n_slots=8, n_outputs=40)
    chosen = Settings.model_validate(settings)

    def load_fake() -> Loaded:
        engine = Engine(
            backend,
            max_running=max_running,
            queue_max=chosen.queue_max,
            window=window,
            prefill_chunk=32,
            answer_reserve=64,
            host=host,
        )
        template, vocabulary = TEMPLATE, ByteVocabulary()
        prompts = read_warm_prompts(chosen.warm_prefixes) if chosen.warm_prefixes is not None else []
        prefixes = warm_tokens(prompts, template, vocabulary, window=window, n_cells=backend.n_ctx)
        model = ServedModel(
            "fake", ("alias", *chosen.model_aliases), vocabulary, window, "Q4_K_M", 123, 7, 8, embeds=True
        )
        return Loaded(
            model,
            engine,
            template,
            _grammars(chosen),
            embeddings or FakeEmbeddings(),
            model,
            prefixes,
        )

    runtime = Runtime(chosen, load or load_fake)
    failures: list[bool] = []
    app = create_app(runtime, lambda: failures.append(True))
    served = Served("", backend, runtime, app, failures)
    # With the protocol named, asyncio sets TCP_NODELAY: without it every answer on an open connection takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.listen(512)
    served.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=partial(Connection, chosen, runtime.metrics),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        end = time.monotonic() + 10
        while wait and runtime.loaded is None and not served.failures:
            assert time.monotonic() < end
            time.sleep(0.002)
        yield served
    finally:
        server.should_exit = True
        _STOPPING.append((thread, listener))
        if join:
            _wait_for_all()


_STOPPING: list[tuple[threading.Thread, socket.socket]] = []


def _wait_for_all() -> None:
    while _STOPPING:
        thread, listener = _STOPPING.pop()
        thread.join(15)
        assert not thread.is_alive()
        listener.close()


@pytest.fixture(scope="session", autouse=True)
def all_servers_stop() -> Iterator[None]:
    """Every server that was told to stop does."""
    yield
    _wait_for_all()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=10, verify=False) as client:
        yield client


def over_limit(n: int, window: int) -> str:
    return ContextLengthExceeded(n, window).message
