"""Calls in a model's text: what is content, what is a call, however the text is cut into pieces."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llm_local.chat.calls import CallArguments, CallBegins, Content, ReplyParser
from llm_local.chat.openings import Openings

NAMES = ("weather", "weather_at", "search")


def read(pieces: list[str], *, certain: bool = False) -> tuple[str, list[list[str]]]:
    """Content and calls (name, arguments) of an answer that comes in pieces."""
    parser = ReplyParser(Openings(NAMES), NAMES, certain)
    content, calls = "", []
    for at, piece in enumerate(pieces):
        for event in parser.feed(piece, last=at == len(pieces) - 1):
            match event:
                case Content(text):
                    content += text
                case CallBegins(index, name):
                    assert index == len(calls)
                    calls.append([name, ""])
                case CallArguments(index, text):
                    assert text
                    calls[index][1] += text
    return content, calls


HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Омск"}}\n</tool_call>'
CASES: list[tuple[str, bool, str, list[list[str]]]] = [
    # text, certain, content, calls
    ("Просто ответ.", False, "Просто ответ.", []),
    (HERMES, False, "", [["weather", '{"city": "Омск"}']]),
    (HERMES, True, "", [["weather", '{"city": "Омск"}']]),
    (f"Сейчас узнаю.\n{HERMES}", False, "Сейчас узнаю.", [["weather", '{"city": "Омск"}']]),
    (f"{HERMES}\n{HERMES.replace('weather', 'search')}", False, "",
     [["weather", '{"city": "Омск"}'], ["search", '{"city": "Омск"}']]),
    ('```json\n{"name": "weather_at", "arguments": {"a": [1, {"b": "}"}]}}\n```', False, "",
     [["weather_at", '{"a": [1, {"b": "}"}]}']]),
    ('```\n{"name": "search", "arguments": {}}\n``` ', False, "", [["search", "{}"]]),
    ('{"name": "search", "parameters": {"q": "a\\"}b"}}', False, "", [["search", '{"q": "a\\"}b"}']]),
    ('{"name": "search", "parameters": {}}; {"name": "weather", "parameters": {}}', False, "",
     [["search", "{}"], ["weather", "{}"]]),
    ('{"name": "weather", "parameters": {}}', True, "", [["weather", "{}"]]),
    ('<tool_call>\n{"name": "search", "arguments": {"q": "weather"}}\n</tool_call>', True, "",
     [["search", '{"q": "weather"}']]),
    ('{"name": "search", "parameters": {}}, {"name": "weather", "parameters": {}}', False, "",
     [["search", "{}"], ["weather", "{}"]]),
    ('<|python_tag|>{"name": "search", "parameters": {}}', False, "", [["search", "{}"]]),
    ("<|python_tag|>print(1)", False, "<|python_tag|>print(1)", []),
    ("<|py", False, "<|py", []),
    ('{"name": "nobody", "arguments": {}}', False, '{"name": "nobody", "arguments": {}}', []),
    ('Пример: {"name": "search", "arguments": {}}', False, 'Пример: {"name": "search", "arguments": {}}', []),
    ("```python\nprint(1)\n```\nготово", False, "```python\nprint(1)\n```\nготово", []),
    ('```json\n{"name": "x"}\n```', False, '```json\n{"name": "x"}\n```', []),
    ('````json\n{"name": "search", "arguments": {}}\n```', False, "`", [["search", "{}"]]),
    ("a <tool_ca b", False, "a <tool_ca b", []),
    ("конец <tool_cal", False, "конец <tool_cal", []),
    ("  \n два  пробела \n", False, "  \n два  пробела \n", []),
    ('<tool_call>\n{"name": "search", "arguments": {"q": "cut of', False, "", [["search", '{"q": "cut of']]),
    ('<tool_call>\n{"na', False, "", []),
    ('{"name": "search", "parameters": {}}; {"name": "wea', False, "", [["search", "{}"]]),
    (f"{HERMES}\n<tool_", False, "", [["weather", '{"city": "Омск"}']]),
    ("", False, "", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "certain", "content", "calls"), CASES, ids=[case[0][:40] for case in CASES])
def test_an_answer_is_read_the_same_however_it_is_cut(
    text: str, certain: bool, content: str, calls: list[list[Any]]
) -> None:
    assert read([text], certain=certain) == (content, calls)
    assert read([*text, ""], certain=certain) == (content, calls)
    choose = random.Random(1)
    for _ in range(50):
        cuts = sorted(choose.choices(range(len(text) + 1), k=4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(pieces, certain=certain) == (content, calls)


def test_content_is_not_held_back_longer_than_needed() -> None:
    parser = ReplyParser(Openings(NAMES), NAMES)
    assert parser.feed("Да, конечно") == [Content("Да, конечно")]
    assert parser.feed(" <") == []
    assert parser.feed("b> и") == [Content(" <b> и")]
    assert parser.feed(" ```js") == []
    assert parser.feed("\nlet") == [Content(" ```js\nlet")]


def test_arguments_stream_as_they_come() -> None:
    parser = ReplyParser(Openings(NAMES), NAMES)
    assert parser.feed('<tool_call>\n{"name": "search"') == [CallBegins(0, "search")]
    assert parser.feed(', "arguments": {"q": ') == [CallArguments(0, '{"q": ')]
    assert parser.feed('"Омск"') == [CallArguments(0, '"Омск"')]
    assert parser.feed("}") == [CallArguments(0, "}")]
    assert parser.feed("}\n</tool_call>") == []


@pytest.mark.parametrize(
    ("text", "name", "rest"),
    [
        ("abc <tool_call>\n{", None, "\n{"),
        ('```json\n{"name": "weather_at", ', "weather_at", ", "),
        ('{ "name" : "weather", ', "weather", ", "),
    ],
)
def test_where_an_opening_ends(text: str, name: str | None, rest: str) -> None:
    opening, _ = Openings(NAMES).find(text)
    assert opening is not None
    assert (opening.name, text[opening.end :]) == (name, rest)


@pytest.mark.parametrize("text", ["", "{", '{"name": "weathe', "```js", "x <tool", '{"name": "other"'])
def test_what_is_no_opening_yet(text: str) -> None:
    assert Openings(NAMES).find(text)[0] is None


@pytest.mark.parametrize("text", ['{"name": "search", "age": 3}', '{"name":"use <tool_call> tags"}', "<tool"])
def test_json_beside_calls_may_say_anything(text: str) -> None:
    for pieces in ([text], list(text)):
        parser = ReplyParser(Openings(NAMES), NAMES, mark="<tool_call>")
        events = [event for piece in pieces for event in parser.feed(piece)] + parser.feed("", last=True)
        assert "".join(event.text for event in events if isinstance(event, Content)) == text
    parser = ReplyParser(Openings(NAMES), NAMES, mark="<tool_call>")
    assert CallBegins(0, "weather") in parser.feed(HERMES, last=True)


def test_compact_json_beside_bare_calls_is_told_from_them() -> None:
    for text, called in (('{"name":"search","parameters":{}}', False), ('{"name": "search", "parameters": {}}', True)):
        for pieces in ([text], list(text)):
            parser = ReplyParser(Openings(NAMES), NAMES, mark='{"name": ')
            events = [event for piece in pieces for event in parser.feed(piece)] + parser.feed("", last=True)
            assert (CallBegins(0, "search") in events) == called
            assert "".join(event.text for event in events if isinstance(event, Content)) == ("" if called else text)
