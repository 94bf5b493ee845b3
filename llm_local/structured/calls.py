"""Tool calls as grammars, and the constraint that leaves an answer free until it opens a call.

Grammars are made on workers; an `AfterOpening` belongs to the engine thread once its answer runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any, cast

import numpy as np

from llm_local.engine.constraint import Allowed, Constraint
from llm_local.engine.types import Token
from llm_local.structured.document import document
from llm_local.structured.guidance import FLEXIBLE, CompiledGuidance, Guidance
from llm_local.structured.schema import Schema
from llm_local.structured.spec import CallFormat
from llm_local.structured.tokens import Compiled, Feedable

MAX_CALLS = 16
MARKED = ""
"""Key of the grammar after a mark; the others are names of functions."""

GAP = r"/[ \t\r\n]{0,40}/"
KEY = r'/[ \t\r\n]{0,40},[ \t\r\n]{0,40}"(arguments|parameters)"[ \t\r\n]{0,40}:[ \t\r\n]{0,40}/'
NEXT_FENCED = r'/[ \t\r\n]{0,40}```(json)?[ \t\r\n]{0,40}\{[ \t\r\n]{0,40}"name"[ \t\r\n]{0,40}:[ \t\r\n]{0,40}/'
END_FENCED = r"/[ \t\r\n]{0,40}\}[ \t\r\n]{0,40}```/"
NEXT_BARE = r'/[;, \t\r\n]{1,40}\{[ \t\r\n]{0,40}"name"[ \t\r\n]{0,40}:[ \t\r\n]{0,40}/'
END_BARE = r"/[ \t\r\n]{0,40}\}/"

SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How models were trained to write calls (Python's `json.dumps`)."""

Opened = Callable[[str], tuple[str, int] | None]
"""Finds a call in a text: its key and where what is constrained begins."""


class CallGrammars:
    """Grammars of the calls of some functions.

    Args:
        guidance: compiles.
        tools: name and canonical schema of the arguments of each function.
        form: how the model writes calls.
        parallel: whether more than one may be made.
    """

    def __init__(self, guidance: Guidance, tools: dict[str, Schema], form: CallFormat, *, parallel: bool) -> None:
        self._guidance = guidance
        self._tools = tools
        self._form = form
        self._parallel = parallel

    def required(self, content: Schema | None = None) -> CompiledGuidance:
        """Compile calls from the first token on; or, with `content`, JSON that is valid against it."""
        start = "calls" if content is None else "calls | content"
        rules = [f"start: {start}", "calls: " + self._join(self._marks(self._form.opens), "marked", self._again())]
        if content is not None:
            rules.append(f"content: %json {_json(content, {'whitespace_flexible': False})}")
        return self._compile([*rules, *self._marked()])

    def opened(self) -> dict[str, CompiledGuidance]:
        """Compile what follows each kind of opening."""
        out = {MARKED: self._compile([f"start: marked {self._again()}", *self._marked()])}
        for name in self._tools:
            fenced, bare = self._more("more_fenced"), self._more("more_bare")
            rules = [f"start: {KEY} {self._arguments(name)} ( {END_FENCED} {fenced} | {END_BARE} {bare} )"]
            if self._parallel:
                names = (f"{_text(json.dumps(n))} {KEY} {self._arguments(n)}" for n in self._tools)
                rules += [
                    f"more_fenced: {NEXT_FENCED} any {END_FENCED}",
                    f"more_bare: {NEXT_BARE} any {END_BARE}",
                    "any: " + " | ".join(names),
                ]
            out[name] = self._compile([*rules, *self._all_arguments(FLEXIBLE)])
        return out

    def _again(self) -> str:
        """More calls. The space before them may also end the answer: models write it before they decide."""
        form = self._form
        more = self._more(f"( {self._join(_text(form.separator), self._marks(form.opens), 'marked')} )")
        return f"{more} {_text(form.separator.rstrip(' '))}?" if more and form.separator.isspace() else more

    def _more(self, rule: str) -> str:
        return f"{rule}{{0,{MAX_CALLS - 1}}}" if self._parallel else ""

    def _marked(self) -> list[str]:
        """A call between marks, its opening one left out: `gap {"name": "f", "arguments": ...} gap closes`."""
        form = self._form
        calls = [
            self._join(_text(f'{{"name": {json.dumps(name)}, "{form.arguments}": '), self._arguments(name), _text("}"))
            for name in self._tools
        ]
        gap = _text(form.gap)
        return [
            "marked: " + self._join(gap, "call", gap, self._marks(form.closes)),
            "call: " + " | ".join(calls),
            *self._all_arguments(SPACED),
        ]

    def _arguments(self, name: str) -> str:
        return f"arguments_{list(self._tools).index(name)}"

    def _all_arguments(self, options: dict[str, Any]) -> list[str]:
        return [f"{self._arguments(name)}: %json {_json(schema, options)}" for name, schema in self._tools.items()]

    def _marks(self, mark: str) -> str:
        """A mark is a token of its own where the vocabulary has one, and text elsewhere."""
        return mark if mark and self._guidance.is_special(mark) else _text(mark)

    @staticmethod
    def _join(*parts: str) -> str:
        return " ".join(part for part in parts if part)

    def _compile(self, rules: list[str]) -> CompiledGuidance:
        return self._guidance.lark("\n".join(rules))


