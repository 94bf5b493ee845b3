"""What signals do to a running server: the first SIGTERM or SIGINT drains it, the second ends it, SIGHUP reloads.

Event loop, but for the handlers themselves, which interrupt the main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import uvicorn

from llm_local.errors import StartupError
from llm_local.server.runtime import Runtime

log = logging.getLogger("llm_local")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS_S = 5
"""How long clients have for the last bytes of their answers, once the engine has stopped."""


class Server(uvicorn.Server):
    """Uvicorn that goes on listening while it drains, so that probes and new requests are answered (503).

    Args:
        config: its `timeout_graceful_shutdown` is set here.
        reloads: what SIGHUP reads again, by what it is called in the log; with none, SIGHUP ends the process as usual.
    """

    def __init__(
        self, config: uvicorn.Config, runtime: Runtime, reloads: Mapping[str, Callable[[], None]] | None = None
    ) -> None:
        config.timeout_graceful_shutdown = LAST_WORDS_S
        super().__init__(config)
        self._runtime = runtime
        self._reloads = reloads or {}
        self._drained_by: float | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; the exit code is the caller's to give."""
        handlers: dict[signal.Signals, Any] = dict.fromkeys(STOP_SIGNALS, self.handle_exit)
        if self._reloads:
            loop = asyncio.get_running_loop()
            handlers[signal.SIGHUP] = lambda *_: loop.call_soon_threadsafe(self.reload)
        before = {sign: signal.signal(sign, handler) for sign, handler in handlers.items()}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to drain, or at the second time end at once."""
        # It interrupts whatever runs, perhaps a request, whose id the lines of the log must not have.
        contextvars.Context().run(self._stop, signal.Signals(sig))

    def _stop(self, sig: signal.Signals) -> None:
        if self._drained_by is not None:
            log.warning("%s again: ending at once", sig.name)
            os._exit(128 + sig)
        seconds = self._runtime.settings.drain_timeout
        self._drained_by = time.monotonic() + seconds
        self._runtime.drain()
        if n_running := len(self.server_state.tasks):
            log.info("%s: no new requests; %d running ones have %.0f s", sig.name, n_running, seconds)
        else:
            log.info("%s: no request runs; stopping", sig.name)

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether it is time to stop."""
        if await super().on_tick(counter):
            return True
        return self._drained_by is not None and (not self.server_state.tasks or time.monotonic() >= self._drained_by)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the engine, which ends what still runs with an error, then let uvicorn send that and close."""
        if self.server_state.tasks:
            log.warning("%d requests did not end in time; they are cancelled", len(self.server_state.tasks))
        await self._runtime.end()
        await super().shutdown(sockets)

    def reload(self) -> None:
        """Read keys and certificates again; what cannot be used stays as it was."""
        for name, read in self._reloads.items():
            try:
                read()
            except StartupError as error:
                log.error("SIGHUP: %s not reloaded, the old ones stay: %s", name, error)
            else:
                log.info("SIGHUP: %s reloaded", name)
