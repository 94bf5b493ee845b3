"""The symbols of llama.cpp's grammar language (GBNF): read, written and renamed. Any thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

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


def in_set(char: str) -> str:
    """Return a character as it is written in a set."""
    code = ord(char)
    if code < 128:
        return char if char.isalnum() else f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def relabelled(
    grammar: str, name: str, spacing: Spacing, own: Mapping[str, str], shared: frozenset[str] = frozenset()
) -> list[str]:
    """Return the rules that llama-cpp-python's converter made, to stand in one grammar with others.

    Args:
        grammar: what it made; each rule is a line, and `root` is the first.
        name: of that rule from now on; the names of the others begin with it.
        spacing: what becomes of its optional whitespace, the rule `space`.
        own: bodies of rules that take the place of its own, or are used by those that do.
        shared: first words of the names of rules that are the same whatever the grammar is of. (A hundred tools have
            one rule of a string between them.)
    """

    def label(rule: str) -> str:
        if rule == "root":
            return name
        return f"{spacing.value if rule.split('-', maxsplit=1)[0] in shared else name}-{rule}"

    rules = (line.partition("::=") for line in grammar.split("\n"))
    bodies = {**{rule.strip(): body.strip() for rule, _, body in rules}, **own}
    if spacing is not Spacing.FLEXIBLE:
        bodies.pop(SPACE, None)
    forms = {symbol: form.replace(SPACE, label(SPACE)) for symbol, form in FORMS[spacing].items()}
    return [f"{label(rule)} ::= {_body(body, label, forms)}" for rule, body in bodies.items()]


def _body(body: str, label: Callable[[str], str], forms: Mapping[str, str]) -> str:
    out: list[str] = []
    for kind, text in symbols(body):
        if kind == "name" and text == SPACE:
            # The converter writes `"," space`: no literal of a schema is a bare comma with whitespace behind it.
            last = next((at for at in range(len(out) - 1, -1, -1) if out[at].strip()), 0)
            if out:
                out[last] = forms.get(out[last], out[last])
        else:
            out.append(label(text) if kind == "name" else text)
    return "".join(out).strip()
