"""What the routes work with: the loaded model, the engine, the settings. One `Runtime` in `app.state`; event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from llm_local.chat.template import ChatTemplate
from llm_local.config import Settings
from llm_local.engine.engine import Engine
from llm_local.engine.radix_tree import Tokens
from llm_local.errors import Draining, EngineError, LLMLocalError, Loading, ModelNotFound
from llm_local.server.keys import Keys
from llm_local.server.metrics import Metrics
from llm_local.server.tracing import Tracing
from llm_local.server.upstream import Upstream
from llm_local.structured.grammars import Grammars

T = TypeVar("T")

WORKERS = 4
"""Threads for rendering templates and tokenizing: short work, and the cores belong to the engine."""


DRAINING_RETRY_S = 5
"""By then another server should be there."""


class Vocabulary(Protocol):
    """The tokenizer of a loaded model. Any thread."""

    n_vocab: int

    @property
    def special(self) -> dict[str, int]:
        """Ids of special tokens by short name (`bos`, `eos`, `fim_pre`, ...)."""
        ...

    @property
    def adds_bos(self) -> bool:
        """Whether a text starts with BOS."""
        ...

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of a text."""
        ...

    def tokenize_prompt(self, text: str) -> list[int]:
        """Return the token ids of a rendered template, never with two BOS."""
        ...

    def least_tokens(self, text: str) -> int:
        """Return a lower bound of the text's tokens, quickly."""
        ...

    def count_special(self, text: str) -> int:
        """Return how many special tokens a long text spells out."""
        ...

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of a token."""
        ...

    def detokenize(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        ...


class Embeddings(Protocol):
    """What embeds."""

    window: int

    @property
    def n_embd(self) -> int:
        """Length of a vector."""
        ...

    async def embed(self, inputs: SequenceOf[SequenceOf[int]]) -> list[Any]:
        """Return a normalised float32 array for each token list."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as `/v1/models` shows it.

    Attributes:
        id: name in the API.
        aliases: further names.
        context_window: longest sequence in tokens.
        size_bytes: of the weights.
        generates, embeds: which routes it serves.
    """

    id: str
    aliases: tuple[str, ...]
    vocabulary: Vocabulary
    context_window: int
    quantization: str | None = None
    size_bytes: int = 0
    n_params: int = 0
    n_embd: int = 0
    generates: bool = True
    embeds: bool = False


@dataclass(slots=True)
class Loaded:
    """What loading the weights gives.

    Attributes:
        warm_prefixes: are computed before the first request.
    """

    model: ServedModel
    engine: Engine
    template: ChatTemplate
    grammars: Grammars
    embeddings: Embeddings | None = None
    embedding_model: ServedModel | None = None
    warm_prefixes: SequenceOf[Tokens] = ()
    close: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Runtime:
    """The state of the server.

    Attributes:
        load: loads the weights; called once, on a thread of its own. None with an upstream.
        upstream: who computes instead of this process.
        doing: what `load` does, for those who ask meanwhile.
        give_up: told when the server stops while `load` may still wait for a download.
        warming: what is loaded and computes its warm prefixes.
        failed: why loading failed.
        draining: whether the server was told to stop; nothing new is taken.
        loader: the thread that loads, or that loaded.
        keys: what clients must send one of; None where the server is open.
        n_embedding: embedding requests that run or wait.
        tracing: where spans go; None for nowhere.
    """

    settings: Settings
    load: Callable[[], Loaded] | None = None
    upstream: Upstream | None = None
    doing: Callable[[], str] = lambda: "The model is being loaded; try again in a moment."
    give_up: Callable[[], None] = lambda: None
    loaded: Loaded | None = None
    warming: Loaded | None = None
    failed: LLMLocalError | None = None
    draining: bool = False
    loader: threading.Thread | None = None
    keys: Keys | None = None
    started_at: float = field(default_factory=time.time)
    n_embedding: int = 0
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing | None = None
    workers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, "worker"))

    @property
    def ready(self) -> Loaded:
        """What is loaded.

        Raises:
            Loading, EngineDead, Draining: requests cannot be taken now.
        """
        if self.failed is not None:
            raise EngineError("The model could not be loaded; see the server's log.") from self.failed
        if self.draining:
            raise Draining("The server is shutting down.", retry_after_s=DRAINING_RETRY_S)
        if self.loaded is None:
            raise Loading(self.doing(), retry_after_s=2)
        self.loaded.engine.check_available()
        return self.loaded

    def drain(self) -> None:
        """Refuse new requests from now on; what runs goes on."""
        self.draining = True
        if self.loaded is not None:
            self.loaded.engine.drain()
        if self.upstream is not None:
            self.upstream.drain()

    async def end(self) -> None:
        """End what still runs with an error, which goes out to its client."""
        if self.loaded is not None:
            await self.loaded.engine.stop()
        if self.upstream is not None:
            self.upstream.end()

    async def loading(self) -> Loaded:
        """Load on a thread of its own, which the process need not wait for at its end.

        Raises:
            StartupError: it cannot be loaded.
        """
        load = self.load
        assert load is not None, "without weights there must be an upstream"
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Loaded] = loop.create_future()

        def run() -> None:
            result, error = None, None
            try:
                result = load()
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # The loop is closed: the process ends.
                loop.call_soon_threadsafe(_settle, done, result, error)

        self.loader = threading.Thread(target=run, name="loader", daemon=True)
        self.loader.start()
        return await done

    def generator(self, name: str | None) -> ServedModel:
        """Return the model that generates under this name.

        Raises:
            ModelNotFound: none does; the message lists those that do.
        """
        return self._named(name, self.ready.model, "model")

    def embedder(self, name: str | None) -> tuple[ServedModel, Embeddings]:
        """Return the model that embeds under this name.

        Raises:
            ModelNotFound: none does.
        """
        loaded = self.ready
        if loaded.embeddings is None or loaded.embedding_model is None:
            raise ModelNotFound(
                "This server serves no embeddings; start it with LLM_EMBEDDING=true, or name an embedding GGUF in "
                "LLM_EMBEDDING_MODEL.",
                param="model",
            )
        return self._named(name, loaded.embedding_model, "model"), loaded.embeddings

    def models(self) -> list[ServedModel]:
        """Return all served models."""
        loaded = self.ready
        extra = loaded.embedding_model
        return [loaded.model, *([extra] if extra is not None and extra.id != loaded.model.id else [])]

    def _named(self, name: str | None, model: ServedModel, param: str) -> ServedModel:
        names = (model.id, *model.aliases)
        if name is None or "*" in names or name in names:
            return model
        served = ", ".join(sorted({f"'{known.id}'" for known in self.models()}))
        raise ModelNotFound(
            f"The model '{name}' does not exist here or does not serve this route. Served: {served}.", param=param
        )

    async def in_worker(self, work: Callable[..., T], *args: Any) -> T:
        """Run a short piece of CPU work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, work, *args)


def _settle(done: asyncio.Future[Loaded], result: Loaded | None, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is not None:
        done.set_exception(error)
    else:
        assert result is not None
        done.set_result(result)
