"""Builds what the server serves from the settings: here `llama` is plugged into `engine` and `server`."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from llm_local.chat.template import ChatTemplate
from llm_local.cli.fit import (
    LEAST_HOST_CACHE_BYTES,
    Weights,
    choose_layers,
    context_params,
    host_cache_bytes,
    no_generator,
)
from llm_local.config import Settings
from llm_local.engine.disk_cache import DiskCache
from llm_local.engine.engine import Engine
from llm_local.engine.host_cache import HostCache
from llm_local.engine.radix_tree import Tokens
from llm_local.errors import StartupError
from llm_local.llama import host
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.drafter import LlamaDrafter, check_same_vocabulary
from llm_local.llama.embedder import Embedder
from llm_local.llama.grammar import LlamaGrammars
from llm_local.llama.model import LlamaModel
from llm_local.llama.plan import summary
from llm_local.llama.pooling import Pooling
from llm_local.models.names import quantization, served_name
from llm_local.server.runtime import Loaded, ServedModel
from llm_local.server.warm_prefixes import read_warm_prompts, warm_tokens
from llm_local.structured.grammars import Grammars
from llm_local.structured.guidance import Guidance, build_tokenizer
from llm_local.structured.native import NativeEngine

T = TypeVar("T")

log = logging.getLogger("llm_local")

PARK_AFTER = 8
"""Steps after which the KV of an idle sequence leaves the cells of a CPU, where it would slow every step down."""

GPU_TARGET_GAP_S = 0.05
"""Longest step in which answers run, where steps are short."""


def load_model(weights: Weights, settings: Settings, on_death: Callable[[], None]) -> Loaded:
    """Load the weights and create the contexts.

    Raises:
        StartupError: something cannot be loaded or does not fit; what was loaded is freed.
    """
    with ExitStack() as undo:
        prompts = read_warm_prompts(settings.warm_prefixes.expanduser()) if settings.warm_prefixes is not None else []
        params = context_params(settings, n_pinned=len(prompts))
        layers = choose_layers(weights, settings, params)
        for warning in layers.plan.warnings:
            log.warning("%s", warning)
        path = weights.model
        model = LlamaModel(path, n_gpu_layers=layers.model, mmap=settings.mmap, mlock=settings.mlock)
        undo.callback(model.close)
        if settings.mlock:
            _warn_unless_locked(model)
        guidance = in_background("grammar tables", lambda: _guidance(model, settings))
        undo.callback(guidance.exception)
        if not model.can_generate:
            raise StartupError(no_generator(path.name, model.architecture))
        window = _window(settings, model)
        backend = LlamaBackend(model, params)
        undo.callback(backend.close)
        drafter = _drafter(model, weights.draft, settings, params, layers.draft, window)
        if drafter is not None:
            undo.callback(drafter.close)
        embedder = _embedder(model, weights.embedding, settings, params.n_threads, layers.embedding)
        if embedder is not None:
            undo.callback(embedder.close, StartupError("the start failed"))
        template = ChatTemplate.load(settings.chat_template, model.chat_template, _token_texts(model))
        if model.chat_template is None and settings.chat_template is None:
            log.warning("%s has no chat template; using chatml. LLM_CHAT_TEMPLATE chooses another", path.name)
        prefixes = warm_tokens(prompts, template, model, window=window, n_cells=backend.n_ctx)
        step_times = backend.warm_up()
        host_bytes = host_cache_bytes(settings, backend.n_ctx * backend.cell_bytes, layers)
        _check_prefixes_come_back(prefixes, backend.cell_bytes, settings, host_bytes)
        engine = Engine(
            backend,
            max_running=settings.parallel,
            queue_max=settings.queue_max,
            window=window,
            target_gap_s=_target_gap_s(settings, on_gpu=layers.model != 0),
            prefill_chunk=settings.prefill_chunk,
            answer_reserve=max(settings.n_predict, 1),
            host=_host_cache(settings, model, backend, host_bytes),
            park_after=PARK_AFTER if layers.model == 0 else None,
            drafter=drafter,
            side_job=embedder,
            on_death=on_death,
        )
        for work, seconds in step_times:
            engine.step_time.note(work, seconds)
        if embedder is not None:
            embedder.connect(engine.wake, engine.post)
        undo.pop_all()
    log.info("%s", summary(layers.machine, layers.plan))
    # What is loaded stays: later collections need not walk over it.
    gc.collect()
    gc.freeze()
    guidance.add_done_callback(lambda _: host.give_back_freed_memory())
    served = _served(model, settings, window, embeds=embedder is not None and embedder.model is model)
    native = NativeEngine(LlamaGrammars(model), compact=settings.json_compact)
    grammars = Grammars(guidance, model.piece, native, settings.grammar_engine, close_json=settings.json_close)

    def close() -> None:
        grammars.close()
        model.close()

    return Loaded(
        model=served,
        engine=engine,
        template=template,
        grammars=grammars,
        embeddings=embedder,
        embedding_model=_served_embedder(embedder, served),
        warm_prefixes=prefixes,
        close=close,
    )


def in_background(name: str, work: Callable[[], T]) -> Future[T]:
    """Run `work` on a thread of its own; what it raises is in the future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            log.exception("%s could not be built", name)
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _guidance(model: LlamaModel, settings: Settings) -> Guidance:
    began = time.perf_counter()
    tokenizer = build_tokenizer(model)
    log.debug("grammar tables built in %.1f s", time.perf_counter() - began)
    return Guidance(tokenizer, model.n_vocab, compact=settings.json_compact)


