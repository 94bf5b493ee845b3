"""One file over HTTP, in as many pieces as it takes. What has come stays in a file and is not fetched again.

huggingface_hub fetches into a file that it removes when it fails and that another process does not find again, and
compares sizes only. So the bytes are fetched here: from its addresses, with its headers.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx2

from llm_local.address import shown
from llm_local.errors import StartupError
from llm_local.models.patience import Patience, TryAgain
from llm_local.models.progress import Progress
from llm_local.models.remote import BUSY, RemoteFile, retry_after_s

STALL_S = 30.0
"""A connection that brings nothing for so long is opened again."""
PIECE = 2**20
MAGIC = b"GGUF"
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]+)-[0-9]+|\*)/(?:([0-9]+)|\*)", re.IGNORECASE)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that has come.

    Attributes:
        in_one: whether one connection brought all of it.
    """

    sha256: str
    in_one: bool


def http_client() -> httpx2.Client:
    """Return a client that follows redirects, obeys the proxies of the environment and never waits for ever.

    Raises:
        StartupError: a proxy or a certificate that the environment names cannot be used.
    """
    timeout = httpx2.Timeout(STALL_S, connect=10.0)
    try:
        return httpx2.Client(follow_redirects=True, timeout=timeout, headers={"Accept-Encoding": "identity"})
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        raise StartupError(
            f"no connection can be made as the environment says ({reason(error)}): check HTTPS_PROXY, ALL_PROXY and "
            "NO_PROXY (a proxy is http:// or https://), SSL_CERT_FILE and SSL_CERT_DIR"
        ) from None


