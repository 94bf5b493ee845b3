"""The LlamaGrammar engine: `LlamaGrammar.from_json_schema` and GBNF, made sound. Workers.

The converter of llama-cpp-python loosens what it does not know, and lets strings hold raw control characters. So it
sees only a schema of parts that its grammar enforces wholly (`plain.py`); all else is refused by name, and its rules
for characters and whitespace are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from llm_local.errors import InvalidGrammar, InvalidSchema
from llm_local.structured.calls import START, Value
from llm_local.structured.gbnf import check_gbnf
from llm_local.structured.members import RULES
from llm_local.structured.plain import SHARED, PlainSchema
from llm_local.structured.regular import Regular
from llm_local.structured.schema import Schema
from llm_local.structured.spacing import Spacing
from llm_local.structured.symbols import SPACE, literal, relabelled
from llm_local.structured.tokens import Compiled

ROOT = "root"
OPTIONAL_SPACE = r"[ \t\r\n]{0,60}"
_ANY = r"[ \t\r\n]{0,40}"


class NativeGrammars(Protocol):
    """What `llm_local.llama` offers."""

    def gbnf_of_schema(self, schema: str) -> str:
        """Return the converter's grammar of a schema."""
        ...

    def compile(self, gbnf: str, named: frozenset[str]) -> Compiled | None:
        """Compile a grammar that names these tokens; None when it cannot be parsed."""
        ...

    def is_token(self, text: str) -> bool:
        """Tell whether the vocabulary has a token of its own for a text, which it also is in an answer."""
        ...


class NativeEngine:
    """Compiles through LlamaGrammar.

    Args:
        grammars: the native side.
        compact: no optional whitespace in JSON.
    """

    def __init__(self, grammars: NativeGrammars, *, compact: bool) -> None:
        self._grammars = grammars
        self._spacing = Spacing.COMPACT if compact else Spacing.FLEXIBLE

    def json(self, schema: Schema) -> Compiled:
        """Compile a canonical schema.

        Raises:
            InvalidSchema: the grammar would not enforce all of it; names the keyword.
        """
        try:
            return self.gbnf("\n".join(self.rules(schema, ROOT, self._spacing)))
        except InvalidGrammar as error:
            raise InvalidSchema(f"The schema's grammar is refused: {error.message}") from error

    def rules(self, schema: Schema, name: str, spacing: Spacing) -> list[str]:
        """Return the rules of a JSON value; that of the whole value has this name, others begin with it or are shared.

        Raises:
            InvalidSchema: the grammar would not enforce all of it; names the keyword.
        """
        plain = PlainSchema(schema)
        try:
            text = self._grammars.gbnf_of_schema(json.dumps(plain.document()))
        except InvalidSchema:
            raise
        except Exception as error:
            raise InvalidSchema(f"LlamaGrammar cannot convert the schema: {error!r}.") from error
        return relabelled(text, name, spacing, {SPACE: OPTIONAL_SPACE, **RULES, **plain.rules}, SHARED)

    def regex(self, pattern: str) -> Compiled:
        """Compile a regular expression that matches the whole answer.

        Raises:
            InvalidGrammar: it is none, uses what finite automata cannot do, or is too large.
        """
        return self.gbnf(Regular(pattern).gbnf())

    def choice(self, choices: SequenceOf[str]) -> Compiled:
        """Compile a list of texts.

        Raises:
            InvalidGrammar: they are too large for llama.cpp.
        """
        return self.gbnf(f"{ROOT} ::= " + " | ".join(map(literal, choices)))

    def gbnf(self, grammar: str) -> Compiled:
        """Compile a grammar.

        Raises:
            InvalidGrammar: it cannot be parsed, or would endanger the process.
        """
        named = check_gbnf(grammar)
        compiled = self._grammars.compile(grammar, named)
        if compiled is None:
            raise InvalidGrammar("llama.cpp cannot parse the grammar. Its syntax is described in grammars/README.md.")
        return compiled

    def is_token(self, text: str) -> bool:
        """Tell whether the vocabulary has a token of its own for a text."""
        return self._grammars.is_token(text)


class NativeCalls:
    """Calls in GBNF; `calls.CallLanguage`, see there for the attributes.

    Args:
        engine: compiles.
    """

    key = rf'{_ANY} "," {_ANY} "\"" ("arguments" | "parameters") "\"" {_ANY} ":" {_ANY}'
    next_fenced = rf'{_ANY} "```" "json"? {_ANY} "{{" {_ANY} "\"name\"" {_ANY} ":" {_ANY}'
    end_fenced = rf'{_ANY} "}}" {_ANY} "```"'
    next_bare = rf'[;, \t\r\n]{{1,40}} "{{" {_ANY} "\"name\"" {_ANY} ":" {_ANY}'
    end_bare = rf'{_ANY} "}}"'

    def __init__(self, engine: NativeEngine) -> None:
        self._engine = engine

    def text(self, text: str) -> str:
        """Return what matches a text."""
        return literal(text)

    def mark(self, mark: str) -> str:
        """Return what matches a mark."""
        return mark if self._engine.is_token(mark) else literal(mark)

    def compile(self, rules: Mapping[str, str], values: Mapping[str, Value]) -> Compiled:
        """Compile rules that begin with `start`.

        Raises:
            InvalidSchema: the grammar would not enforce all of a value; names the keyword, and the request's field.
            InvalidGrammar: llama.cpp cannot be given it.
        """
        lines = [f"{ROOT if name == START else name} ::= {body}" for name, body in rules.items()]
        for name, value in values.items():
            try:
                lines += self._engine.rules(value.schema, name, value.spacing)
            except InvalidSchema as error:
                error.param = value.param
                raise
        return self._engine.gbnf("\n".join(dict.fromkeys(lines)))
