"""HTTP/1.1 as far as a load generator needs it: one connection, kept open between requests; `http` and `https`.

Plain asyncio on purpose: on few cores a heavy client takes the time that is measured.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from urllib.parse import SplitResult

CONNECT_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 65536


class ClosedEarly(Exception):
    """The server closed the connection in the middle of an answer."""


class NotHttp(Exception):
    """What came is no HTTP answer."""


class Connection:
    """One connection; used by one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.answered = False
        """Whether a byte of the current answer has come."""
        self._reusable = False

    @classmethod
    async def open(cls, target: SplitResult, tls: ssl.SSLContext | None) -> Connection:
        """Connect.

        Raises:
            OSError, TimeoutError: nobody answers there.
        """
        port = target.port or (443 if tls else 80)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return cls(*await asyncio.open_connection(target.hostname, port, ssl=tls, limit=MAX_HEAD_BYTES))

    @property
    def reusable(self) -> bool:
        """Whether another request can follow: the answer was read to its end and the server has not closed."""
        return self._reusable and not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        """Drop the connection; the server notices."""
        self._writer.close()

    async def request(self, data: bytes) -> tuple[int, dict[str, str]]:
        """Send a whole request; return the status and the headers, with lower-case names."""
        self.answered = self._reusable = False
        self._writer.write(data)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            self.answered = bool(error.partial)
            raise ClosedEarly from None
        except asyncio.LimitOverrunError:
            raise NotHttp from None
        self.answered = True
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1.") or not status[:3].isdigit():
            raise NotHttp
        fields = (line.partition(":") for line in lines)
        return int(status[:3]), {name.strip().lower(): value.strip() for name, _, value in fields}

    async def body(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            ClosedEarly: the connection ended before the body did.
            ValueError: a length is no number.
        """
        try:
            if "chunked" in headers.get("transfer-encoding", "").lower():
                async for piece in self._chunks():
                    yield piece
            elif "content-length" in headers:
                yield await self._reader.readexactly(int(headers["content-length"]))
            else:
                while piece := await self._reader.read(MAX_HEAD_BYTES):
                    yield piece
                return
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ClosedEarly from None
        self._reusable = headers.get("connection", "").lower() != "close"

    async def _chunks(self) -> AsyncIterator[bytes]:
        reader = self._reader
        while line := await reader.readline():
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                while (await reader.readline()).strip():
                    pass
                return
            yield (await reader.readexactly(size + 2))[:-2]
        raise ClosedEarly