def _text(text: str) -> str:
    return json.dumps(text) if text else ""


def _json(schema: Schema, options: dict[str, Any]) -> str:
    return json.dumps({"x-guidance": options, **document(schema)}, ensure_ascii=False)


class CompiledAfterOpening:
    """Starts constraints that are free until a call is opened."""

    def __init__(
        self, opened: Opened, grammars: Mapping[str, Compiled], piece: Callable[[Token], bytes], n_vocab: int
    ) -> None:
        self._arguments = (opened, grammars, piece, n_vocab)

    def start(self) -> AfterOpening:
        """Return a constraint for one answer."""
        return AfterOpening(*self._arguments)


class AfterOpening:
    """`engine.Constraint` that allows everything up to the opening of a call; see there for the methods."""

    def __init__(
        self, opened: Opened, grammars: Mapping[str, Compiled], piece: Callable[[Token], bytes], n_vocab: int
    ) -> None:
        self._opened = opened
        self._grammars = grammars
        self._piece = piece
        self._n_vocab = n_vocab
        # Bytes as Latin-1: openings are ASCII, and a position is a number of bytes.
        self._text = ""
        self._inner: Constraint | None = None
        self._refused: set[Token] = set()

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it is."""
        return self._inner is None or self._inner.may_end

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return self._inner is not None and self._inner.must_end

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next: one that opens a call must not go on with what cannot follow."""
        if self._inner is not None:
            return self._inner.allows(token)
        try:
            self._after(token)
        except _Refused:
            self._refused.add(token)
            return False
        return True

    def allowed(self) -> Allowed:
        """Return which tokens may come next, those of which `allows` said no left out."""
        if self._inner is not None:
            return self._inner.allowed()
        allowed = np.ones(self._n_vocab, np.bool_)
        allowed[list(self._refused)] = False
        return allowed

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        if self._inner is not None:
            self._inner.accept(token)
            return
        self._inner = self._after(token)
        self._text += self._piece(token).decode("latin-1")
        self._refused.clear()

    def _after(self, token: Token) -> Constraint | None:
        """Return the constraint that holds after the token, if it opens a call."""
        text = self._text + self._piece(token).decode("latin-1")
        found = self._opened(text)
        if found is None:
            return None
        key, end = found
        inner = cast(Feedable, self._grammars[key].start())
        if not inner.feed(text[end:].encode("latin-1")):
            raise _Refused
        return inner

    def forced(self) -> SequenceOf[Token]:
        """Return tokens that are the only way to go on."""
        return () if self._inner is None else self._inner.forced()

    def close(self) -> None:
        """Free what it holds."""
        if self._inner is not None:
            self._inner.close()


class _Refused(Exception):
    """A token opens a call and goes on with what cannot follow."""
