"""Fetching with the real client from the stand-in hub: whole models, and everything that goes wrong on the way."""

from __future__ import annotations

import hashlib
import resource
import socket
from collections import deque
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants, hf_hub_download

from llm_local.errors import StartupError
from llm_local.models.download import STALL_S, Download
from llm_local.models.find import find_model
from llm_local.models.progress import Progress
from llm_local.models.pull import Wishes, pull
from llm_local.models.source import HubFile, Source, WebFile, read_source
from tests.models.conftest import Q5, QWEN, Told, Waits, use_endpoint, weights
from tests.models.hub import Hub

Q2 = "qwen2.5-7b-instruct-q2_k.gguf"
SINGLE = HubFile(QWEN, Q2)
BOTH = HubFile(QWEN, "qwen2.5-7b-instruct-q5_k_m.gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def fetch(source: Source, folder: Path, waits: Waits, checksum: str = "sha256:auto", **patience: float) -> list[str]:
    """Pull, and return what was said."""
    told = Told()
    path = pull(source, Wishes(folder, checksum), waits.patience(**patience), Progress(told))  # type: ignore[arg-type]
    assert path.parent == folder
    return told.notes


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".origin"))


def test_all_shards_come_under_their_published_names_and_nothing_else_is_left(
    hub: Hub, folder: Path, waits: Waits
) -> None:
    fetch(BOTH, folder, waits)
    assert left(folder) == Q5
    assert [(folder / name).read_bytes() for name in Q5] == [weights(name) for name in Q5]
    assert find_model("Qwen2.5-7B-Instruct-Q5_K_M.gguf", None, folder) == folder / Q5[0]


def test_what_is_there_is_not_fetched_again(hub: Hub, folder: Path, waits: Waits) -> None:
    fetch(BOTH, folder, waits)
    (folder / Q5[1]).unlink()
    fetch(BOTH, folder, waits)
    assert hub.sent == {Q5[0]: 300_000, Q5[1]: 600_000}


def test_a_cut_connection_is_gone_on_with_where_it_was_cut(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.cuts = deque([100_000, 50_000, 0])
    notes = fetch(SINGLE, folder, waits)
    assert (folder / Q2).read_bytes() == weights(Q2)
    assert hub.sent[Q2] == 300_000
    assert [seen.range for seen in hub.seen if "/store/" in seen.path] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
        "bytes=150000-",
    ]
    assert waits.slept == [1, 1, 2]
    assert "the connection" in notes[1]
    assert "trying again in 1 s (1 of 3)" in notes[1]


