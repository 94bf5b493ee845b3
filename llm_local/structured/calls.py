"""Tool calls as grammars, in either engine's language. Workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from llm_local.engine.constraint import Constraint
from llm_local.structured.around import CompiledAround
from llm_local.structured.schema import Schema
from llm_local.structured.spacing import Spacing
from llm_local.structured.spec import CallFormat
from llm_local.structured.tokens import Compiled, Copyable, Feedable

MAX_CALLS = 16
MARKED = ""
"""Key of the grammar after a mark; the others are names of functions."""

START = "start"
"""The rule that an answer is made by, whatever the language calls it."""


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value in a grammar.

    Attributes:
        schema: what it is valid against.
        param: dotted name of the request's field that the schema comes from, for errors.
    """

    schema: Schema
    spacing: Spacing
    param: str


class CallLanguage(Protocol):
    """A grammar language, as far as calls need it.

    Both languages have names (of letters and digits), `|`, parentheses, `?` and `{m,n}` in common.

    Attributes:
        key: between the name of a bare call and its arguments: `, "arguments" :` in any spacing.
        next_fenced, next_bare: from the end of a call to the name of the next one, in a fence or not.
        end_fenced, end_bare: from the arguments to the end of the call, likewise.
    """

    key: str
    next_fenced: str
    end_fenced: str
    next_bare: str
    end_bare: str

    def text(self, text: str) -> str:
        """Return what matches a text that is not empty."""
        ...

    def mark(self, mark: str) -> str:
        """Return what matches a mark: a token of its own where the vocabulary has one, else its text."""
        ...

    def compile(self, rules: Mapping[str, str], values: Mapping[str, Value]) -> Compiled:
        """Compile rules, which may use values by their names.

        Raises:
            InvalidSchema, InvalidGrammar: the grammar would not enforce all of it.
        """
        ...


def _behind(text: str) -> Callable[[Copyable], Constraint]:
    """Return what moves a constraint on to where answers go on behind a text that is there already."""

    def moved(constraint: Copyable) -> Constraint:
        is_followed = cast(Feedable, constraint).feed(text.encode())
        assert is_followed, "the grammar begins with it"
        return constraint

    return moved


class CallGrammars:
    """Grammars of the calls of some functions.

    Args:
        language: writes and compiles them.
        tools: name and canonical schema of the arguments of each function, with its place in the request.
        form: how the model writes calls.
        parallel: whether more than one may be made.
    """

    def __init__(
        self, language: CallLanguage, tools: Mapping[str, tuple[Schema, str]], form: CallFormat, *, parallel: bool
    ) -> None:
        self._language = language
        self._tools = tools
        self._form = form
        self._parallel = parallel

    def required(self, content: tuple[Schema, str] | None = None) -> Compiled:
        """Compile calls from the first token on; or, with `content`, JSON that is valid against it."""
        rules = {START: "calls", "calls": _join(self._mark(self._form.opens), "marked", self._again())}
        values = self._values(Spacing.SPACED)
        if content is not None:
            rules[START] = "calls | content"
            values["content"] = Value(content[0], Spacing.COMPACT, content[1])
        return self._language.compile({**rules, **self._marked()}, values)

    def opened(self) -> dict[str, Compiled]:
        """Compile what follows each kind of opening."""
        marked = {START: _join("marked", self._again()), **self._marked()}
        out: dict[str, Compiled] = {MARKED: self._language.compile(marked, self._values(Spacing.SPACED))}
        # One for all names: a grammar for each, with all arguments in it, would take seconds for thirty functions.
        named = self._language.compile(self._named(), self._values(Spacing.FLEXIBLE))
        return {**out, **{name: CompiledAround(named, _behind(f'{name}"')) for name in self._tools}}

    def _named(self) -> dict[str, str]:
        """Return the rules of what follows `"name": "` in a bare or fenced call."""
        language = self._language
        fenced, bare = self._more("fenced"), self._more("bare")
        ends = f"( {_join(language.end_fenced, fenced)} | {_join(language.end_bare, bare)} )"
        calls = (_join(language.text(f'{name}"'), language.key, self._arguments(name)) for name in self._tools)
        rules = {START: f"any {ends}", "any": " | ".join(calls)}
        if self._parallel:
            quote = language.text('"')
            rules["fenced"] = f"{language.next_fenced} {quote} any {language.end_fenced}"
            rules["bare"] = f"{language.next_bare} {quote} any {language.end_bare}"
        return rules

    def _again(self) -> str:
        """More calls. The space before them may also end the answer: models write it before they decide."""
        form = self._form
        more = self._more(f"( {_join(self._text(form.separator), self._mark(form.opens), 'marked')} )")
        return f"{more} {self._text(form.separator.rstrip(' '))}?" if more and form.separator.isspace() else more

    def _more(self, rule: str) -> str:
        return f"{rule}{{0,{MAX_CALLS - 1}}}" if self._parallel else ""

    def _marked(self) -> dict[str, str]:
        """A call between marks, its opening one left out: `gap {"name": "f", "arguments": ...} gap closes`."""
        form = self._form
        calls = [
            _join(
                self._text(f'{{"name": {json.dumps(name)}, "{form.arguments}": '),
                self._arguments(name),
                self._text("}"),
            )
            for name in self._tools
        ]
        gap = self._text(form.gap)
        return {"marked": _join(gap, "call", gap, self._mark(form.closes)), "call": " | ".join(calls)}

    def _arguments(self, name: str) -> str:
        return f"arguments{list(self._tools).index(name)}"

    def _values(self, spacing: Spacing) -> dict[str, Value]:
        return {self._arguments(name): Value(schema, spacing, param) for name, (schema, param) in self._tools.items()}

    def _text(self, text: str) -> str:
        return self._language.text(text) if text else ""

    def _mark(self, mark: str) -> str:
        return self._language.mark(mark) if mark else ""


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
