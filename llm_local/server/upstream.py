"""`LLM_ENGINE=openai_compatible`: an OpenAI server, such as vLLM, that computes instead of this process. Event loop.

A request goes on as it came; only the model's name is changed, to what the upstream calls it. So does the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson

from llm_local import __version__
from llm_local.address import shown
from llm_local.config import Settings
from llm_local.errors import Draining, LLMLocalError, ModelNotFound, QueueFull, UpstreamUnavailable
from llm_local.server.requestlog import RequestRecord
from llm_local.server.upstream_errors import from_answer, from_exception, no_listing
from llm_local.server.upstream_exchange import Exchange

log = logging.getLogger(__name__)

CONNECT_S = 5.0
LISTING_S = 5.0
"""How long the upstream may take to list its models, by which its health is known."""
LISTING_AGE_S = 30.0
"""How old the list may be by which the sole model of the upstream gets our names."""


class Upstream:
    """The upstream and the connections to it.

    Args:
        names: what clients call the model here, its id first; `*` is any name.
    """

    def __init__(self, settings: Settings, names: tuple[str, ...] = ()) -> None:
        assert settings.upstream_url is not None
        self.url: str = settings.upstream_url
        self.model: str | None = settings.upstream_model
        self.names = names
        self._open: set[Exchange] = set()
        self._max_open = max(settings.queue_max, 1)
        self._timeout_s = settings.request_timeout
        self.draining = False
        self._headers = {"Accept-Encoding": "identity", "User-Agent": f"llm_local/{__version__}"}
        if settings.upstream_api_key:
            self._headers["Authorization"] = f"Bearer {settings.upstream_api_key}"
        self._listed: list[str] = []
        self._listed_at = 0.0
        self._http: httpx.AsyncClient

    @property
    def shown(self) -> str:
        """The address for the log."""
        return shown(self.url)

    @property
    def n_open(self) -> int:
        """Requests that are at the upstream."""
        return len(self._open)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep connections open."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        async with httpx.AsyncClient(headers=self._headers, limits=limits, timeout=timeout) as self._http:
            first = asyncio.create_task(self._first_look())
            yield
            first.cancel()

    def drain(self) -> None:
        """Take no more requests. Any thread."""
        self.draining = True

    def end(self) -> None:
        """End what is still at the upstream with an error, which goes out to its client."""
        for exchange in list(self._open):
            exchange.end()

    async def check(self) -> None:
        """Ask whether requests would be answered.

        Raises:
            Draining, UpstreamUnavailable, UpstreamFailed: they would not.
        """
        if self.draining:
            raise Draining("The server is shutting down.", retry_after_s=5)
        await self.models()

    async def models(self) -> list[dict[str, Any]]:
        """Return what the upstream serves, under the names that it has here.

        Raises:
            UpstreamUnavailable, UpstreamFailed: it does not answer, or does not serve `upstream_model`.
        """
        listed = await self._listing()
        if self.model is not None:
            listed = [entry for entry in listed if entry["id"] == self.model] or no_listing(self.model, listed)
        if len(listed) != 1:
            return listed
        names = [name for name in (*self.names, listed[0]["id"]) if name != "*"]
        return [listed[0] | {"id": names[0], "aliases": list(dict.fromkeys(names[1:]))}]

    async def open(self, path: str, body: Mapping[str, Any], record: RequestRecord) -> Exchange:
        """Send a request and wait for the head of its answer; the record learns which model it goes to.

        Raises:
            QueueFull, Draining, ModelNotFound: it is not sent.
            DeadlineExceeded, UpstreamRefused, UpstreamFailed, UpstreamUnavailable: it is not answered.
        """
        if self.draining:
            raise Draining("The server is shutting down.", retry_after_s=5)
        if self.n_open >= self._max_open:
            raise QueueFull(f"The server is busy: {self.n_open} requests are at the upstream.", retry_after_s=1)
        exchange = Exchange(self.shown, time.monotonic() + self._seconds(body), self._open)
        try:
            async with exchange.guard():
                record.model = await self.named(_name(body))
            log.debug("%s goes to %s%s as %s", record.id, self.shown, path, record.model)
            if (name := self._id()) is not None:
                exchange.call_model(name)
            await exchange.send(self._http, self.url, path, {**body, "model": record.model}, record.id)
        except BaseException:
            exchange.close()
            raise
        return exchange

    async def named(self, name: str | None) -> str:
        """Return what the upstream calls the model that a request names.

        Raises:
            ModelNotFound: it is none of those that are served.
        """
        ours = name is None or name in self.names or "*" in self.names
        if self.model is not None:
            if ours or name == self.model:
                return self.model
            served = ", ".join(f"'{known}'" for known in dict.fromkeys((*self.names, self.model)))
            raise ModelNotFound(f"The model '{name}' does not exist here. Served: {served}.", param="model")
        if not ours:
            assert name is not None
            return name
        if not self._listed or time.monotonic() - self._listed_at > LISTING_AGE_S:
            await self._listing()
        listed = self._listed
        if name is not None and name in listed:
            return name
        if len(listed) == 1:
            return listed[0]
        served = ", ".join(f"'{known}'" for known in listed)
        raise ModelNotFound(f"Name one of the models in 'model': {served}.", param="model")

    def _id(self) -> str | None:
        """Return the id under which `models` lists the only model; None where there are several, or it is theirs."""
        is_only = self.model is not None or len(self._listed) == 1
        return next((name for name in self.names if name != "*"), None) if is_only else None

    def _seconds(self, body: Mapping[str, Any]) -> float:
        asked = body.get("timeout")
        if isinstance(asked, bool) or not isinstance(asked, (int, float)) or asked <= 0:
            return self._timeout_s
        return min(float(asked), self._timeout_s)

    async def _listing(self) -> list[dict[str, Any]]:
        log.debug("asking %s for its models", self.shown)
        try:
            async with asyncio.timeout(LISTING_S):
                answer = await self._http.get(f"{self.url}/models")
        except TimeoutError:
            raise UpstreamUnavailable(
                f"The upstream did not list its models within {LISTING_S:.0f} s.", retry_after_s=5
            ) from None
        except httpx.HTTPError as error:
            raise from_exception(error, self.shown) from None
        if not answer.is_success:
            raise from_answer(answer.status_code, answer.headers, answer.content, "/models")
        entries = _entries(answer.content)
        self._listed, self._listed_at = [entry["id"] for entry in entries], time.monotonic()
        return entries

    async def _first_look(self) -> None:
        try:
            names = [str(entry["id"]) for entry in await self.models()]
        except LLMLocalError as error:
            log.warning("not ready: %s", error)
        else:
            log.info("ready: the upstream serves %s", ", ".join(names))


def _name(body: Mapping[str, Any]) -> str | None:
    name = body.get("model")
    return name if isinstance(name, str) else None


def _entries(data: bytes) -> list[dict[str, Any]]:
    try:
        entries = orjson.loads(data)["data"]
        return [entry for entry in entries if isinstance(entry["id"], str)]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise UpstreamUnavailable(
            "The upstream's /models is not OpenAI's list; does LLM_UPSTREAM_URL end in /v1?", retry_after_s=5
        ) from None