class Download:
    """Fetches one file into `partial`, which it goes on with where it has bytes already."""

    def __init__(
        self, remote: RemoteFile, partial: Path, client: httpx2.Client, patience: Patience, progress: Progress
    ) -> None:
        self._remote, self._partial, self._client = remote, partial, client
        self._patience, self._progress = patience, progress
        self._digest = hashlib.sha256()
        self._have = self._most = 0
        self._size = remote.size

    def run(self) -> Fetched:
        """Fetch what is missing.

        Raises:
            StartupError: it cannot be had, or the disk is full; what has come stays where it is.
        """
        what = f"fetching {self._remote.name}"
        try:
            with self._partial.open("ab+") as file:
                self._read_back(file)
                resumed, n_connections = self._have > 0, 0
                while not self._complete():
                    n_connections += 1
                    try:
                        self._connect(file)
                        break
                    except TryAgain as failure:
                        self._patience.wait(what, failure, self._progress.say)
                file.flush()
                os.fsync(file.fileno())
        except StartupError:
            if not self._have:
                self._partial.unlink(missing_ok=True)
            raise
        except BrokenPipeError:
            raise  # Of whoever reads how far it is, not of the disk.
        except OSError as error:
            raise StartupError(_disk_trouble(error, self._partial.parent.parent, self._remote.name)) from None
        return Fetched(self._digest.hexdigest(), in_one=n_connections == 1 and not resumed)

    def _complete(self) -> bool:
        return self._size is not None and self._have == self._size

    def _read_back(self, file: BinaryIO) -> None:
        """Hash what came earlier."""
        file.seek(0)
        while block := file.read(PIECE):
            self._digest.update(block)
            self._have += len(block)
        if self._size is not None and self._have > self._size:
            file.truncate(0)
            self._have, self._digest = 0, hashlib.sha256()
        self._most = self._have

    def _start_over(self, file: BinaryIO) -> None:
        file.truncate(0)
        self._progress.advance(-self._have)
        self._have, self._digest, self._size = 0, hashlib.sha256(), self._remote.size

    def _connect(self, file: BinaryIO) -> None:
        headers = dict(self._remote.headers)
        if self._have:
            headers["Range"] = f"bytes={self._have}-"
            if self._remote.version.startswith('"'):
                headers["If-Range"] = self._remote.version
        try:
            with self._client.stream("GET", self._remote.url, headers=headers) as answer:
                if self._check(answer, file):
                    self._take(answer, file)
        except httpx2.TimeoutException:
            raise TryAgain(f"nothing came for {STALL_S:.0f} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise TryAgain(f"the connection broke ({reason(error)})") from None
        except (httpx2.TooManyRedirects, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise StartupError(f"cannot fetch {shown(self._remote.url)}: {error}") from None

    def _check(self, answer: httpx2.Response, file: BinaryIO) -> bool:
        """Return whether the answer's body goes on where the file ends; make it so where that can be done."""
        if answer.status_code in BUSY:
            raise TryAgain(f"the server answered {answer.status_code}", retry_after_s(answer.headers))
        begin, total = _range(answer)
        if answer.status_code == 416:
            if self._size is None and total == self._have:
                return False
            self._start_over(file)
            raise TryAgain("the server has no such range")
        if answer.status_code not in (200, 206):
            raise StartupError(refusal(answer.status_code, self._remote.url))
        if answer.status_code == 206 and not self._goes_on(answer, begin, total):
            self._start_over(file)
            raise TryAgain("the server sent another range, or of another file, than was asked for")
        if answer.status_code == 200 and self._have:
            # No ranges here, or another version by now: from the beginning.
            self._start_over(file)
        if self._size is None:
            self._size = total if answer.status_code == 206 else content_length(answer)
        return True

    def _goes_on(self, answer: httpx2.Response, begin: int | None, total: int | None) -> bool:
        """Tell whether a part is what was asked for, and of the same version: not every server heeds `If-Range`."""
        version, etag = self._remote.version, answer.headers.get("etag")
        same = etag in (None, version) or not version.startswith('"')
        return begin == self._have and same and (None in (total, self._size) or total == self._size)

    def _take(self, answer: httpx2.Response, file: BinaryIO) -> None:
        for piece in answer.iter_raw():
            if self._have == 0 and not piece.startswith(MAGIC[: len(piece)]):
                raise StartupError(
                    f"what {shown(self._remote.url)} sends is no GGUF: it begins with {piece[:12]!r}; is the address "
                    "right?"
                )
            file.write(piece)
            file.flush()  # What has come is there after a kill, too, and for whoever looks how far it is.
            self._digest.update(piece)
            self._have += len(piece)
            if self._have > self._most:
                self._most = self._have
                self._patience.progressed()
            self._progress.advance(len(piece))
            self._patience.check(f"fetching {self._remote.name}")
        size = self._size
        if size is not None and self._have != size:
            have = self._have
            if have > size:
                self._start_over(file)
            raise TryAgain(f"the connection ended at {have} of {size} bytes")
        if not self._have:
            raise StartupError(f"{shown(self._remote.url)} sends an empty file; is the address right?")


def content_length(answer: httpx2.Response) -> int | None:
    """Return how many bytes an answer says that the file has; 0 to HEAD means that the server does not know."""
    length = answer.headers.get("content-length", "")
    return (int(length) or None) if length.isascii() and length.isdigit() else None


def _range(answer: httpx2.Response) -> tuple[int | None, int | None]:
    """Return where a part begins and how long the whole is, as far as the answer says."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    begin, total = found.groups() if found else (None, None)
    return (int(begin) if begin else None), (int(total) if total else None)


def refusal(status: int, url: str) -> str:
    """Return in one line what an answer means for a plain address, and what to do."""
    url = shown(url)
    if status in (401, 403):
        return f"{url} may not be read ({status}): it needs a login, or the link has expired"
    if status in (404, 410):
        return f"there is nothing at {url} ({status}): check the address"
    return f"{url} answered {status}"


def reason(error: Exception) -> str:
    """Return an error's text, or its name where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _disk_trouble(error: OSError, folder: Path, name: str) -> str:
    if error.errno in NO_SPACE:
        return (
            f"the disk of {folder}/ is full: free some space and start again, it goes on where it stopped; "
            "or name another folder in LLM_MODELS_DIR, or take a smaller quantization"
        )
    return f"cannot write {name} into {folder}/: {error.strerror or error}; name another folder in LLM_MODELS_DIR"
