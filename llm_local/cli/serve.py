"""`llm-local serve`: bind, answer `/health` at once, load the weights, serve, shut down."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn
from sse_starlette.sse import AppStatus

from llm_local.chat.template import ChatTemplate
from llm_local.cli import logs
from llm_local.cli.advice import too_many_threads
from llm_local.cli.native import check_native
from llm_local.cli.signals import Server
from llm_local.cli.tls import Tls
from llm_local.cli.weights import WeightFiles
from llm_local.config import Settings, variable_name
from llm_local.errors import StartupError
from llm_local.llama import host
from llm_local.server.app import create_app
from llm_local.server.connection import Connection
from llm_local.server.runtime import Loaded, Runtime
from llm_local.server.tracing import Tracing
from llm_local.server.upstream import Upstream

log = logging.getLogger("llm_local")

EXIT_BROKEN = 1
DEATH_NOTICE_S = 1.0
"""How long a server whose engine died still answers 503, before the process exits."""
SWITCH_INTERVAL_S = 0.001
"""How soon the engine thread gets the interpreter back from a busy event loop after a C call.

Python's default of 5 ms made the p95 of a 0.08 ms call 8 ms; with 1 ms it is 0.09 ms.
"""


def serve(settings: Settings) -> int:
    """Serve until told to stop; return the exit code.

    Raises:
        StartupError: the port is taken, or the model cannot be loaded.
    """
    logs.set_up(settings)
    tracing = Tracing() if settings.tracing else None
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if settings.engine == "llama.cpp" and settings.chat_template is not None:
        # A wrong one is known before the weights are fetched and loaded.
        ChatTemplate.load(settings.chat_template, None, {})
    upstream = _upstream(settings) if settings.engine == "openai_compatible" else None
    weights = WeightFiles(settings) if upstream is None else None
    if settings.ineffective:
        names = ", ".join(variable_name(name) for name in settings.ineffective)
        log.warning("with LLM_ENGINE=%s these change nothing: %s", settings.engine, names)
    if upstream is None and (too_many := too_many_threads(settings, host.usable_cpus())) is not None:
        log.warning("%s", too_many)
    tls = Tls.of(settings)
    listener = _bind(settings.host, settings.port)
    engine_died = asyncio.Event()

    def load() -> Loaded:
        check_native()
        from llm_local.cli.load import load_model

        assert weights is not None
        return load_model(weights.get(), settings, on_death=died)

    def stop() -> None:
        server.should_exit = True

    def died() -> None:
        engine_died.set()
        asyncio.get_running_loop().call_later(DEATH_NOTICE_S, stop)

    runtime = Runtime(settings, load if weights is not None else None, upstream, tracing=tracing)
    if weights is not None:
        runtime.doing, runtime.give_up = weights.doing, weights.give_up
    app = create_app(runtime, on_failure=stop)
    reloads = {"certificates": tls.reload} if tls is not None else {}
    if runtime.keys is not None and runtime.keys.path is not None:
        reloads["API keys"] = runtime.keys.reload
    server = Server(
        uvicorn.Config(
            app,
            http=partial(Connection, settings, runtime.metrics),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=75,
            server_header=False,
            ssl_context_factory=(lambda *_: tls.context) if tls is not None else None,
        ),
        runtime,
        reloads,
    )

    # Answers that are being streamed at shutdown may finish: `Server` waits for them up to `drain_timeout`.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    what = f"forwarding to {upstream.shown}" if upstream is not None else f"loading {weights.name if weights else ''}"
    _announce(listener, settings, "http" if tls is None else "https", what)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))
    if isinstance(runtime.failed, StartupError):
        raise runtime.failed
    code = EXIT_BROKEN if engine_died.is_set() or runtime.failed is not None else 0
    if runtime.loader is not None and runtime.loader.is_alive():
        # Told to stop while it loads: the thread is in llama.cpp, which nothing can interrupt.
        logging.shutdown()
        os._exit(code)
    return code


def _announce(listener: socket.socket, settings: Settings, scheme: str, what: str) -> None:
    host, port = listener.getsockname()[:2]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    log.info("listening on %s://%s, %s", scheme, where, what)
    if not ip_address(host).is_loopback and not settings.api_keys and settings.api_keys_file is None:
        log.warning("anyone who reaches %s can use this server: set LLM_API_KEYS or LLM_API_KEYS_FILE", where)


def _upstream(settings: Settings) -> Upstream:
    from llm_local.models.names import served_name

    # An address is no name, and may hold a secret.
    known = "model" in settings.model_fields_set and "://" not in settings.model
    ours = settings.model_id or (served_name(Path(settings.model)) if known else None)
    more = [settings.model, Path(settings.model).name] if known else []
    names = dict.fromkeys(name for name in (ours, *settings.model_aliases, *more) if name)
    return Upstream(settings, tuple(names))


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the weights are loaded, so that a wrong one is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` means IPv4, too, on every system.
        listener.bind(address)
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StartupError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --host and --port, or LLM_HOST and LLM_PORT"
        ) from None
    listener.setblocking(False)
    return listener


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
