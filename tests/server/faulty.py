"""A server that does wrong whatever can be done wrong."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Run an ASGI application on a free port, and stop it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


class Faulty:
    """A server that answers what it is told to, byte by byte; what is in `first` comes before that, once each."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.pause_s = 0.0
        self.waits_for: threading.Event | None = None
        self.breaks_off = False
        self.first: list[tuple[int, dict[str, str], bytes]] = []
        self.seen: dict[str, Any] = {}
        self.n_seen = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "POST":
            body = b""
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            self.n_seen += 1
            self.seen = {"body": body, "path": scope["path"], "headers": dict(scope["headers"])}
        status, headers, chunks = self.status, self.headers, self.chunks
        if self.first:
            status, headers, chunk = self.first.pop(0)
            chunks = [chunk]
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        async for chunk in self._paced(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if self.breaks_off:
            raise RuntimeError("broke off")
        await send({"type": "http.response.body", "body": b""})

    async def _paced(self, chunks: list[bytes]) -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
            await asyncio.sleep(self.pause_s)
            while self.waits_for is not None and not self.waits_for.is_set():
                await asyncio.sleep(0.001)
