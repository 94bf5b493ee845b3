"""The symbols of llama.cpp's grammar language (GBNF): read, written and renamed. Any thread."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from llm_local.errors import InvalidGrammar
from llm_local.structured.spacing import Spacing

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<define>[a-zA-Z0-9_-]+[ \t]*::=)
      | (?P<literal>"(?:[^"\\]|\\.)*")
      | (?P<set>\[(?:[^\]\\]|\\.)*\])
      | (?P<token>!?<[^>\n]*>)
      | (?P<name>[a-zA-Z0-9_-]+)
      | (?P<repeat>\{[ \t]*\d+[ \t]*(?:,[ \t]*\d*[ \t]*)?\})
      | (?P<mark>[()|*+?.])""",
    re.VERBOSE | re.DOTALL,
)

ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}

SPACE = "space"
"""The converter's rule for optional whitespace."""

FORMS: dict[Spacing, dict[str, str]] = {
    Spacing.COMPACT: {},
    Spacing.SPACED: {'","': '", "', '":"': '": "'},
    Spacing.FLEXIBLE: {
        **{symbol: f"{symbol} {SPACE}" for symbol in ('"{"', '"["')},
        **{symbol: f"{SPACE} {symbol} {SPACE}" for symbol in ('","', '":"')},
        **{symbol: f"{SPACE} {symbol}" for symbol in ('"}"', '"]"')},
    },
}
"""What stands for the parts of JSON behind which the converter allows whitespace."""


def symbols(grammar: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each symbol, whitespace and comments among them.

    Raises:
        InvalidGrammar: there is something else.
    """
    at = 0
    while at < len(grammar):
        found = _TOKEN.match(grammar, at)
        if found is None:
            line = grammar.count("\n", 0, at) + 1
            raise InvalidGrammar(f"The grammar cannot be read at line {line}: {grammar[at : at + 20]!r}.")
        yield str(found.lastgroup), found[0]
        at = found.end()


def literal(text: str) -> str:
    """Return what matches a text."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in ESCAPES:
        return ESCAPES[char]
    return char if " " <= char <= "~" else f"\\U{ord(char):08x}"


def relabelled(grammar: str, name: str, spacing: Spacing, own: Mapping[str, str]) -> list[str]:
    """Return the rules that llama-cpp-python's converter made, to stand in one grammar with others.

    Args:
        grammar: what it made; each rule is a line, and `root` is the first.
        name: of that rule from now on; the names of the others begin with it.
        spacing: what becomes of its optional whitespace, the rule `space`.
        own: bodies of rules that take the place of its own.
    """
    rules = (line.partition("::=") for line in grammar.split("\n"))
    bodies = {rule.strip(): own.get(rule.strip(), body.strip()) for rule, _, body in rules}
    if spacing is not Spacing.FLEXIBLE:
        bodies.pop(SPACE, None)
    forms = {symbol: form.replace(SPACE, _label(SPACE, name)) for symbol, form in FORMS[spacing].items()}
    return [f"{_label(rule, name)} ::= {_body(body, name, forms)}" for rule, body in bodies.items()]


def _label(rule: str, name: str) -> str:
    return name if rule == "root" else f"{name}-{rule}"


def _body(body: str, name: str, forms: Mapping[str, str]) -> str:
    out: list[str] = []
    for kind, text in symbols(body):
        if kind == "name" and text == SPACE:
            # The converter writes `"," space`: no literal of a schema is a bare comma with whitespace behind it.
            last = next((at for at in range(len(out) - 1, -1, -1) if out[at].strip()), 0)
            if out:
                out[last] = forms.get(out[last], out[last])
        else:
            out.append(_label(text, name) if kind == "name" else text)
    return "".join(out).strip()