def test_tries_are_counted_anew_when_bytes_came_and_end_when_none_do(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.cuts = deque([1000] * 10)
    fetch(SINGLE, folder, waits, retries=1)
    hub.faults.cuts = deque([0] * 10)
    with pytest.raises(StartupError, match=r"failed after 3 tries: the connection .*start again and it goes on"):
        fetch(BOTH, folder, waits, retries=2)


def test_no_retries_means_one_try(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.answers = deque([(500, {})])
    with pytest.raises(StartupError, match="failed after one try: the hub answered 500"):
        fetch(SINGLE, folder, waits, retries=0)
    assert waits.slept == []


def test_what_failed_is_resumed_by_the_next_start(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.cuts = deque([200_000, 0, 0])
    with pytest.raises(StartupError):
        fetch(SINGLE, folder, waits, retries=1)
    assert not (folder / Q2).exists()
    fetch(SINGLE, folder, waits)
    assert hub.sent[Q2] == 300_000
    assert left(folder) == [Q2]


def test_bytes_of_another_version_are_not_gone_on_with(hub: Hub, folder: Path, waits: Waits, tmp_path: Path) -> None:
    hub.faults.cuts = deque([200_000, 0])
    with pytest.raises(StartupError):
        fetch(SINGLE, folder, waits, retries=0)
    hub._stored.clear()
    new = hub.add(QWEN, Q2, weights("a new upload"))
    hub.faults.cuts.clear()
    fetch(SINGLE, folder, waits)
    assert (folder / Q2).read_bytes() == new
    assert left(folder) == [Q2]


def test_a_server_without_ranges_is_asked_from_the_beginning(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.ranges = False
    hub.faults.cuts = deque([100_000])
    fetch(SINGLE, folder, waits)
    assert (folder / Q2).read_bytes() == weights(Q2)
    assert hub.sent[Q2] == 400_000


def test_a_server_without_ranges_that_always_breaks_is_given_up(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.ranges = False
    hub.faults.cuts = deque([100_000] * 20)
    with pytest.raises(StartupError, match="failed after 4 tries"):
        fetch(SINGLE, folder, waits)
    assert hub.count("GET", "/store/") == 4


def test_wrong_bytes_are_never_left_under_the_name(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.wrong = {Q5[1]}
    with pytest.raises(
        StartupError, match=rf"{Q5[1]}: what came has the sha256 .*the server publishes .*nothing of it"
    ):
        fetch(BOTH, folder, waits)
    assert left(folder) == [Q5[0]]
    hub.faults.wrong.clear()
    fetch(BOTH, folder, waits)
    assert left(folder) == Q5


def test_pieces_that_do_not_fit_together_are_fetched_once_more(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.cuts = deque([200_000, 0])
    with pytest.raises(StartupError):
        fetch(SINGLE, folder, waits, retries=0)
    (partial,) = (folder / ".downloads").glob("*.partial")
    damaged = bytearray(partial.read_bytes())
    damaged[1000] ^= 255
    partial.write_bytes(damaged)
    notes = fetch(SINGLE, folder, waits)
    assert any("once more from the beginning" in note for note in notes)
    assert (folder / Q2).read_bytes() == weights(Q2)


def test_a_given_checksum_is_what_counts(hub: Hub, folder: Path, waits: Waits) -> None:
    with pytest.raises(StartupError, match=r"LLM_MODEL_CHECKSUM is 0{64}.*check LLM_MODEL_CHECKSUM"):
        fetch(SINGLE, folder, waits, checksum="sha256:" + "0" * 64)
    assert left(folder) == []
    fetch(SINGLE, folder, waits, checksum="sha256:" + hashlib.sha256(weights(Q2)).hexdigest().upper())
    with pytest.raises(StartupError, match=r"LLM_MODEL_CHECKSUM is that of one file, and .* one of 2 shards"):
        fetch(BOTH, folder, waits, checksum="sha256:" + "0" * 64)


def test_without_checksum_wrong_bytes_are_taken(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.wrong = {Q2}
    fetch(SINGLE, folder, waits, checksum="off")
    assert (folder / Q2).read_bytes() != weights(Q2)


def test_a_busy_hub_is_waited_for_as_long_as_it_says(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.answers = deque([(429, {"Retry-After": "17"}), (503, {}), (500, {})])
    fetch(SINGLE, folder, waits)
    assert waits.slept == [17, 2, 4]


def test_a_busy_store_is_waited_for(hub: Hub, folder: Path, waits: Waits) -> None:
    told = Told()
    ask = Download._connect

    def connect(self: Download, file: object) -> None:
        if not hub.faults.answers and not waits.slept:
            hub.faults.answers = deque([(302, {"Location": f"{hub.store_url}/busy"}), (429, {"Retry-After": "9"})])
        ask(self, file)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Download, "_connect", connect)
        pull(SINGLE, Wishes(folder), waits.patience(), Progress(told))
    assert waits.slept == [9]
    assert "the server answered 429" in told.notes[1]


def test_a_wait_beyond_the_time_limit_is_not_begun(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.answers = deque([(429, {"Retry-After": "7200"})])
    with pytest.raises(StartupError, match=r"the next try would be in 7200 s, after LLM_DOWNLOAD_TIMEOUT \(3600 s\)"):
        fetch(SINGLE, folder, waits)
    assert waits.slept == []


def test_a_download_ends_at_its_time_limit_and_keeps_what_came(hub: Hub, folder: Path, waits: Waits) -> None:
    def tick(progress: Progress) -> None:
        waits.now += 1 if progress.done else 0

    with pytest.raises(
        StartupError, match=r"took longer than LLM_DOWNLOAD_TIMEOUT \(2 s\); start again and it goes on"
    ):
        pull(SINGLE, Wishes(folder), waits.patience(timeout_s=2), Progress(tick))
    (partial,) = (folder / ".downloads").glob("*.partial")
    assert 0 < partial.stat().st_size < 300_000
    fetch(SINGLE, folder, waits)
    assert (folder / Q2).read_bytes() == weights(Q2)


def test_a_connection_that_stalls_is_opened_again(
    hub: Hub, folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STALL_S >= 10
    monkeypatch.setattr("llm_local.models.download.STALL_S", 0.1)
    hub.faults.hold_at = 100_000
    waits.meanwhile = lambda: setattr(hub.faults, "hold_at", None)
    notes = fetch(SINGLE, folder, waits)
    assert any("nothing came for" in note for note in notes)
    assert (folder / Q2).read_bytes() == weights(Q2)


def test_space_is_looked_at_before_anything_is_fetched(hub: Hub, folder: Path, waits: Waits) -> None:
    wishes = Wishes(folder, free_bytes=lambda _: 64 * 2**20 + 599_999)
    with pytest.raises(StartupError, match=r"needs 600 kB more in .*models/, and 68 MB are free: .*LLM_MODELS_DIR"):
        pull(BOTH, wishes, waits.patience(), Progress())
    assert hub.count("GET", "/resolve/") == 0
    pull(BOTH, Wishes(folder, free_bytes=lambda _: 64 * 2**20 + 600_000), waits.patience(), Progress())


def test_only_what_is_missing_needs_space(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.cuts = deque([200_000, 0])
    with pytest.raises(StartupError):
        fetch(SINGLE, folder, waits, retries=0)
    pull(SINGLE, Wishes(folder, free_bytes=lambda _: 64 * 2**20 + 100_000), waits.patience(), Progress())


def test_what_came_of_another_version_makes_room(hub: Hub, folder: Path, waits: Waits) -> None:
    old = folder / ".downloads" / f"{Q2}.0123456789ab.partial"
    old.parent.mkdir(parents=True)
    old.write_bytes(weights("old", 250_000))
    wishes = Wishes(folder, free_bytes=lambda _: 64 * 2**20 + 100_000 + (0 if old.exists() else 250_000))
    pull(SINGLE, wishes, waits.patience(), Progress())
    assert left(folder) == [Q2]


def test_a_disk_that_fills_up_says_so_and_is_not_tried_again(hub: Hub, folder: Path, waits: Waits) -> None:
    # The system's limit of a file's size fails in the same place as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(StartupError, match=r"the disk of .*models/ is full: free some space and start again"):
            fetch(SINGLE, folder, waits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert waits.slept == []
    fetch(SINGLE, folder, waits)
    assert hub.count("GET", "/store/") == 2
    assert hub.seen[-1].range == "bytes=200000-"


def test_a_folder_that_cannot_be_written_says_so(hub: Hub, tmp_path: Path, waits: Waits) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StartupError, match=r"cannot write into .*models/: .*LLM_MODELS_DIR"):
        fetch(SINGLE, tmp_path / "models", waits)


def test_a_file_of_another_size_is_not_touched(hub: Hub, folder: Path, waits: Waits) -> None:
    folder.mkdir()
    (folder / Q2).write_bytes(b"mine")
    with pytest.raises(StartupError, match=r"q2_k.gguf has 4 bytes, and .* has 300000: remove the file"):
        fetch(SINGLE, folder, waits)
    assert (folder / Q2).read_bytes() == b"mine"


def test_who_comes_second_waits_and_uses_what_the_first_fetched(hub: Hub, folder: Path, waits: Waits) -> None:
    (folder / ".downloads").mkdir(parents=True)
    first = FileLock(folder / ".downloads" / f"{Q2}.lock")
    first.acquire()

    def finish() -> None:
        (folder / Q2).write_bytes(weights(Q2))
        first.release()

    waits.meanwhile = finish
    notes = fetch(SINGLE, folder, waits)
    assert any("another process is fetching" in note for note in notes)
    assert hub.sent[Q2] == 0


def test_a_file_in_the_hubs_cache_is_used(hub: Hub, folder: Path, waits: Waits) -> None:
    cached = Path(hf_hub_download(QWEN, Q2, endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE))
    assert find_model(f"{QWEN}:{Q2}", None, folder) == cached
    other = "sha256:" + "0" * 64
    assert find_model(f"{QWEN}:{Q2}", None, folder, checksum=other) == SINGLE
    right = "sha256:" + hashlib.sha256(weights(Q2)).hexdigest()
    assert find_model(f"{QWEN}:{Q2}", None, folder, checksum=right) == cached


def test_a_shard_in_the_hubs_cache_is_not_fetched_again(hub: Hub, folder: Path, waits: Waits) -> None:
    hf_hub_download(QWEN, Q5[0], endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
    hub.sent.clear()
    fetch(BOTH, folder, waits)
    assert hub.sent == {Q5[1]: 300_000}
    assert left(folder) == Q5


def test_a_file_in_the_hubs_cache_whose_name_has_spaces_is_not_fetched_again(
    hub: Hub, folder: Path, waits: Waits
) -> None:
    names = [f"my own-0000{n}-of-00002.gguf" for n in (1, 2)]
    for name in names:
        hub.add("me/mine", name, weights(name))
    hf_hub_download("me/mine", names[0], endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
    hub.sent.clear()
    fetch(HubFile("me/mine", "my own.gguf"), folder, waits)
    assert hub.sent == {names[1]: 300_000}


def test_a_cache_that_may_not_be_looked_into_is_as_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", closed)
    assert find_model(f"{QWEN}:{Q2}", None, folder) == SINGLE


def test_offline_is_one_line_and_what_is_cached_still_works(
    hub: Hub, folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_hub_download(QWEN, Q2, endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    n_seen = len(hub.seen)
    assert isinstance(find_model(f"{QWEN}:{Q2}", None, folder), Path)
    with pytest.raises(
        StartupError, match=r"HF_HUB_OFFLINE is set, and .*q5_k_m.gguf is neither whole in .* unset it, or copy"
    ):
        fetch(BOTH, folder, waits)
    assert len(hub.seen) == n_seen


def test_a_gated_repository_says_where_to_ask_and_opens_with_a_token(
    hub: Hub, folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.gated = {QWEN}
    with pytest.raises(
        StartupError, match=rf"gated \(401\): accept its conditions at {hub.url}/{QWEN} and set HF_TOKEN"
    ):
        fetch(SINGLE, folder, waits)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(StartupError, match=r"gated \(403\)"):
        fetch(SINGLE, folder, waits)
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    fetch(SINGLE, folder, waits)
    assert [seen.token for seen in hub.seen if "/store/" in seen.path] == [None], "the token stays with the hub"


def test_a_token_that_cannot_be_one_is_named(
    hub: Hub, folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc\N{HORIZONTAL ELLIPSIS}")
    with pytest.raises(StartupError, match="HF_TOKEN has letters that are in no token"):
        fetch(SINGLE, folder, waits)


def test_a_missing_repository_says_what_is_near(hub: Hub, folder: Path, waits: Waits) -> None:
    with pytest.raises(
        StartupError, match=r"there is no repository Qwen/Qwen2.5-8B.* or it is private.*did you mean Qwen/"
    ):
        fetch(HubFile("Qwen/Qwen2.5-8B-Instruct-GGUF", "x.gguf"), folder, waits)
    with pytest.raises(StartupError, match="no revision 'v9'; main is the usual one"):
        fetch(HubFile(QWEN, Q2, revision="v9"), folder, waits)


def test_a_missing_file_says_what_is_there(hub: Hub, folder: Path, waits: Waits) -> None:
    says = (
        r"publishes no q6_k.gguf; there are qwen2.5-7b-instruct-fp16.gguf \(4 shards\), .*-q2_k.gguf, .*q5_k_m.gguf \(2"
    )
    with pytest.raises(StartupError, match=says):
        fetch(HubFile(QWEN, "q6_k.gguf"), folder, waits)


def test_no_route_says_what_to_check(folder: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        use_endpoint(nobody, monkeypatch)
        with pytest.raises(
            StartupError, match=rf"{nobody} cannot be reached .*check the network, HTTPS_PROXY and HF_END"
        ):
            fetch(SINGLE, folder, waits)
        with pytest.raises(StartupError, match="check the network, HTTPS_PROXY and the address"):
            fetch(WebFile(f"{nobody}/x.gguf", "x.gguf"), folder, waits)
    assert waits.slept == [1, 2, 4] * 2


def test_redirects_without_end_are_one_line(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.answers = deque([(302, {"Location": f"{hub.url}/api/models/{QWEN}"})] * 500)
    with pytest.raises(StartupError, match=r"asking the hub for .* failed after one try: .*redirects"):
        fetch(SINGLE, folder, waits, retries=0)


def test_an_endpoint_that_is_no_hub_is_named(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.faults.answers = deque([(200, {})])
    with pytest.raises(StartupError, match="does not answer as a hub does: check HF_ENDPOINT"):
        fetch(SINGLE, folder, waits)


def test_a_plain_address_is_fetched_with_ranges(
    hub: Hub, folder: Path, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("plain", "my-Q4_0.gguf", weights("plain"))
    hub.faults.cuts = deque([100_000])
    source = read_source(f"{hub.store_url}/plain/my-Q4_0.gguf", hub.url)
    assert source == WebFile(f"{hub.store_url}/plain/my-Q4_0.gguf", "my-Q4_0.gguf")
    assert source is not None
    fetch(source, folder, waits)
    assert (folder / "my-Q4_0.gguf").read_bytes() == weights("plain")
    assert hub.sent["my-Q4_0.gguf"] == 300_000
    assert "its server publishes no sha256" in caplog.text


def test_all_shards_of_a_plain_address_are_fetched(hub: Hub, folder: Path, waits: Waits) -> None:
    names = [f"my-0000{n}-of-00002.gguf" for n in (1, 2)]
    for name in names:
        hub.add("plain", name, weights(name))
    fetch(WebFile(f"{hub.store_url}/plain/{names[0]}", names[0]), folder, waits)
    assert left(folder) == names


def test_a_plain_address_that_is_none_or_no_model_says_so(hub: Hub, folder: Path, waits: Waits) -> None:
    hub.add("plain", "page.gguf", b"<!doctype html>")
    with pytest.raises(StartupError, match=r"sends is no GGUF: it begins with b'<!doctype ht'; is the address right\?"):
        fetch(WebFile(f"{hub.store_url}/plain/page.gguf", "page.gguf"), folder, waits)
    with pytest.raises(StartupError, match=r"there is nothing at .*none.gguf \(404\): check the address"):
        fetch(WebFile(f"{hub.store_url}/plain/none.gguf", "x.gguf"), folder, waits)
    hub.faults.answers = deque([(401, {})])
    with pytest.raises(StartupError, match=r"may not be read \(401\)"):
        fetch(WebFile(f"{hub.store_url}/plain/page.gguf", "page.gguf"), folder, waits)
    assert left(folder) == []