def _window(settings: Settings, model: LlamaModel) -> int:
    window = min(settings.window, settings.ctx)
    if window > model.n_ctx_train:
        log.warning("the model was trained for %d tokens; sequences are limited to that", model.n_ctx_train)
        window = model.n_ctx_train
    return window


def _host_cache(settings: Settings, model: LlamaModel, backend: LlamaBackend, max_bytes: int) -> HostCache | None:
    """Return the tiers below the KV cells.

    Raises:
        StartupError: the folder of the disk tier cannot be used.
    """
    if model.is_recurrent and (settings.disk_cache_dir is not None or settings.warm_prefixes is not None):
        raise StartupError(
            f"{model.path.name} ({model.architecture}) has a state that cannot be cut at a prefix; "
            "unset LLM_DISK_CACHE_DIR and LLM_WARM_PREFIXES"
        )
    if not max_bytes:
        return None
    disk = None
    if settings.disk_cache_dir is not None:
        folder = settings.disk_cache_dir.expanduser()
        disk = DiskCache.open(folder, backend.state_key(), settings.disk_cache_mb * 2**20)
    # Unless it is set, chats take no more of it than they always did: it is larger for the sake of conversations.
    short = LEAST_HOST_CACHE_BYTES if settings.host_cache_mb is None else None
    return HostCache(max_bytes, disk, short)


def _check_prefixes_come_back(
    prefixes: SequenceOf[Tokens], cell_bytes: int, settings: Settings, host_bytes: int
) -> None:
    """Warn of what the disk tier cannot bring back, because it comes through the host's memory."""
    largest = max(map(len, prefixes), default=0) * cell_bytes
    if settings.disk_cache_dir is not None and largest > host_bytes:
        log.warning(
            "the largest warm prefix has %.0f MiB, more than LLM_HOST_CACHE_MB (%d): it is computed at each start",
            largest / 2**20, host_bytes // 2**20,
        )  # fmt: skip


def _target_gap_s(settings: Settings, *, on_gpu: bool) -> float | None:
    target_ms: float | None = settings.target_gap_ms
    if target_ms is None:
        return GPU_TARGET_GAP_S if on_gpu else None
    return target_ms / 1e3


def _warn_unless_locked(model: LlamaModel) -> None:
    locked = host.locked_bytes()
    if locked is not None and locked < model.size_bytes * 0.9:
        log.warning(
            "LLM_MLOCK: only %d of %d MB of weights could be locked; raise the limit (ulimit -l, or memlock in Docker)",
            locked // 2**20,
            model.size_bytes // 2**20,
        )


def _drafter(
    model: LlamaModel, path: Path | None, settings: Settings, params: ContextParams, layers: int, window: int
) -> LlamaDrafter | None:
    if path is None:
        return None
    draft = LlamaModel(path, n_gpu_layers=layers, mmap=settings.mmap, mlock=settings.mlock)
    try:
        check_same_vocabulary(model, draft)
        if draft.is_recurrent or model.is_recurrent:
            raise StartupError(f"LLM_DRAFT_MODEL: {path.name} cannot draft here: a recurrent state cannot be cut back")
        return LlamaDrafter(draft, replace(params, backend_sampling=False), window)
    except BaseException:
        draft.close()
        raise


def _embedder(
    model: LlamaModel, embedding_path: Path | None, settings: Settings, threads: int, layers: int
) -> Embedder | None:
    if not settings.embedding:
        return None
    own = LlamaModel(embedding_path, n_gpu_layers=layers) if embedding_path is not None else None
    chosen = own or model
    return Embedder(
        chosen,
        window=min(settings.embedding_ctx, chosen.n_ctx_train),
        n_threads=threads,
        pooling=None if settings.embedding_pooling == "auto" else Pooling(settings.embedding_pooling),
        owns_model=own is not None,
        # Most who chat embed nothing: its 68 MB (of a 1.5B) wait for the first request, unless others could take them.
        at_once=own is not None or chosen.on_gpu,
    )


def _served(model: LlamaModel, settings: Settings, window: int, *, embeds: bool) -> ServedModel:
    default = served_name(model.path)
    name = settings.model_id or default
    # Clients take the name from the same environment as the server. An address is no name, and may hold a secret.
    named = ("model" in settings.model_fields_set or not settings.model_url) and "://" not in settings.model
    given = [settings.model, Path(settings.model).name] if named else []
    aliases = dict.fromkeys([*settings.model_aliases, default, model.path.name, model.path.stem, *given])
    return ServedModel(
        id=name,
        aliases=tuple(alias for alias in aliases if alias != name),
        vocabulary=model,
        context_window=window,
        quantization=quantization(model.path),
        size_bytes=model.size_bytes,
        n_params=model.n_params,
        n_embd=model.n_embd,
        embeds=embeds,
    )


def _served_embedder(embedder: Embedder | None, served: ServedModel) -> ServedModel | None:
    if embedder is None:
        return None
    model = embedder.model
    if served.vocabulary is model:
        return served
    return ServedModel(
        id=served_name(model.path),
        aliases=(model.path.name, model.path.stem, *(["*"] if "*" in served.aliases else [])),
        vocabulary=model,
        context_window=embedder.window,
        quantization=quantization(model.path),
        size_bytes=model.size_bytes,
        n_params=model.n_params,
        n_embd=model.n_embd,
        generates=False,
        embeds=True,
    )


def _token_texts(model: LlamaModel) -> dict[str, str]:
    return {"bos_token": model.special_text("bos"), "eos_token": model.special_text("eos")}
