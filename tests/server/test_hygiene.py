"""Anything may come in; what goes out says nothing of the inside, and no request makes this server call another."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.server.conftest import Served, serving

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
DEEP = 100_000

# A path of this machine, a line of a traceback, a module, an object, an address in memory, the name of a library.
INSIDE = re.compile(
    r"site-packages|\.py\b|Traceback|File \"|line \d+, in |llm_local\.|pydantic|starlette|uvicorn|orjson|<class|"
    r"object at 0x|errors\.pydantic\.dev|/home/|/work/|/root/|/usr/"
)

BODIES: dict[str, bytes] = {
    "a deep list": b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a deep object": b'{"messages": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "a deep list without end": b"[" * DEEP,
    "a deep schema": (
        b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": '
        b'{"name": "x", "schema": ' + b'{"items":' * 900 + b"{}" + b"}" * 900 + b"}}}"
    ),
    "a deep tool": (
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f", '
        b'"parameters": ' + b'{"items":' * 900 + b"{}" + b"}" * 900 + b"}}]}"
    ),
    "deep metadata": (
        b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": '
        + b"[" * 900 + b"]" * 900 + b"}}"
    ),
    "a huge number": b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5000 + b"}",
    "a huge exponent": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "a number over 64 bits": b'{"messages": [{"role": "user", "content": "x"}], "seed": 99999999999999999999}',
    "a seed at the edge": b'{"messages": [{"role": "user", "content": "x"}], "seed": 18446744073709551615}',
    "NUL": b'{"messages": [{"role": "user", "content": "a\\u0000b"}], "max_tokens": 1}',
    "raw NUL": b'{"messages": [{"role": "user", "content": "a\x00b"}]}',
    "invalid UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a surrogate pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "a byte order mark": b'\xef\xbb\xbf{"messages": []}',
    "UTF-16": '{"messages": []}'.encode("utf-16"),
    "a key twice": b'{"max_tokens": -1, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}',
    "no JSON": b"<xml/>",
    "two documents": b"{}{}",
    "a remote image": (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
        b'{"url": "http://127.0.0.1:9/x.png"}}]}]}'
    ),
}  # fmt: skip
PATHS = (CHAT, "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template")


@pytest.mark.parametrize("what", BODIES)
def test_any_body_gets_an_answer_that_says_nothing_of_the_inside(http: httpx.Client, server: Served, what: str) -> None:
    for path in PATHS:
        answer = http.post(path, content=BODIES[what], headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), answer.text
        assert not INSIDE.search(answer.text), answer.text
        assert answer.status_code == 200 or len(answer.text) < 1000
    server.wait_idle()


def test_the_last_of_two_equal_keys_counts(http: httpx.Client) -> None:
    answer = http.post(CHAT, content=BODIES["a key twice"], headers={"content-type": "application/json"})
    assert answer.json()["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%00", "/%ff%fe", "/v1/models/" + "x" * 3000, "/docs/../v1",
        "/static-offline-docs/..%2f..%2f", "/v1/models/{}", "/?x=%00", "/v1/chat/completions/",
    ],
)  # fmt: skip
def test_any_path_gets_an_answer_that_says_nothing_of_the_inside(http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "TRACE"):
        answer = http.request(method, path)
        assert answer.status_code in (400, 404, 405), (path, answer.text)
        assert not INSIDE.search(answer.text), answer.text


def test_no_answer_is_to_be_taken_for_another_type_than_it_says() -> None:
    with serving() as served, httpx.Client(base_url=served.url, verify=False) as http:
        for path in ("/health", "/nothing", "/v1/models"):
            assert http.get(path).headers["x-content-type-options"] == "nosniff"
        assert http.post(CHAT, json={"messages": MESSAGES}).headers["x-content-type-options"] == "nosniff"


_WATCHED: list[list[Any]] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _WATCHED and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "open"):
        _WATCHED[-1].append((event, args))


@contextmanager
def watching() -> Iterator[list[Any]]:
    """Collect what this process connects to, looks up or opens."""
    if not hasattr(sys, "_llm_local_audit"):
        sys.addaudithook(_audit)
        sys._llm_local_audit = True  # type: ignore[attr-defined]
    _WATCHED.append([])
    try:
        yield _WATCHED[-1]
    finally:
        _WATCHED.pop()


def test_nothing_is_fetched_on_behalf_of_a_client(http: httpx.Client, server: Served) -> None:
    url = "http://fetch.example.com/x"
    part = {"type": "image_url", "image_url": {"url": url}}
    schema = {"$schema": url, "$id": url, "type": "object", "properties": {"a": {"$ref": url + "#/$defs/y"}}}
    local = {"$ref": "file:///etc/passwd"}

    def enforced(schema: dict[str, Any]) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    bodies = [
        {"messages": [{"role": "user", "content": [part]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": url}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": url}}]}]},
        {"messages": MESSAGES, "response_format": enforced(schema)},
        {"messages": MESSAGES, "response_format": enforced(local)},
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
        {"messages": MESSAGES, "tools": [{"type": "mcp", "server_url": url}]},
        {"messages": MESSAGES, "grammar": f'root ::= "{url}"', "max_tokens": 2},
        {"messages": MESSAGES, "web_search_options": {}},
        {"messages": MESSAGES, "model": url},
        {"messages": MESSAGES, "metadata": {"url": url}, "max_tokens": 1},
    ]
    with watching() as seen:
        codes = [http.post(CHAT, json=body).status_code for body in bodies]
        http.post("/v1/embeddings", json={"input": url})
    assert set(codes) <= {200, 400, 404}
    assert codes[:6] == [400] * 6
    ours = {("127.0.0.1", server.port)}
    assert not [args for event, args in seen if event == "socket.connect" and tuple(args[1]) not in ours]
    assert not [args for event, args in seen if "get" in event and args[0] not in ("127.0.0.1", b"127.0.0.1")]
    assert not [args for event, args in seen if event == "urllib.Request"]
    assert not [args for event, args in seen if event == "open" and "passwd" in str(args[0])]
    with watching() as seen:
        httpx.get(server.url + "/health")
    assert [args for event, args in seen if event == "socket.connect"], "the watch itself works"


def test_a_path_is_a_name_that_is_served_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/app/models/Their-Q4_0.gguf"
    with serving(join=True) as served, httpx.Client(base_url=served.url) as http:
        loaded = served.runtime.loaded
        assert loaded is not None
        monkeypatch.setattr(loaded, "model", replace(loaded.model, aliases=("alias", path)))
        monkeypatch.setattr(loaded, "embedding_model", loaded.model)
        assert http.post(CHAT, json={"model": path, "messages": MESSAGES, "max_tokens": 1}).status_code == 200
        listed = http.get("/v1/models")
        assert (listed.json()["data"][0]["aliases"], "/app" in listed.text) == (["alias"], False)
