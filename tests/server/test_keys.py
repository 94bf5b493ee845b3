"""API keys: where they come from, whose they are, how they change, and that nobody gets to see one."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from llm_local import config
from llm_local.cli import main
from llm_local.errors import StartupError
from llm_local.server.keys import Keys
from tests.fakes import FakeBackend
from tests.server.conftest import serving

CHAT = "/v1/chat/completions"
ENDLESS = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 900, "ignore_eos": True, "stream": True}
SHORT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.txt"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("line", "key", "name"),
    [
        ("sesame", "sesame", "line 1"),
        ("alice: sesame", "sesame", "alice"),
        ("alice:sesame", "sesame", "alice"),
        ("alice=sesame", "sesame", "alice"),
        ("  alice = sesame  ", "sesame", "alice"),
        ("c2VzYW1l==", "c2VzYW1l==", "line 1"),
        ("alice: c2VzYW1l==", "c2VzYW1l==", "alice"),
        ("alice: a:b=c", "a:b=c", "alice"),
        ("ключ", "ключ", "line 1"),
    ],
)
def test_a_line_is_a_key_or_a_name_and_a_key(tmp_path: Path, line: str, key: str, name: str) -> None:
    keys = Keys(path=key_file(tmp_path, f"{line}\n# sesame2\n\n  # more\n"))
    assert len(keys) == 1
    assert keys.owner(key.encode()) == name
    for wrong in ("", "alice", "# sesame2", "sesame ", line + "x"):
        assert keys.owner(wrong.encode()) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# nobody\n\n", "has no key: write one a line"),
        ("alice: open sesame\n", "line 1: a key has spaces"),
        ("a\nb\tc\n", "line 2: a key has spaces or control"),
        (None, "cannot read the keys in .*: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_without_a_key(tmp_path: Path, text: str | None, says: str) -> None:
    path = key_file(tmp_path, text) if text is not None else tmp_path / "missing"
    with pytest.raises(StartupError, match=says) as caught:
        Keys(path=path)
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_a_file_that_is_no_text_and_a_key_with_spaces_in_the_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartupError, match="not UTF-8 text"):
        Keys(path=path)
    with pytest.raises(StartupError, match="LLM_API_KEYS, key 2: a key has spaces"):
        Keys(["fine", "open sesame"])


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Keys(path=key_file(tmp_path, "sesame", 0o640))
    assert not caplog.records
    Keys(path=key_file(tmp_path, "sesame", 0o644))
    assert "chmod 600 (now 644)" in caplog.text
    assert "sesame" not in caplog.text


def test_a_file_that_was_replaced_counts_at_the_next_reload_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    # As Kubernetes does it: the file is a symbolic link into a folder that is swapped.
    for name, text in (("1", "alice: old"), ("2", "alice: old\nalice: new"), ("3", "")):
        (tmp_path / name).mkdir()
        key_file(tmp_path / name, text)
    data, path = tmp_path / "data", tmp_path / "keys.txt"
    data.symlink_to("1")
    path.symlink_to("data/keys.txt")

    def swap(target: str) -> None:
        (tmp_path / "next").symlink_to(target)
        (tmp_path / "next").rename(data)

    keys = Keys(["given"], path)
    assert [keys.owner(key) for key in (b"given", b"old", b"new")] == ["key 1", "alice", None]
    swap("2")
    keys.reload()
    assert [keys.owner(key) for key in (b"given", b"old", b"new")] == ["key 1", "alice", "alice"]
    swap("3")
    with pytest.raises(StartupError, match="has no key"):
        keys.reload()
    assert [keys.owner(key) for key in (b"given", b"old", b"new")] == ["key 1", "alice", "alice"]


def test_keys_of_both_kinds_open_the_server_and_reloading_takes_effect(tmp_path: Path) -> None:
    path = key_file(tmp_path, "ключ: ключ\n".replace("ключ:", "bob:"))
    with (
        serving(api_keys="alpha", api_keys_file=path) as served,
        httpx.Client(base_url=served.url, verify=False) as http,
    ):
        for key in (b"alpha", "ключ".encode()):
            assert http.get("/v1/models", headers={b"Authorization": b"Bearer " + key}).status_code == 200
            assert http.get("/v1/models", headers={b"X-Api-Key": key}).status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": "beta"}).status_code == 401
        path.write_text("beta")
        assert served.runtime.keys is not None
        served.runtime.keys.reload()
        assert http.get("/v1/models", headers={"x-api-key": "beta"}).status_code == 200
        assert http.get("/v1/models", headers={b"x-api-key": "ключ".encode()}).status_code == 401


def test_only_the_three_health_routes_are_open(tmp_path: Path) -> None:
    with serving(api_keys="alpha") as served, httpx.Client(base_url=served.url, verify=False) as http:
        for path in ("/health", "/health/live", "/health/ready"):
            assert http.get(path).status_code == 200
        for path in ("/healthy", "/health/x", "/docs", "/redoc", "/openapi.json", "/metrics", "/models", "/nothing"):
            assert http.get(path).status_code == 401


def test_the_key_of_an_open_server_is_ignored() -> None:
    with serving() as served:
        assert httpx.post(served.url + CHAT, json=SHORT, headers={"authorization": "Bearer any"}).status_code == 200


def test_a_key_has_only_so_many_requests_at_work_and_streams_count_to_their_end(tmp_path: Path) -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    path = key_file(tmp_path, "alice: a1\nalice: a2\nbob: b1\n")
    with (
        serving(backend, api_keys_file=path, key_concurrency=2, join=True) as served,
        httpx.Client(base_url=served.url, verify=False, timeout=10) as http,
    ):
        first, second = {"x-api-key": "a1"}, {"x-api-key": "a2"}
        with (
            http.stream("POST", CHAT, json=ENDLESS, headers=first) as one,
            http.stream("POST", CHAT, json=ENDLESS, headers=second) as two,
        ):
            lines = [one.iter_lines(), two.iter_lines()]
            assert [next(each)[:5] for each in lines] == ["data:", "data:"]
            answer = http.post(CHAT, json=SHORT, headers=first)
            error = answer.json()["error"]
            assert (answer.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "key_concurrency")
            assert answer.headers["retry-after"] == "1"
            assert "alice" not in answer.text
            assert http.get("/metrics", headers=first).status_code == 200
            assert http.post(CHAT, json=SHORT, headers={"x-api-key": "b1"}).status_code == 200
        # Both clients left in mid-stream; their places are free as soon as that is noticed.
        served.wait_idle()
        assert http.post(CHAT, json=SHORT, headers=first).status_code == 200
        assert http.post(CHAT, json={"messages": 5}, headers=first).status_code == 400
        answers = [http.post(CHAT, json=SHORT, headers=first).status_code for _ in range(4)]
        assert answers == [200] * 4


def test_without_the_limit_one_key_may_have_any_number() -> None:
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    with serving(backend, api_keys="a", join=True) as served, httpx.Client(base_url=served.url, verify=False) as http:
        headers = {"x-api-key": "a"}
        with http.stream("POST", CHAT, json=ENDLESS, headers=headers) as one:
            lines = one.iter_lines()
            next(lines)
            assert http.post(CHAT, json=SHORT, headers=headers).status_code == 200


def test_no_key_is_in_output_repr_errors_or_the_log(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    path = key_file(tmp_path, "alice: sesame2\n")
    monkeypatch.setenv("LLM_API_KEYS", "sesame1")
    monkeypatch.setenv("LLM_API_KEYS_FILE", str(path))
    assert main(["config"]) == 0
    settings = config.load({}, {"LLM_API_KEYS": "sesame1", "LLM_API_KEYS_FILE": str(path)}).settings
    keys = Keys.of(settings)
    with serving(api_keys="sesame1", api_keys_file=path) as served:
        texts = [httpx.get(served.url + "/v1/models", headers={"x-api-key": "sesame3"}).text]
        httpx.post(served.url + CHAT, json=SHORT, headers={"x-api-key": "sesame2"})
    texts += [capsys.readouterr().out, repr(settings), str(settings), repr(keys), repr(vars(keys)), caplog.text]
    file = tmp_path / "a.toml"
    file.write_text('api_keys = [["sesame1"]]')
    for flags, environment, toml in (({}, {}, file), ({}, {"LLM_API_KEYS": "sesame1", "LLM_CTX": "sesam"}, None)):
        with pytest.raises(StartupError) as caught:
            config.load(flags, environment, toml)
        texts.append(str(caught.value))
    assert "(hidden)" in texts[-2]
    assert not [text for text in texts if "sesame" in text]


def test_the_singular_name_is_refused_with_the_right_one() -> None:
    with pytest.raises(
        StartupError, match=r"unknown setting LLM_API_KEY \(environment\); the nearest is LLM_API_KEYS\."
    ):
        config.load({}, {"LLM_API_KEY": "sesame"})


def test_a_limit_for_keys_needs_keys() -> None:
    with pytest.raises(StartupError, match="key_concurrency needs keys"):
        config.load({}, {"LLM_KEY_CONCURRENCY": "2"})
