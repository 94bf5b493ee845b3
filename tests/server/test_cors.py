"""Browsers: nobody's page may call unless configured, and then the preflight needs no key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from llm_local import config
from llm_local.errors import StartupError
from tests.server.conftest import serving

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example.com"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def allowed(answer: httpx.Response) -> str | None:
    return answer.headers.get("access-control-allow-origin")


def test_without_the_setting_no_page_may_call() -> None:
    with serving() as served, httpx.Client(base_url=served.url, verify=False) as http:
        preflight = http.options(CHAT, headers=ASKS)
        assert (preflight.status_code, allowed(preflight)) == (405, None)
        assert allowed(http.post(CHAT, json=BODY, headers={"origin": PAGE})) is None


@pytest.mark.parametrize("origins", [PAGE, f"http://127.0.0.1:3000, {PAGE}"])
def test_a_named_page_may_call_and_another_may_not(origins: str) -> None:
    with (
        serving(api_keys="alpha", cors_origins=origins) as served,
        httpx.Client(base_url=served.url, verify=False) as http,
    ):
        preflight = http.options(CHAT, headers=ASKS)
        assert (preflight.status_code, allowed(preflight)) == (200, PAGE)
        assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        other = http.options(CHAT, headers={**ASKS, "origin": "https://evil.example.com"})
        assert (other.status_code, allowed(other)) == (400, None)
        for headers, status in (({"authorization": "Bearer alpha"}, 200), ({}, 401)):
            answer = http.post(CHAT, json=BODY, headers={"origin": PAGE, **headers})
            assert (answer.status_code, allowed(answer)) == (status, PAGE)
            assert answer.headers["access-control-expose-headers"] == "x-request-id, retry-after"
        evil = http.post(
            CHAT, json=BODY, headers={"origin": "https://evil.example.com", "authorization": "Bearer alpha"}
        )
        assert allowed(evil) is None


def test_a_star_lets_every_page_call_and_errors_are_readable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(cors_origins="*") as served, httpx.Client(base_url=served.url, verify=False) as http:
        assert allowed(http.options(CHAT, headers=ASKS)) == "*"

        def broken(*_args: Any, **_more: Any) -> None:
            raise ZeroDivisionError

        assert served.runtime.loaded is not None
        monkeypatch.setattr(served.runtime.loaded.model.vocabulary, "tokenize_prompt", broken)
        answer = http.post(CHAT, json={**BODY, "stream": True}, headers={"origin": PAGE})
        assert (answer.status_code, allowed(answer)) == (500, "*")


@pytest.mark.parametrize(
    "origin", ["chat.example.com", "https://chat.example.com/", "https://a.example.com/page", "x y"]
)
def test_what_no_browser_would_send_as_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(StartupError, match="is no origin: write https://host"):
        config.load({}, {"LLM_CORS_ORIGINS": origin})
