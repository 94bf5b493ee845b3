"""Calls in llguidance's dialect of Lark; `calls.CallLanguage`. Workers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from llm_local.structured.calls import Value
from llm_local.structured.document import document
from llm_local.structured.guidance import OPTIONS, CompiledGuidance, Guidance

_ANY = r"[ \t\r\n]{0,40}"


class Lark:
    """Writes and compiles; see `CallLanguage` for the attributes.

    Args:
        guidance: compiles.
    """

    key = rf'/{_ANY},{_ANY}"(arguments|parameters)"{_ANY}:{_ANY}/'
    next_fenced = rf'/{_ANY}```(json)?{_ANY}\{{{_ANY}"name"{_ANY}:{_ANY}/'
    end_fenced = rf"/{_ANY}\}}{_ANY}```/"
    next_bare = rf'/[;, \t\r\n]{{1,40}}\{{{_ANY}"name"{_ANY}:{_ANY}/'
    end_bare = rf"/{_ANY}\}}/"

    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance

    def text(self, text: str) -> str:
        """Return what matches a text."""
        return json.dumps(text)

    def mark(self, mark: str) -> str:
        """Return what matches a mark."""
        return mark if self._guidance.is_special(mark) else self.text(mark)

    def compile(self, rules: Mapping[str, str], values: Mapping[str, Value]) -> CompiledGuidance:
        """Compile rules that begin with `start`.

        Raises:
            InvalidGrammar: llguidance cannot enforce it; its own words say why.
        """
        lines = [f"{name}: {body}" for name, body in rules.items()]
        lines += [f"{name}: %json {_json(value)}" for name, value in values.items()]
        return self._guidance.lark("\n".join(lines))


def _json(value: Value) -> str:
    return json.dumps({"x-guidance": OPTIONS[value.spacing], **document(value.schema)}, ensure_ascii=False)
