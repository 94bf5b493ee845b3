"""The file of prompts whose beginnings are computed at start, and what tokens those are. Loading thread.

JSON or JSON lines. Each entry is a system prompt (a string), a list of messages, or an object of `messages`, `tools`
and `chat_template_kwargs` as a request would have them. They are rendered by what renders requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from llm_local.chat.template import ChatTemplate
from llm_local.engine.radix_tree import RadixTree, Tokens, common_prefix
from llm_local.errors import RequestError, StartupError
from llm_local.server.body import explain
from llm_local.server.prompt import render
from llm_local.server.runtime import Vocabulary
from llm_local.server.schema import ApplyTemplateRequest

NEXT_TURNS = ("a", "Z", "7", "\n", " ", "я", "<", "你")
"""User messages that begin differently: what all of them have before them, every next one has."""

LARGEST_SHARE = 2
"""One part in so many of the KV cells may be pinned."""


@dataclass(frozen=True, slots=True)
class WarmPrompt:
    """An entry of the file."""

    where: str
    request: ApplyTemplateRequest


def read_warm_prompts(path: Path) -> list[WarmPrompt]:
    """Read the file.

    Raises:
        StartupError: it cannot be read, or an entry is wrong; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartupError(f"cannot read warm_prefixes {path}: {reason}") from None
    try:
        entries = _entries(text)
    except json.JSONDecodeError as error:
        raise StartupError(f"warm_prefixes {path}, line {error.lineno}: not valid JSON: {error.msg}") from None
    if not entries:
        raise StartupError(f"warm_prefixes {path} has no entries")
    return [WarmPrompt(where, _request(value, where)) for line, value in entries for where in [f"{path}, line {line}"]]


def warm_tokens(
    prompts: list[WarmPrompt], template: ChatTemplate, vocabulary: Vocabulary, *, window: int, n_cells: int
) -> list[Tokens]:
    """Return the prefixes as tokens, each once, shortest first.

    Raises:
        StartupError: the template refuses an entry, or they take too many KV cells.
    """
    found: dict[bytes, Tokens] = {}
    for prompt in prompts:
        tokens = _before_next_turn(prompt, template, vocabulary)
        if len(tokens) >= window:
            raise StartupError(
                f"warm_prefixes {prompt.where}: {len(tokens)} tokens, but a sequence has at most {window}; "
                "shorten it, or raise LLM_CTX and LLM_SEQ_MAX"
            )
        if len(tokens):
            found[tokens.tobytes()] = tokens
    needed, most = _n_distinct(list(found.values())), n_cells // LARGEST_SHARE
    if needed > most:
        raise StartupError(
            f"the {len(found)} warm prefixes need {needed} KV cells, and at most {most} (half of LLM_CTX) may be taken "
            f"for them; shorten them, or set LLM_CTX to at least {needed * LARGEST_SHARE}"
        )
    return sorted(found.values(), key=len)


def _entries(text: str) -> list[tuple[int, Any]]:
    """Return the entries with their line numbers: JSON texts one after the other, arrays of entries taken apart."""
    found: list[tuple[int, Any]] = []
    at = _skip(text, 0)
    while at < len(text):
        value, end = _decode(text, at)
        if isinstance(value, list) and not (value and all(_is_message(item) for item in value)):
            found += _items(text, at)
        else:
            found.append((_line(text, at), value))
        at = _skip(text, end)
    return found


def _items(text: str, at: int) -> list[tuple[int, Any]]:
    """Return the items of the array that begins at `at`, which is known to be valid."""
    found = []
    at = _skip(text, at + 1)
    while text[at] != "]":
        value, end = _decode(text, at)
        found.append((_line(text, at), value))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _decode(text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, at) from None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def _request(value: Any, where: str) -> ApplyTemplateRequest:
    if isinstance(value, str):
        value = {"messages": [{"role": "system", "content": value}]}
    elif isinstance(value, list):
        value = {"messages": value}
    elif not isinstance(value, dict):
        raise StartupError(f"warm_prefixes {where}: an entry is a string, a list of messages or an object")
    try:
        return ApplyTemplateRequest.model_validate(value)
    except ValidationError as error:
        raise StartupError(f"warm_prefixes {where}: {explain(error, value, ApplyTemplateRequest)}") from None


def _before_next_turn(prompt: WarmPrompt, template: ChatTemplate, vocabulary: Vocabulary) -> Tokens:
    """Return the tokens that do not depend on what the user says next."""
    prefix: Tokens | None = None
    for text in NEXT_TURNS:
        turn = {"role": "user", "content": text}
        fields = prompt.request.model_dump(exclude_none=True)
        try:
            request = ApplyTemplateRequest.model_validate({**fields, "messages": [*fields["messages"], turn]})
            rendered = render(request, template)
        except RequestError as error:
            raise StartupError(f"warm_prefixes {prompt.where}: {error}") from None
        tokens = np.array(vocabulary.tokenize_prompt(rendered), np.int32)
        prefix = tokens if prefix is None else prefix[: common_prefix(prefix, tokens)]
    assert prefix is not None
    return prefix


def _n_distinct(prefixes: list[Tokens]) -> int:
    """Return how many cells the prefixes take: what they begin with in common, counts once."""
    tree: RadixTree[int] = RadixTree()
    n = 0
    for number, prefix in enumerate(prefixes):
        n += len(prefix) - tree.walk(prefix).length
        tree.insert(number, prefix)
    return n
