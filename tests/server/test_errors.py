"""Every wrong request gets OpenAI's envelope with the right status, code and field, and never a 422 or a hang."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import httpx
import openai
import orjson
import pytest

from llm_local.engine.admission import Admission
from llm_local.server import body as body_module
from tests.server.conftest import Served, serving

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return body["error"]


WRONG_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({}, "messages", "Missing required parameter"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": [{"content": "x"}]}, "messages.0.role", "required"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "Missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a string or a list"),
    ({"messages": [{"role": "assistant"}]}, "messages.0", "needs 'content'"),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages.0.colour", "Unknown parameter"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages.0.content.0.type", "image_url"),
    ({"messages": MESSAGES, "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    ({"messages": MESSAGES, "max_tokens": "5"}, "max_tokens", "integer"),
    ({"messages": MESSAGES, "max_tokens": 1.5}, "max_tokens", "integer"),
    ({"messages": MESSAGES, "temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"messages": MESSAGES, "temperature": True}, "temperature", "number"),
    ({"messages": MESSAGES, "top_p": -0.1}, "top_p", "greater than or equal to 0"),
    ({"messages": MESSAGES, "n": 0}, "n", "greater than or equal to 1"),
    ({"messages": MESSAGES, "n": 100}, "n", "LLM_PARALLEL"),
    ({"messages": MESSAGES, "stop": ""}, "stop", "at least 1 character"),
    ({"messages": MESSAGES, "stop": [1]}, "stop.0", "string"),
    ({"messages": MESSAGES, "top_logprobs": 21, "logprobs": True}, "top_logprobs", "20"),
    ({"messages": MESSAGES, "presence_penalty": 3}, "presence_penalty", "2"),
    ({"messages": MESSAGES, "logit_bias": {"5": 101}}, "logit_bias.5", "100"),
    ({"messages": MESSAGES, "max_token": 5}, "max_token", "Did you mean 'max_tokens'"),
    ({"messages": MESSAGES, "stream_options": {"include_usages": True}, "stream": True},
     "stream_options.include_usages", "Unknown parameter"),
    ({"messages": [1] * 5000}, "messages.0", "dictionary"),
    ({"messages": MESSAGES, "logit_bias": {"1" * 5000: 1}}, "logit_bias", "256 characters"),
    ({"messages": MESSAGES, "timeout": 0}, "timeout", "greater than 0"),
    ({"messages": MESSAGES, "dry_sequence_breakers": ["a", "b\0c"]}, "dry_sequence_breakers.1", "at most 40 bytes"),
    ({"messages": MESSAGES, "dry_sequence_breakers": ["я" * 21]}, "dry_sequence_breakers.0", "at most 40 bytes"),
    ({"messages": MESSAGES, "dry_sequence_breakers": ["x" * 41]}, "dry_sequence_breakers.0", "at most 40"),
    ({"messages": MESSAGES, "continue_final_message": True}, "messages", "assistant"),
    ({"messages": MESSAGES, "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages", "cannot be set"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), WRONG_CHAT)
def test_a_wrong_chat_request_is_400_and_names_the_field(
    http: httpx.Client, body: dict[str, Any], param: str, says: str
) -> None:
    answer = http.post(CHAT, json=body)
    error = error_of(answer)
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": MESSAGES, "top_logprobs": 2},
        {"messages": MESSAGES, "stream_options": {"include_usage": True}},
    ],
)
def test_fields_that_need_another_field_say_so(http: httpx.Client, body: dict[str, Any]) -> None:
    error = error_of(http.post(CHAT, json=body))
    assert "only allowed when" in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("web_search_options", {"a": 1}),
        ("web_search_options", {}),
        ("moderation", {"model": "x"}),
    ],
)
def test_what_is_not_served_is_refused_not_ignored(http: httpx.Client, field: str, value: Any) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, field: value})
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", field)


def test_a_prompt_over_the_window_says_both_numbers(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 3000}]})
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "1024" in error["message"]
    assert "3050" in error["message"]


def test_an_input_over_the_window_says_which_setting_is_meant(http: httpx.Client) -> None:
    message = error_of(http.post("/v1/embeddings", json={"input": "x" * 65}))["message"]
    assert "to at most 64 tokens, or raise LLM_EMBEDDING_CTX" in message
    assert "LLM_SEQ_MAX" not in message


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(http: httpx.Client) -> None:
    text = "x" * 6000
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", {"prompt": text}),
        ("/v1/embeddings", {"input": text}),
    ):
        error = error_of(http.post(path, json=body))
        assert error["code"] == "context_length_exceeded"
        assert "at least 6" in error["message"]


def test_an_unknown_model_is_404_and_lists_those_there_are(http: httpx.Client) -> None:
    for path, body in (
        (CHAT, {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        answer = http.post(path, json={**body, "model": "gpt-4o"})
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "'fake'" in error["message"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "not valid JSON"), (b"", "not valid JSON"), (b"[1]", "must be a JSON object, not an array"),
     (b'{"messages": [\xff]}', "not valid JSON"), (b"null", "not null"), (b'{"temperature": NaN}', "not valid JSON")],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_400(http: httpx.Client, content: bytes, says: str) -> None:
    answer = http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert says in error_of(answer)["message"]


def test_a_body_that_is_not_declared_as_json_is_415(http: httpx.Client) -> None:
    answer = http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")


def test_unknown_routes_and_methods_have_the_envelope_too(http: httpx.Client) -> None:
    answer = http.get("/v2/nothing")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    answer = http.get(CHAT)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_a_template_that_refuses_is_400_with_its_own_words(tmp_path: Any) -> None:
    from llm_local.chat.template import ChatTemplate, named_template

    with serving() as served:
        served.runtime.loaded.template = ChatTemplate(named_template("gemma"))
        answer = httpx.post(served.url + CHAT, json={"messages": [*MESSAGES, *MESSAGES]})
        assert answer.status_code == 400
        assert "Conversation roles must alternate" in error_of(answer)["message"]


def test_a_body_over_the_limit_is_413_whether_its_length_is_declared_or_not() -> None:
    with serving(max_body_bytes=2000) as served:
        big = b'{"messages": "' + b"x" * 3000 + b'"}'
        json_type = {"content-type": "application/json"}
        declared = httpx.post(served.url + CHAT, content=big, headers=json_type)
        chunked = httpx.post(served.url + CHAT, content=iter([big[:1500], big[1500:]]), headers=json_type)
        for answer in (declared, chunked):
            assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


def test_keys_are_asked_for_everywhere_but_on_health() -> None:
    with serving(api_keys="alpha,beta") as served, httpx.Client(base_url=served.url, verify=False) as http:
        for headers in (
            {},
            {"authorization": "Bearer nope"},
            {"authorization": "Basic alpha"},
            {"x-api-key": "ключ".encode()},
        ):
            answer = http.post(CHAT, json={"messages": MESSAGES}, headers=headers)
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert http.get("/v1/models").status_code == 401
        assert http.get("/health").status_code == 200
        for headers in ({"authorization": "Bearer beta"}, {"x-api-key": "alpha"}):
            body = {"messages": MESSAGES, "max_tokens": 1}
            assert http.post(CHAT, json=body, headers=headers).status_code == 200


def test_a_full_queue_is_429_with_retry_after() -> None:
    with serving(max_running=1, queue_max=0) as served:
        served.backend.delay_s = 0.01
        with httpx.Client(base_url=served.url, verify=False) as http:
            body = {"messages": MESSAGES, "max_tokens": 400, "ignore_eos": True, "stream": True}
            with http.stream("POST", CHAT, json=body) as running:
                lines = running.iter_lines()  # Kept: a generator that is collected closes the connection.
                next(lines)
                answer = http.post(CHAT, json={"messages": MESSAGES})
            assert (answer.status_code, error_of(answer)["code"]) == (429, "queue_full")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            served.wait_idle()


def test_a_deadline_is_504_before_the_first_byte_and_an_event_after_it() -> None:
    with serving(max_running=1) as served, httpx.Client(base_url=served.url, timeout=20, verify=False) as http:
        served.backend.delay_s = 0.01
        body = {"messages": MESSAGES, "max_tokens": 400, "ignore_eos": True, "timeout": 0.1}
        answer = http.post(CHAT, json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
        streamed = http.post(CHAT, json={**body, "stream": True}).text
        assert '"deadline_exceeded"' in streamed
        assert "[DONE]" not in streamed
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="fake", messages=MESSAGES, stream=True, extra_body={"ignore_eos": True, "timeout": 0.1}
            )  # type: ignore[call-overload]
            with pytest.raises(openai.APIError, match="deadline"):
                list(stream)
        served.wait_idle()


def test_an_unexpected_exception_is_500_without_its_text(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_more: Any) -> None:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr(server.runtime.loaded.model.vocabulary, "tokenize_prompt", broken)
    answer = httpx.post(server.url + CHAT, json={"messages": MESSAGES})
    assert answer.status_code == 500
    error = error_of(answer)
    assert error["code"] == "internal_error"
    assert "secret" not in answer.text


def test_a_body_of_countless_wrong_entries_is_refused_quickly(http: httpx.Client) -> None:
    many = {str(number): "x" for number in range(100_000)}
    for body in ({"messages": MESSAGES, "logit_bias": many}, {"messages": MESSAGES, **many}):
        answer = http.post(CHAT, json=body)
        assert answer.status_code == 400
        assert "at most 1024" in error_of(answer)["message"]
    answer = http.post("/v1/completions", json={"prompt": [-1] * 250_000})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "prompt.0")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_choice": [1] * 400_000}, "guided_choice.0"),
        ({"modalities": [1] * 400_000}, "modalities.0"),
        ({"messages": [{"role": "assistant", "tool_calls": [1] * 400_000}]}, "messages.0.tool_calls.0"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [1] * 400_000}}},
         "tool_choice.allowed_tools.tools.0"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)  # fmt: skip
def test_a_list_of_countless_wrong_entries_is_refused_at_the_first(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    body = orjson.dumps({"messages": MESSAGES, **fields})
    began = time.monotonic()
    answer = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert time.monotonic() - began < 1, "each of them would be an error of its own"


def test_a_large_body_is_validated_off_the_event_loop(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    real = body_module._validated

    def noting(data: bytes, kind: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(data, kind)

    monkeypatch.setattr(body_module, "_validated", noting)
    small, large = [*MESSAGES, *MESSAGES], [{"role": "user", "content": ""}] * 10_000
    for messages, status in ((small, 200), (large, 400), ([*large, {"role": "robot"}], 400)):
        assert http.post(CHAT, json={"messages": messages, "max_tokens": 1}).status_code == status
    assert [name.startswith("worker") for name in threads] == [False, True, True]


def test_a_message_has_no_words_of_python(http: httpx.Client) -> None:
    for fields in ({"response_format": "json"}, {"messages": [1]}, {"tool_choice": 5}, {"stop": ["a"] * 17}):
        message = error_of(http.post(CHAT, json={"messages": MESSAGES, **fields}))["message"]
        assert not re.search("instance|extract|validation", message), message


def test_arguments_nested_deeply_are_not_an_internal_error(http: httpx.Client) -> None:
    for depth in (900, 980, 1000, 1020, 1023):
        call = {"id": "1", "function": {"name": "f", "arguments": '{"a":' * depth + "1" + "}" * depth}}
        messages = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}, *MESSAGES]
        for path in (CHAT, "/apply-template"):
            assert http.post(path, json={"messages": messages}).status_code in (200, 400), (depth, path)


def test_tools_nested_deeply_are_not_an_internal_error(http: httpx.Client) -> None:
    for depth in (900, 980, 1000, 1010, 1015):
        deep = '{"items":' * depth + "{}" + "}" * depth
        tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}'
        body = f'{{"messages": {json.dumps(MESSAGES)}, "tools": [{tool}], "max_tokens": 1}}'
        for path in (CHAT, "/apply-template"):
            answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400), (depth, path, answer.text)


def test_a_deadline_that_passes_before_the_queue_is_504(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "timeout": 1e-6})
    assert (answer.status_code, answer.headers.get("retry-after")) == (504, None)


def test_a_name_that_is_not_known_is_not_sent_back_whole(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "k" * 500_000: 1})
    assert error_of(answer)["code"] == "unknown_parameter"
    assert len(answer.content) < 1000


def test_a_wait_that_would_outlast_the_timeout_is_429_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "predicted_wait_s", lambda *_: 42.0)
    with serving() as served, httpx.Client(base_url=served.url, verify=False) as http:
        answer = http.post(CHAT, json={"messages": MESSAGES, "timeout": 10})
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (429, "queue_full")
        assert "about 42 s" in error["message"]
        assert int(answer.headers["retry-after"]) in (32, 33)
        assert http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2}).status_code == 200
