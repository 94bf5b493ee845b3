"""A stand-in for the Hugging Face hub: its HTTP API over files of a folder or of a test, with faults to order.

By hand: `python -m tests.models.hub FOLDER` serves FOLDER/OWNER/NAME/FILE and prints its address, for HF_ENDPOINT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

PIECE = 64 * 1024
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/(resolve|raw)/([^/]+)/(.+)")


@dataclass
class Stored:
    """A file of a repository."""

    path: Path
    size: int
    sha256: str


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0


@dataclass
class Faults:
    """What goes wrong, and how often.

    Attributes:
        cuts: of the next answers with a body, each ends after so many bytes and the connection breaks.
        answers: the next requests for files or listings get these instead: status, headers.
        wrong: files that come with other bytes than published.
        ranges: whether a part of a file can be asked for.
        rate: bytes a second of a body, 0 is as fast as it goes.
        gated: repositories that a token opens.
        hold_at: bodies stop there until `release` is set.
    """

    cuts: deque[int] = field(default_factory=deque)
    answers: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    wrong: set[str] = field(default_factory=set)
    ranges: bool = True
    rate: float = 0
    gated: set[str] = field(default_factory=set)
    token: str = "hf_sesame"
    hold_at: int | None = None
    release: threading.Event = field(default_factory=threading.Event)


class Hub:
    """The hub, and beside it on another port the store to which it sends for the bytes, as the real one does."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.faults = folder, Faults()
        self.seen: list[Seen] = []
        self.sent: Counter[str] = Counter()
        self._stored: dict[tuple[str, str], Stored] = {}
        self._lock = threading.Lock()
        self._servers = [_Server(("127.0.0.1", at), self) for at in (port, 0)]
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repository: str, file: str, data: bytes) -> bytes:
        """Publish a file."""
        path = self.folder / repository / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return data

    def files(self, repository: str) -> list[str]:
        """Return what a repository publishes."""
        folder = self.folder / repository
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def commit(self, repository: str) -> str:
        """Return the repository's only commit."""
        return hashlib.sha1(repository.encode()).hexdigest()

    def stored(self, repository: str, file: str) -> Stored | None:
        """Return a file with its size and checksum."""
        path = self.folder / repository / file
        if not path.is_file():
            return None
        with self._lock:
            key = (repository, file)
            if key not in self._stored:
                with path.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
                self._stored[key] = Stored(path, path.stat().st_size, digest)
            return self._stored[key]

    def by_sha256(self, sha256: str) -> Stored | None:
        """Return a file of the store."""
        return next((stored for stored in self._stored.values() if stored.sha256 == sha256), None)

    def count(self, method: str, part: str) -> int:
        """Return how many requests with `part` in their path came."""
        return sum(seen.method == method and part in seen.path for seen in self.seen)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], hub: Hub) -> None:
        super().__init__(address, _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.seen = Seen(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.hub.seen.append(self.seen)
        faults = self.hub.faults
        if faults.answers:
            status, headers = faults.answers.popleft()
            self.answer(status, headers)
        elif path.startswith("/store/"):
            self.send_file(self.hub.by_sha256(path.removeprefix("/store/")), redirected=True)
        elif path.startswith("/plain/"):
            self.send_file(self.hub.stored("plain", path.removeprefix("/plain/")), redirected=False)
        elif (api := API.fullmatch(path)) is not None:
            self.listing(api[1], api[2], api[3])
        elif (file := RESOLVE.fullmatch(path)) is not None:
            self.resolve(file[1], file[3], file[4])
        else:
            self.answer(404)

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def listing(self, repository: str, kind: str | None, revision: str | None) -> None:
        files = self.hub.files(repository)
        commit = self.hub.commit(repository)
        if not files:
            self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
        elif revision not in (None, "main", commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        elif kind == "tree":
            self.json([_tree_entry(file, self.hub.stored(repository, file)) for file in files])
        else:
            siblings = [{"rfilename": file} for file in files]
            self.json({"_id": "1", "id": repository, "modelId": repository, "sha": commit, "siblings": siblings})

    def json(self, document: Any) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def resolve(self, repository: str, revision: str, file: str) -> None:
        stored, commit, faults = self.hub.stored(repository, file), self.hub.commit(repository), self.hub.faults
        if not self.hub.files(repository):
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif stored is None:
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif repository in faults.gated and self.headers.get("Authorization") != f"Bearer {faults.token}":
            status = 403 if self.headers.get("Authorization") else 401
            self.answer(
                status, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {repository} is restricted."}
            )
        else:
            headers = {
                "Location": f"{self.hub.store_url}/store/{stored.sha256}",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(stored.size),
                "X-Linked-Etag": f'"{stored.sha256}"',
                "ETag": f'"{stored.sha256}"',
            }
            self.answer(302, headers)

    def send_file(self, stored: Stored | None, *, redirected: bool) -> None:
        if stored is None:
            self.answer(404)
            return
        faults = self.hub.faults
        begin = self.begin() if faults.ranges else 0
        if begin >= stored.size > 0:
            self.answer(416, {"Content-Range": f"bytes */{stored.size}"})
            return
        status = 206 if begin else 200
        self.seen.status = status
        self.send_response(status)
        self.send_header("Content-Length", str(stored.size - begin))
        self.send_header("ETag", f'"{stored.sha256 if redirected else stored.path.stat().st_mtime_ns}"')
        if faults.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{stored.size - 1}/{stored.size}")
        self.end_headers()
        if self.command != "HEAD":
            with stored.path.open("rb") as file, suppress(ConnectionError):
                self.send_body(file, stored, begin)

    def begin(self) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else 0

    def send_body(self, file: BinaryIO, stored: Stored, begin: int) -> None:
        faults, name = self.hub.faults, stored.path.name
        cut = faults.cuts.popleft() if faults.cuts else None
        for at, piece in _pieces(file, begin, cut, faults.hold_at):
            if faults.hold_at is not None and at >= faults.hold_at:
                faults.release.wait(30)
            data = piece[:-1] + bytes([piece[-1] ^ 1]) if name in faults.wrong else piece
            self.hub.sent[name] += len(data)  # Before they go: whoever has the last of them may look at once.
            self.wfile.write(data)
            self.wfile.flush()
            if faults.rate:
                time.sleep(len(data) / faults.rate)
        if cut is not None and begin + cut < stored.size:
            self.close_connection = True
            self.connection.close()


def _pieces(file: BinaryIO, begin: int, cut: int | None, hold_at: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield where in the file a piece begins, and the piece."""
    file.seek(begin)
    at, left = begin, cut
    while left is None or left > 0:
        n = PIECE if left is None else min(PIECE, left)
        if hold_at is not None and at < hold_at:
            n = min(n, hold_at - at)
        piece = file.read(n)
        if not piece:
            return
        yield at, piece
        at += len(piece)
        left = None if left is None else left - len(piece)


def _tree_entry(file: str, stored: Stored | None) -> dict[str, Any]:
    assert stored is not None
    lfs = {"oid": stored.sha256, "size": stored.size, "pointerSize": 134}
    return {"type": "file", "path": file, "size": stored.size, "oid": stored.sha256[:40], "lfs": lfs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve FOLDER/OWNER/NAME/FILE as the Hugging Face hub would.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--rate", type=float, default=0, metavar="BYTES", help="bytes a second of each file")
    parser.add_argument("--cut", type=int, default=[], action="append", metavar="BYTES", help="break an answer there")
    parser.add_argument("--gated", default=[], action="append", metavar="REPO", help="opened by the token hf_sesame")
    parser.add_argument("--wrong", default=[], action="append", metavar="FILE", help="send other bytes of this file")
    parser.add_argument("--no-ranges", action="store_true", help="always send files from their beginning")
    options = parser.parse_args()
    with Hub(options.folder, options.port) as hub:
        faults = hub.faults
        faults.rate, faults.ranges, faults.gated = options.rate, not options.no_ranges, set(options.gated)
        faults.cuts, faults.wrong = deque(options.cut), set(options.wrong)
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
