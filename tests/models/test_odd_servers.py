"""Servers at plain addresses that say little, or something else than they do: nothing wrong gets into the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from llm_local.errors import StartupError
from llm_local.models.find import find_model
from llm_local.models.progress import Progress
from llm_local.models.pull import Wishes, pull
from llm_local.models.remote import RemoteFile
from llm_local.models.source import WebFile
from tests.models.conftest import Waits, weights
from tests.models.hub import Hub

FILE = "x-Q4_0.gguf"
URL = f"http://files.test/{FILE}"
DATA = weights("odd")

Answer = Callable[[httpx2.Request], httpx2.Response]
Fetch = Callable[..., list[httpx2.Request]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def fetch(folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Pull a file from a server that is a function; return what it was asked for."""

    def run(answer: Answer, url: str = URL) -> list[httpx2.Request]:
        seen: list[httpx2.Request] = []

        def note(request: httpx2.Request) -> httpx2.Response:
            seen.append(request)
            return answer(request)

        def client() -> httpx2.Client:
            return httpx2.Client(transport=httpx2.MockTransport(note), follow_redirects=True)

        monkeypatch.setattr("llm_local.models.pull.http_client", client)
        pull(WebFile(url, FILE), Wishes(folder), waits.patience(retries=2), Progress())
        return seen

    return run


class Body(httpx2.SyncByteStream):
    """A body that comes over a network; `cut` breaks the connection at its end."""

    def __init__(self, data: bytes, *, cut: bool = False) -> None:
        self._data, self._cut = data, cut

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        if self._cut:
            raise httpx2.ReadError("cut")


def say(
    data: bytes, length: int | None = None, *, status: int = 200, cut: bool = False, **more: str
) -> httpx2.Response:
    """Return an answer; `length` is what it claims, keywords are headers."""
    headers = {"Content-Length": str(len(data) if length is None else length)}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return httpx2.Response(status, headers=headers, stream=Body(data, cut=cut))


def part(data: bytes, at: int, **more: str) -> httpx2.Response:
    return say(data[at:], status=206, Content_Range=f"bytes {at}-{len(data) - 1}/{len(data)}", **more)


def begin(request: httpx2.Request) -> int:
    return int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def partials(folder: Path) -> list[Path]:
    return list((folder / ".downloads").glob("*.partial"))


def test_an_etag_that_looks_like_a_sha256_is_not_taken_for_one(fetch: Fetch, folder: Path) -> None:
    fetch(lambda _: say(DATA, ETag=f'"{"ab" * 32}"'))
    assert (folder / FILE).read_bytes() == DATA


def test_the_sha256_of_a_hub_that_redirects_is_checked(fetch: Fetch, folder: Path) -> None:
    def answer(request: httpx2.Request, sha256: str) -> httpx2.Response:
        if request.url.path == "/store":
            return say(DATA)
        return say(b"", status=302, Location="/store", X_Linked_Etag=f'"{sha256}"')

    with pytest.raises(StartupError, match="what came has the sha256"):
        fetch(lambda request: answer(request, "0" * 64))
    fetch(lambda request: answer(request, hashlib.sha256(DATA).hexdigest()))
    assert (folder / FILE).read_bytes() == DATA


def test_a_server_that_says_a_length_of_0_to_head_is_asked_all_the_same(fetch: Fetch, folder: Path) -> None:
    fetch(lambda request: say(b"" if request.method == "HEAD" else DATA))
    assert (folder / FILE).read_bytes() == DATA


def test_an_empty_file_is_no_model(fetch: Fetch, folder: Path) -> None:
    with pytest.raises(StartupError, match=r"http://files.test/x-Q4_0.gguf sends an empty file; is the address right"):
        fetch(lambda _: say(b""))
    assert not (folder / FILE).exists()
    assert partials(folder) == []


