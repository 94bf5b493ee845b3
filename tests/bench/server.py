"""A tiny OpenAI server on asyncio that misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Behave = Callable[["Peer", str, dict[str, Any]], Awaitable[None]]


class Peer:
    """One connection of a client, and the ways to answer it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.head = ""

    async def read(self) -> tuple[str, dict[str, Any]]:
        head = self.head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        size = [line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("content-length")]
        body = await self.reader.readexactly(int(size[0])) if size else b"{}"
        return head.split(" ")[1], json.loads(body)

    async def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)

    def begin_stream(self) -> None:
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, value: Any) -> None:
        self.chunk(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    def text(self, text: str) -> None:
        self.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": None})

    def end_stream(self, n_prompt: int, n_output: int, finish: str = "length", **details: Any) -> None:
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": None})
        self.event(
            {"choices": [], "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_output, **details}},
        )
        self.event(b"[DONE]")
        self.chunk(b"")


async def well(peer: Peer, path: str, body: dict[str, Any]) -> None:
    """Answer as a good server does: one token a chunk."""
    if path.endswith("/models"):
        return await peer.answer(200, {"data": [{"id": "tiny", "context_window": 8192}]})
    if path.endswith("/embeddings"):
        vectors = [{"embedding": "AAAA", "index": index} for index in range(len(body["input"]))]
        return await peer.answer(200, {"data": vectors, "usage": {"prompt_tokens": 7}})
    peer.begin_stream()
    n = body.get("max_tokens") or body["max_completion_tokens"]
    for number in range(n):
        peer.text(f"w{number} ")
        await asyncio.sleep(0)
    n_prompt = sum(len(message["content"]) for message in body["messages"])
    return peer.end_stream(n_prompt, n)


@asynccontextmanager
async def peer(behave: Behave = well, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run the server; yields its base URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                connection = Peer(reader, writer)
                await behave(connection, *await connection.read())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
