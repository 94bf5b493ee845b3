"""Predictions and guessed tokens as a client sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llm_local.engine.pace import Pace
from tests.fakes import ReciteBackend
from tests.server.conftest import over_limit, serving

CHAT = "/v1/chat/completions"
CODE = "def area(width, height):\n    return width * height\n"


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "worthwhile_guesses", lambda self, expected, *_: len(expected))


@pytest.fixture
def http(always: None) -> Iterator[httpx.Client]:
    with serving(ReciteBackend(CODE)) as served, httpx.Client(base_url=served.url, verify=False) as client:
        yield client


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Write it."}], **fields}
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    "content", [CODE, [{"type": "text", "text": CODE}]], ids=["a string", "parts"]
)  # fmt: skip
def test_a_prediction_that_comes_true_is_counted_as_openai_counts_it(http: httpx.Client, content: Any) -> None:
    answer = ask(http, prediction={"type": "content", "content": content})
    assert answer["choices"][0]["message"]["content"] == CODE
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 0.8 * len(CODE)
    assert details["rejected_prediction_tokens"] == 0
    assert (
        answer["timings"]["draft_n"] >= answer["timings"]["draft_n_accepted"] >= details["accepted_prediction_tokens"]
    )


def test_a_prediction_that_does_not_come_true_changes_nothing_but_the_counts(http: httpx.Client) -> None:
    wrong = CODE.replace("width", "depth").replace("area", "volume")
    answer = ask(http, prediction={"type": "content", "content": wrong})
    assert answer["choices"][0]["message"]["content"] == CODE
    details = answer["usage"]["completion_tokens_details"]
    assert details["rejected_prediction_tokens"] > 0
    assert details["accepted_prediction_tokens"] > 0, "what is common to both"


def test_answers_that_repeat_their_prompt_are_guessed_unless_a_seed_asks_for_the_same_again(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Say this: " + CODE}]
    assert ask(http, messages=messages)["timings"]["draft_n_accepted"] > 20
    assert ask(http, messages=messages, seed=1)["timings"]["draft_n"] == 0
    predicted = ask(http, messages=messages, seed=1, prediction={"type": "content", "content": CODE})
    assert predicted["timings"]["draft_n"] > 0, "who predicts wants it fast"


def test_prompt_lookup_can_be_switched_off(always: None) -> None:
    with (
        serving(ReciteBackend(CODE), prompt_lookup=False) as served,
        httpx.Client(base_url=served.url, verify=False) as http,
    ):
        messages = [{"role": "user", "content": "Say this: " + CODE}]
        assert ask(http, messages=messages)["timings"]["draft_n"] == 0


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"type": "audio", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ("text", "prediction"),
        ({"type": "content", "content": [{"type": "image_url", "image_url": {}}]}, "prediction.content.0.type"),
    ],
)
def test_a_malformed_prediction_is_400(http: httpx.Client, prediction: Any, param: str) -> None:
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": "x"}], "prediction": prediction})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_prediction_longer_than_the_window_is_refused(http: httpx.Client) -> None:
    answer = http.post(
        CHAT,
        json={"messages": [{"role": "user", "content": "x"}], "prediction": {"type": "content", "content": "a" * 2000}},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == over_limit(2000, 1024)


def test_guessed_tokens_are_in_the_metrics(http: httpx.Client) -> None:
    ask(http, prediction={"type": "content", "content": CODE})
    text = http.get("/metrics").text
    drafted = float(text.split("\nllm_local_drafted_tokens_total ")[1].split()[0])
    accepted = float(text.split("\nllm_local_accepted_draft_tokens_total ")[1].split()[0])
    assert drafted >= accepted > 20
