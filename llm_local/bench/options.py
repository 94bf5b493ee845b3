"""What a run of the benchmark is asked to do: the servers and the options, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from llm_local.errors import StartupError


@dataclass(frozen=True, slots=True)
class Server:
    """One server under load: its name in the tables, its base URL without a slash at the end, its process if known."""

    name: str
    url: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How requests come: `clients` that wait for their answers, or `rate` arrivals a second that wait for nobody."""

    clients: int | None = None
    rate: float | None = None

    @property
    def label(self) -> str:
        """Name it in a table."""
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.clients} client{'s' if self.clients != 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything a run depends on besides the servers' own behaviour."""

    servers: tuple[Server, ...]
    workloads: tuple[str, ...] = ("chat",)
    clients: tuple[int, ...] = ()
    """Closed loop; empty: what the workload names."""
    rates: tuple[float, ...] = ()
    """Open loop, requests a second; empty: closed loop."""
    rounds: int = 5
    requests: int | None = None
    """A client and round in the closed loop, a round in the open one."""
    seconds: float | None = None
    """Instead of `requests`: how long new requests are sent in a round."""
    seed: int = 0
    nonce: str = "000000"
    """Digits that no earlier run has used: they keep its prompts out of the servers' caches."""
    model: str | None = None
    max_tokens: int = 64
    prompt_tokens: int | None = None
    temperature: float | None = None
    turns: int = 4
    batch: int = 32
    prediction: bool = False
    plain_openai: bool = False
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields by the name of a server that are added to its requests; `None` takes one away. '' is for all."""
    leave: float = 0.0
    """Share of requests whose client leaves in the middle of the answer."""
    timeout_s: float = 300.0
    api_key: str | None = field(default=None, repr=False)

    def shown(self) -> dict[str, Any]:
        """Return the options for a report; the key is left out."""
        return {name: value for name, value in asdict(self).items() if name != "api_key"}


def parse_server(text: str) -> Server:
    """Read `NAME=URL[@PID]`, or a bare URL, whose host then is the name.

    Raises:
        StartupError: it is neither.
    """
    found = re.fullmatch(r"(?:(?P<name>[^=/:]+)=)?(?P<url>https?://.+?)(?:@(?P<pid>\d+))?/?", text)
    try:
        parts = urlsplit(found["url"]) if found else None
        port = parts.port if parts else None
    except ValueError:
        parts = None
    if not found or not parts or not parts.hostname:
        raise StartupError(f"'{text}' is no server: give NAME=URL or NAME=URL@PID, such as ours=http://127.0.0.1:8080")
    path = parts.path.rstrip("/") or "/v1"
    name = found["name"] or parts.hostname + (f":{port}" if port else "")
    return Server(name, f"{parts.scheme}://{parts.netloc}{path}", int(found["pid"]) if found["pid"] else None)


def parse_servers(texts: list[str]) -> tuple[Server, ...]:
    """Read all servers.

    Raises:
        StartupError: one cannot be read, or two have the same name.
    """
    servers = tuple(parse_server(text) for text in texts)
    names = [server.name for server in servers]
    for name in names:
        if names.count(name) > 1:
            raise StartupError(f"two servers are called '{name}': give each a name, such as {name}-2=URL")
    return servers
