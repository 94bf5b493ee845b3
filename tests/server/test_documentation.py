"""`/openapi.json` is what the server does: its examples are answered, and answers are what it says."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest
from pydantic import BaseModel

from llm_local.server import answer_schema as answers
from llm_local.server.documentation import BY_PATH, TAGS
from tests.server.conftest import serving
from tests.server.test_chat import events
from tests.server.test_upstream import forwarding

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
METHODS = {"get", "post"}


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    return http.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {path: one for path, item in document["paths"].items() for one in item.values()}


def check(answer: Any, model: type[BaseModel]) -> None:
    """Check that an answer is what a model says, with no field more."""
    assert model.model_validate(answer, strict=True).model_dump(exclude_unset=True) == answer


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def test_every_route_has_a_tag_a_summary_an_answer_and_its_errors(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {path.replace(":path", "") for path in BY_PATH}
    assert {tag["name"] for tag in document["tags"]} == set(TAGS)
    for path, one in operations(document).items():
        assert one["tags"][0] in TAGS
        assert re.fullmatch(r"[A-Z].*[^.]", one["summary"])
        assert one["responses"]["200"]["content"], path
        assert ("requestBody" in one) == ("400" in one["responses"])
        if "requestBody" in one:
            assert one["requestBody"]["content"]["application/json"]["examples"]
    assert len({one["operationId"] for one in operations(document).values()}) == len(document["paths"])
    assert "text/event-stream" in document["paths"][CHAT]["post"]["responses"]["200"]["content"]


def test_every_reference_leads_somewhere_and_every_schema_is_one(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"\$ref":"([^"]+)"', json.dumps(document, separators=(",", ":"))))
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
    assert set(schemas) == {reference.rpartition("/")[2] for reference in references}, "none is left over"
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("description") or name == "Part", name


def test_null_is_allowed_wherever_a_field_may_be_left_out(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"type": "null"} in fields["n"]["anyOf"]
    assert {"type": "null"} in fields["tool_choice"]["anyOf"]
    assert "anyOf" not in fields["messages"]
    assert "temperature" in fields


@pytest.mark.parametrize("path", [path for path, one in BY_PATH.items() if one.body is not None])
def test_every_example_is_answered_as_documented(http: httpx.Client, document: dict[str, Any], path: str) -> None:
    one = document["paths"][path]["post"]
    content = one["requestBody"]["content"]["application/json"]
    for name, example in content["examples"].items():
        assert validator(document, content["schema"]).is_valid(example["value"])
        answer = http.post(path, json=example["value"])
        assert answer.status_code == 200, (name, answer.text)
        media_type = answer.headers["content-type"].partition(";")[0]
        streamed = media_type == "text/event-stream"
        schema = one["responses"]["200"]["content"][media_type]["schema"]
        schema = schema["properties"]["data"]["contentSchema"] if streamed else schema
        bodies = events(answer.text)[:-1] if streamed else [answer.json()]
        model = getattr(answers, schema["$ref"].rpartition("/")[2])
        for body in bodies:
            validator(document, schema).validate(body)
            check(body, model)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "logprobs": True, "top_logprobs": 2},
        {"return_progress": True, "timings_per_token": True, "stream_options": {"include_usage": True}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "logprobs": True},
        {"functions": [{"name": "f"}], "function_call": {"name": "f"}},
        {"prediction": {"type": "content", "content": "abc"}, "max_tokens": 0},
    ],
    ids=str,
)
def test_every_form_of_a_chat_answer_is_documented(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"messages": MESSAGES, "max_tokens": 40, **fields}
    chunks = events(http.post(CHAT, json={**body, "stream": True}).text)
    assert chunks.pop() == "[DONE]"
    for chunk in chunks:
        check(chunk, answers.ChatCompletionChunk)
    body.pop("stream_options", None)
    check(http.post(CHAT, json=body).json(), answers.ChatCompletion)


@pytest.mark.parametrize("fields", [{"logprobs": 2, "echo": True}, {"n": 2, "stream": True, "return_progress": True}])
def test_every_form_of_a_completion_is_documented(http: httpx.Client, fields: dict[str, Any]) -> None:
    answer = http.post("/v1/completions", json={"prompt": ["ab", "c"], "max_tokens": 3, **fields})
    for body in events(answer.text)[:-1] if "stream" in fields else [answer.json()]:
        check(body, answers.Completion)


def test_the_other_answers_are_documented(http: httpx.Client) -> None:
    check(http.get("/v1/models").json(), answers.ModelList)
    check(http.get("/v1/models/fake").json(), answers.ServedModelObject)
    check(http.get("/v1/models/nope").json(), answers.Error)
    check(http.get("/health").json(), answers.Health)
    check(http.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"}).json(), answers.EmbeddingList)
    check(http.post("/tokenize", json={"content": "a"}).json(), answers.TokenList)


def test_while_it_drains_health_is_as_documented() -> None:
    with serving() as served:
        served.runtime.draining = True
        check(httpx.get(served.url + "/health").json(), answers.NotReady)


def test_keys_are_in_the_documentation_where_there_are_some(document: dict[str, Any]) -> None:
    assert "security" not in document
    assert "401" not in document["paths"][CHAT]["post"]["responses"]
    with serving(api_keys="k") as served:
        keyed = httpx.get(served.url + "/openapi.json", headers={"x-api-key": "k"}).json()
    assert keyed["security"] == [{"bearer": []}, {"header": []}]
    assert keyed["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert keyed["paths"]["/health"]["get"]["security"] == []
    assert "401" in keyed["paths"][CHAT]["post"]["responses"]


def test_what_is_not_forwarded_is_not_in_the_documentation() -> None:
    with forwarding("http://127.0.0.1:9") as (http, _):
        paths = http.get("/openapi.json").json()["paths"]
    assert CHAT in paths
    assert "/tokenize" not in paths


@pytest.mark.parametrize("path", ["/health", "/health/live", "/v1/models", "/models", "/v1/models/fake", "/metrics"])
def test_what_answers_get_answers_head_without_a_body(http: httpx.Client, path: str) -> None:
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == http.get(path).headers["content-type"]
    assert {"GET", "HEAD"} <= set(http.put(path).headers["allow"].split(", "))


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_is_served_without_a_network(http: httpx.Client, page: str) -> None:
    answer = http.get(page)
    assert answer.status_code == 200
    addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert len(addresses) >= 2
    for address in addresses:
        assert address.startswith("/"), f"{address} needs a network"
        assert http.get(address).status_code == 200
