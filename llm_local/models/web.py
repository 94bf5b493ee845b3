"""Files at plain addresses: what a server says of them before they are fetched."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx2

from llm_local.address import shown
from llm_local.errors import StartupError
from llm_local.models.download import content_length, reason, refusal
from llm_local.models.patience import Patience, TryAgain
from llm_local.models.progress import Progress
from llm_local.models.remote import BUSY, RemoteFile, retry_after_s
from llm_local.models.source import WebFile, shard_urls

_SHA256 = re.compile(r"[0-9a-f]{64}")


def web_files(source: WebFile, client: httpx2.Client, patience: Patience, progress: Progress) -> list[RemoteFile]:
    """Return the files at an address, all shards in order.

    Raises:
        StartupError: there is nothing, or the server cannot be reached.
    """
    urls = shard_urls(source.url)
    names = [source.name] if len(urls) == 1 else [PurePosixPath(unquote(urlsplit(url).path)).name for url in urls]
    return [_ask(name, url, client, patience, progress) for name, url in zip(names, urls, strict=True)]


def _ask(name: str, url: str, client: httpx2.Client, patience: Patience, progress: Progress) -> RemoteFile:
    what = f"asking for {shown(url)}"
    while True:
        try:
            answer = client.head(url)
            if answer.status_code not in BUSY:
                return _remote(name, url, answer)
            failure = TryAgain(f"the server answered {answer.status_code}", retry_after_s(answer.headers))
        except httpx2.InvalidURL as error:
            raise StartupError(f"{shown(url)} is no address: {error}") from None
        except httpx2.RequestError as error:
            failure = TryAgain(
                f"it cannot be reached ({reason(error)}): check the network, HTTPS_PROXY and the address"
            )
        patience.check(what)
        patience.wait(what, failure, progress.say)


def _remote(name: str, url: str, answer: httpx2.Response) -> RemoteFile:
    if answer.status_code in (403, 405, 501):
        # A server, or a signed address, that allows GET alone: that will tell.
        return RemoteFile(name, url)
    if answer.status_code != 200:
        raise StartupError(refusal(answer.status_code, url))
    # A hub says it where it redirects. Other servers' ETags may look like a sha256, and are one of something else.
    published = next(
        (a.headers["x-linked-etag"] for a in (*answer.history, answer) if "x-linked-etag" in a.headers), ""
    )
    published = published.strip('"').lower()
    return RemoteFile(
        name,
        url,
        size=content_length(answer),
        sha256=published if _SHA256.fullmatch(published) else None,
        version=answer.headers.get("etag", answer.headers.get("last-modified", "")),
    )
