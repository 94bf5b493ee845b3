"""Prompts that are named in a file: read, rendered as requests are, computed before the first of them, pinned."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_local.chat.template import ChatTemplate, named_template
from llm_local.engine.host_cache import HostCache
from llm_local.errors import DecodeFailed, StartupError
from llm_local.server.warm_prefixes import read_warm_prompts, warm_tokens
from tests.fakes import FakeBackend
from tests.server.conftest import ByteVocabulary, serving

CHAT = "/v1/chat/completions"
SYSTEM = "You are a pirate who answers in rhymes. " * 4
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell it.", "parameters": {"type": "object", "properties": {}}},
}


def texts(path: Path, *, template: str = "chatml", window: int = 1000, n_cells: int = 2000) -> list[str]:
    """What the prefixes of a file stand for."""
    prompts = read_warm_prompts(path)
    tokens = warm_tokens(
        prompts, ChatTemplate(named_template(template)), ByteVocabulary(), window=window, n_cells=n_cells
    )
    return [bytes(prefix.tolist()).decode() for prefix in tokens]


def file_of(folder: Path, text: str) -> Path:
    path = folder / "warm.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        json.dumps("Be nice."),
        json.dumps(["Be nice."]),
        json.dumps([{"role": "system", "content": "Be nice."}]),
        json.dumps([[{"role": "system", "content": "Be nice."}]]),
        json.dumps({"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be nice."}]}]}),
        '"Be nice."\n"Be nice."\n',
        '\ufeff\n  ["Be nice.",\n "Be nice."]  ',
    ],
)
def test_all_forms_of_an_entry_give_what_comes_before_the_next_user_message(tmp_path: Path, text: str) -> None:
    assert texts(file_of(tmp_path, text)) == ["<|im_start|>system\nBe nice.<|im_end|>\n<|im_start|>user\n"]


def test_a_conversation_is_kept_up_to_its_end(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    (text,) = texts(file_of(tmp_path, json.dumps(messages)))
    assert text.endswith("<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n")


def test_tools_are_in_the_prefix(tmp_path: Path) -> None:
    entry = {"messages": [{"role": "system", "content": "Be nice."}], "tools": [TOOL]}
    (text,) = texts(file_of(tmp_path, json.dumps(entry)))
    assert '"name": "weather"' in text
    assert text.endswith("<|im_start|>user\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"fine"\n"fine too"\n"broken\n', r"line 3: not valid JSON: "),
        ('["fine",\n "fine", 12]', r"line 2: an entry is a string, a list of messages or an object"),
        ('"fine"\n{"messages": [{"role": "pilot", "content": "x"}]}', r"line 2: .*messages\.0\.role"),
        ('{"messages": []}', r"line 1: .*messages"),
        ('"fine"\n\n{"message": "x"}', r"line 3: Unknown parameter: 'message'. Did you mean 'messages'"),
        ('[{"role": "system", "content": [{"type": "image_url"}]}]', r"line 1: Content parts of type 'image_url'"),
        ("[" * 100_000, r"line 1: not valid JSON"),
        ("", "has no entries"),
        ("[]", "has no entries"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(StartupError, match=says) as caught:
        texts(file_of(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "warm.json" in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, says in (("nowhere", "No such file"), ("binary", "not UTF-8"), ("", "Is a directory")):
        with pytest.raises(StartupError, match=f"cannot read warm_prefixes .*: .*{says}"):
            read_warm_prompts(tmp_path / name)


def test_prefixes_that_take_more_than_half_of_the_cells_are_refused_with_numbers(tmp_path: Path) -> None:
    path = file_of(tmp_path, json.dumps([SYSTEM + "a" * 40, SYSTEM + "b" * 40]))
    together = sum(map(len, texts(path))) - len(f"<|im_start|>system\n{SYSTEM}")
    assert len(texts(path, n_cells=2 * together)) == 2, "what they share counts once"
    says = rf"need {together} KV cells, and at most {together - 1} .*set LLM_CTX to at least {2 * together}"
    with pytest.raises(StartupError, match=says):
        texts(path, n_cells=2 * together - 1)
    with pytest.raises(StartupError, match=r"line 1: 2\d\d tokens, but a sequence has at most 200"):
        texts(path, window=200)


def ask(http: httpx.Client, system: str = SYSTEM, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Ahoy"}]
    answer = http.post(CHAT, json={"messages": messages, "max_tokens": 2, "temperature": 0, **fields})
    assert answer.status_code == 200
    return answer.json()


def test_the_first_request_with_a_warm_prompt_computes_only_what_follows(tmp_path: Path) -> None:
    path = file_of(tmp_path, json.dumps([SYSTEM, {"messages": [{"role": "system", "content": "x"}], "tools": [TOOL]}]))
    lengths = [len(text) for text in texts(path)]
    with serving(warm_prefixes=path) as served, httpx.Client(base_url=served.url, verify=False) as http:
        assert served.backend.rows_computed == sum(lengths) + 2 - len("<|im_start|>system\n")
        cached = [
            ask(http, system, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"]
            for system, fields in ((SYSTEM, {}), ("x", {"tools": [TOOL]}))
        ]
        assert sorted(cached) == sorted(lengths)


def test_the_server_is_ready_when_they_are_computed_and_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=32, n_slots=8, n_outputs=40)
    backend.delay_s = 0.02
    path = file_of(tmp_path, json.dumps([SYSTEM, "other"]))
    with (
        caplog.at_level(logging.INFO),
        serving(backend, warm_prefixes=path, wait=False) as served,
        httpx.Client(base_url=served.url, verify=False) as http,
    ):
        answer = http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
        end = time.monotonic() + 10
        while http.get("/health").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        n_rows = served.backend.rows_computed
        assert n_rows == sum(len(text) for text in texts(path)) + 2 - len("<|im_start|>system\n")
    progress = [record.message for record in caplog.records if "warm prefix" in record.message]
    assert [line.partition(":")[0] for line in progress] == ["warm prefix 1 of 2", "warm prefix 2 of 2"]


def test_a_server_that_is_told_to_stop_while_it_warms_up_stops(tmp_path: Path) -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=1, n_slots=8, n_outputs=40)
    backend.delay_s = 0.1
    path = file_of(tmp_path, json.dumps([SYSTEM]))
    began = time.monotonic()
    with serving(backend, warm_prefixes=path, wait=False, join=True) as served:
        while served.runtime.warming is None:
            time.sleep(0.01)
    assert time.monotonic() - began < 5
    assert backend.closed
    assert (served.runtime.failed, served.failures) == (None, [])


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), DecodeFailed("boom")], ids=["dead", "alive"])
def test_an_engine_that_fails_while_it_warms_up_is_a_failed_start(tmp_path: Path, error: Exception) -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=64, n_slots=8, n_outputs=40)
    backend.fail_with = error
    path, before = file_of(tmp_path, json.dumps([SYSTEM])), threading.active_count()
    with serving(backend, warm_prefixes=path, wait=False, join=True) as served:
        end = time.monotonic() + 5
        while not served.failures:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert httpx.get(served.url + "/health").status_code == 503
    assert backend.closed
    assert threading.active_count() <= before


def test_the_metrics_tell_what_each_tier_holds(tmp_path: Path) -> None:
    backend = FakeBackend(n_ctx=500, n_batch=256, n_slots=4, n_outputs=40)
    with (
        serving(backend, window=400, host=HostCache(10**5)) as served,
        httpx.Client(base_url=served.url, verify=False) as http,
    ):
        for letter in "abc":
            ask(http, letter * 200)
        served.wait_idle()
        lines = http.get("/metrics").text.splitlines()
        kept = {line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith("llm_local_kv_bytes{")}
        assert kept == {"resident": 4.0 * backend.n_used, "host": served.engine.kv_bytes().host, "disk": 0.0}
        assert kept["host"] > 800
