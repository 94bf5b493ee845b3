"""Which way of calling a template was written for, and how a template without tools is told of them."""

from __future__ import annotations

import json

import pytest

from llm_local.chat.dialects import GENERIC, HERMES, LLAMA, dialect_of
from llm_local.chat.template import ChatTemplate, named_template

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Омск"}}}
TALK = [
    {"role": "user", "content": "Погода?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "+3", "tool_call_id": "1"},
    {"role": "tool", "content": "+4", "tool_call_id": "2"},
]


@pytest.mark.parametrize(
    ("source", "dialect"), [("qwen2", HERMES), ("llama-3", LLAMA), ("gemma", GENERIC), ("chatml", GENERIC)]
)
def test_the_dialect_is_that_of_the_template(source: str, dialect: object) -> None:
    assert dialect_of(named_template(source)) is dialect


def test_templates_that_know_tools_get_messages_as_they_are() -> None:
    assert HERMES.prepare(TALK, [TOOL]) == TALK
    for name, mark in (("qwen2", "<tools>"), ("llama-3", '"name": "weather"')):
        dialect = dialect_of(named_template(name))
        text = ChatTemplate(named_template(name), {"bos_token": ""}).render(
            dialect.prepare(TALK[:1], [TOOL]), tools=[TOOL]
        )
        assert mark in text
        assert "weather" in text


def test_other_templates_get_tools_calls_and_results_as_text() -> None:
    prepared = GENERIC.prepare(TALK, [TOOL])
    assert [message["role"] for message in prepared] == ["system", "user", "assistant", "user"]
    assert json.dumps(TOOL) in prepared[0]["content"]
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Омск"}}\n</tool_call>'
    assert prepared[2]["content"] == f"{written}\n{written}"
    assert prepared[3]["content"] == ("<tool_response>\n+3\n</tool_response>\n<tool_response>\n+4\n</tool_response>")
    assert "tool_calls" not in prepared[2]


def test_tools_join_a_system_message_that_is_there() -> None:
    prepared = GENERIC.prepare([{"role": "system", "content": "Будь краток."}, *TALK[:1]], [TOOL])
    assert prepared[0]["content"].startswith("Будь краток.\n\n# Tools")
    assert len(prepared) == 2


def test_parallel_calls_go_back_in_one_after_the_other_where_the_template_shows_one_a_turn() -> None:
    calls = [{**CALL, "id": str(n), "function": {"name": f"f{n}", "arguments": {}}} for n in (1, 2)]
    results = [{"role": "tool", "content": f"={n}", "tool_call_id": str(n)} for n in (2, 1, 3)]
    talk = [TALK[0], {"role": "assistant", "content": "", "tool_calls": calls}, *results, TALK[0]]
    text = ChatTemplate(named_template("llama-3"), {"bos_token": ""}).render(LLAMA.prepare(talk, [TOOL]), tools=[TOOL])
    parts = ['{"name": "f1"', '"=1"', '{"name": "f2"', '"=2"', '"=3"']
    assert [text.count(part) for part in parts] == [1] * len(parts)
    assert sorted(parts, key=text.index) == parts
