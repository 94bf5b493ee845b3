"""`llm-local serve`: bind, answer `/health` at once, load the weights, serve, shut down."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from typing import Any

import uvicorn
from sse_starlette.sse import AppStatus

from llm_local.config import Settings
from llm_local.errors import StartupError
from llm_local.server.app import create_app
from llm_local.server.runtime import Loaded, Runtime

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
    _set_up_logging(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    from llm_local.models.locate import locate

    path = locate(settings.model, settings.models_dir)
    embedding_path = locate(settings.embedding_model, settings.models_dir) if settings.embedding_model else None
    draft_path = locate(settings.draft_model, settings.models_dir) if settings.draft_model else None
    listener = _bind(settings.host, settings.port)
    engine_died = asyncio.Event()

    def load() -> Loaded:
        from llm_local.cli.fit import Weights
        from llm_local.cli.load import load_model

        return load_model(Weights(path, embedding_path, draft_path), settings, on_death=died)

    def stop() -> None:
        server.should_exit = True

    def died() -> None:
        engine_died.set()
        asyncio.get_running_loop().call_later(DEATH_NOTICE_S, stop)

    runtime = Runtime(settings, load)
    server = _Server(
        uvicorn.Config(
            create_app(runtime, on_failure=stop),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=max(int(settings.drain_timeout), 1),
            timeout_keep_alive=75,
            server_header=False,
        ),
        runtime,
    )

    # Answers that are being streamed at shutdown may finish: uvicorn waits for them up to `drain_timeout`.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    host, port = listener.getsockname()[:2]
    log.info("listening on http://%s:%d, loading %s", host, port, path.name)
    if host not in ("127.0.0.1", "::1") and not settings.api_keys:
        log.warning("anyone who reaches %s:%d can use this server: set LLM_API_KEYS", host, port)
    # Uvicorn raises the signal that stopped it once more when it is done; the exit code is ours to give.
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: None)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))
    if isinstance(runtime.failed, StartupError):
        raise runtime.failed
    return EXIT_BROKEN if engine_died.is_set() or runtime.failed is not None else 0


class _Server(uvicorn.Server):
    """Uvicorn that refuses new requests as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._runtime.loaded is not None:
            self._runtime.loaded.engine.drain()
        super().handle_exit(sig, frame)


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the weights are loaded, so that a wrong one is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        reason = error.strerror or str(error)
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


def _set_up_logging(settings: Settings) -> None:
    level = "DEBUG" if settings.verbose else settings.log_level.upper()
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    for name in ("asyncio", "sse_starlette", "httpx", "uvicorn"):
        logging.getLogger(name).setLevel("WARNING")