def test_a_whole_file_that_has_not_its_name_yet_is_not_fetched_again_where_its_length_is_unknown(
    fetch: Fetch, folder: Path
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "HEAD":
            return say(b"", status=403)
        if begin(request) >= len(DATA):
            return say(b"", status=416, Content_Range=f"bytes */{len(DATA)}")
        return say(DATA)

    fetch(answer)
    # As a process leaves it that is killed just before the last step.
    (folder / FILE).rename(folder / ".downloads" / RemoteFile(FILE, URL).partial_name)
    asked = fetch(answer)
    assert [request.headers.get("Range") for request in asked] == [None, f"bytes={len(DATA)}-"]
    assert (folder / FILE).read_bytes() == DATA


def test_parts_of_two_versions_are_not_joined_where_the_server_does_not_heed_if_range(
    fetch: Fetch, folder: Path
) -> None:
    new = weights("new")
    parts = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "HEAD":
            return say(b"", len(DATA), ETag='"1"')
        at = begin(request)
        parts.append(at)
        if len(parts) == 1:
            return say(DATA[:1000], len(DATA), cut=True, ETag='"1"')
        return part(new, at, ETag='"2"') if at else say(new, ETag='"2"')

    fetch(answer)
    assert (folder / FILE).read_bytes() == new
    assert parts == [0, 1000, 0]


def test_an_address_that_was_signed_anew_goes_on_where_the_old_one_stopped(fetch: Fetch, folder: Path) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "HEAD":
            return say(b"", len(DATA), ETag='"1"')
        at, is_old = begin(request), "old" in str(request.url)
        if is_old:
            return say(b"", status=403) if at else say(DATA[:1000], len(DATA), cut=True, ETag='"1"')
        return part(DATA, at, ETag='"1"') if at else say(DATA, ETag='"1"')

    with pytest.raises(StartupError, match="may not be read"):
        fetch(answer, url=f"{URL}?signature=old")
    asked = fetch(answer, url=f"{URL}?signature=new")
    assert asked[-1].headers.get("Range") == "bytes=1000-"
    assert (folder / FILE).read_bytes() == DATA


def test_what_lets_others_fetch_is_not_in_messages(fetch: Fetch, waits: Waits) -> None:
    url = "http://me:secret@files.test/x-Q4_0.gguf?signature=secret"
    assert str(WebFile(url, "x")) == "http://files.test/x-Q4_0.gguf?..."
    for status in (403, 404, 503):
        with pytest.raises(StartupError) as error:
            fetch(lambda _, status=status: say(b"", status=status), url=url)
        assert "secret" not in str(error.value)
        assert "files.test" in str(error.value)
    with pytest.raises(StartupError, match="sends is no GGUF") as error:
        fetch(lambda _: say(b"<html>"), url=url)
    assert "secret" not in str(error.value)


def test_shards_at_an_address_keep_their_names_and_are_found_again(hub: Hub, folder: Path, waits: Waits) -> None:
    names = [f"their-0000{n}-of-00002.gguf" for n in (1, 2)]
    for name in names:
        hub.add("plain", name, weights(name))
    url = f"{hub.store_url}/plain/{names[0]}"
    source = find_model("my.gguf", url, folder)
    assert source == WebFile(url, names[0])
    assert isinstance(source, WebFile)
    path = pull(source, Wishes(folder), waits.patience(), Progress())
    assert find_model("my.gguf", url, folder) == path


def test_what_is_left_of_another_version_goes_whatever_the_name(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.add("plain", "x[1].gguf", DATA)
    stale = folder / ".downloads" / "x[1].gguf.0123456789ab.partial"
    stale.parent.mkdir(parents=True)
    stale.touch()
    pull(WebFile(f"{hub.store_url}/plain/x%5B1%5D.gguf", "x[1].gguf"), Wishes(folder), waits.patience(), Progress())
    assert partials(folder) == []


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "socks5://127.0.0.1:1"), ("HTTPS_PROXY", "ftp://127.0.0.1:1")]
)
def test_a_proxy_that_cannot_be_used_is_one_line(
    folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=r"no connection can be made as the environment says .*check HTTPS_PROXY"):
        pull(WebFile(URL, "x.gguf"), Wishes(folder), waits.patience(), Progress())


def test_certificates_that_are_not_there_are_not_blamed_on_the_folder(
    folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(StartupError, match=r"no connection can be made .*SSL_CERT_FILE"):
        pull(WebFile(URL, "x.gguf"), Wishes(folder), waits.patience(), Progress())
