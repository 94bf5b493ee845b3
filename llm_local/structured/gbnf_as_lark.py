"""llama.cpp's grammar language (GBNF) in llguidance's dialect of Lark. Any thread.

GBNF knows no words: a rule matches characters, and several may go on with the same one. So each character becomes a
lexeme of its own. (llguidance's own translation joins them into words, of which the longest is taken: `[a-z]* "end"`
matches nothing there. It drops zeros of `\\u0041`, too, and hands `&&` in a set to Rust, where it has a meaning.)
"""

from __future__ import annotations

import re

from llm_local.errors import InvalidGrammar
from llm_local.structured.symbols import symbols

_CHAR = re.compile(
    r"""\\x(?P<x>[0-9a-fA-F]{2}) | \\u(?P<u>[0-9a-fA-F]{4}) | \\U(?P<U>[0-9a-fA-F]{8}) | \\(?P<one>[nrt"\\\[\]])
      | (?P<char>[^\\])""",
    re.VERBOSE | re.DOTALL,
)
_CONTROL = {"n": "\n", "r": "\r", "t": "\t"}

EMPTY = '""'
ANY = r"/[\u{0}-\u{10ffff}]/"


def lark_of_gbnf(grammar: str) -> str:
    """Return a grammar that matches the same.

    Args:
        grammar: what `gbnf.check_gbnf` let pass.

    Raises:
        InvalidGrammar: it has an escape or a part that is not known here, or is nested too deep.
    """
    rules: dict[str, list[str]] = {}
    rule: list[str] = []
    for kind, text in symbols(grammar):
        if kind == "define":
            rule = rules[text.removesuffix("::=").strip()] = []
        elif kind != "space":
            rule.append(text)
    names = {name: "start" if name == "root" else f"r{at}" for at, name in enumerate(rules)}
    groups: list[str] = []
    try:
        lines = [f"{names[name]}: {_Body(parts, names, groups).written()}" for name, parts in rules.items()]
    except RecursionError:
        raise InvalidGrammar("The grammar is nested too deep.") from None
    return "\n".join([*lines, *(f"g{at}: {body}" for at, body in enumerate(groups))])


class _Body:
    """What stands behind `::=`, written from left to right.

    Args:
        parts: its symbols.
        names: of the rules in Lark.
        groups: bodies of groups, to which its own are added: Lark may not be nested deeply, so each is a rule.
    """

    def __init__(self, parts: list[str], names: dict[str, str], groups: list[str]) -> None:
        self._parts = parts
        self._names = names
        self._groups = groups
        self._at = 0

    def written(self) -> str:
        ways = [self._sequence()]
        while self._at < len(self._parts) and self._parts[self._at] == "|":
            self._at += 1
            ways.append(self._sequence())
        return " | ".join(ways)

    def _sequence(self) -> str:
        items: list[str] = []
        while self._at < len(self._parts) and (part := self._parts[self._at]) not in ("|", ")"):
            self._at += 1
            if part in ("*", "+", "?") or part[0] == "{":
                items[-1] = self._repeated(items[-1], part)
            else:
                items.append(self._item(part))
        return " ".join(items) or EMPTY

    def _item(self, part: str) -> str:
        if part == "(":
            inner = self.written()
            self._at += 1
            return self._group(inner)
        if part == ".":
            return ANY
        if part[0] == '"':
            return " ".join(f"/{_code(code)}/" for code in _codes(part[1:-1])) or EMPTY
        if part[0] == "[":
            return _set(part[1:-1])
        if part[0] == "!":
            raise InvalidGrammar(f"{part} is known to LlamaGrammar only (LLM_GRAMMAR_ENGINE=llama or auto).")
        return part if part[0] == "<" else self._names[part]

    def _repeated(self, item: str, how: str) -> str:
        if how[0] == "{" and not any(map(int, re.findall(r"\d+", how))) and not how.rstrip("} ").endswith(","):
            return EMPTY
        # `{0,5}` and then `?`: what is repeated already is a group, too.
        return (item if item.isalnum() else self._group(item)) + how

    def _group(self, body: str) -> str:
        self._groups.append(body)
        return f"g{len(self._groups) - 1}"


def _codes(text: str) -> list[int]:
    """Return the characters that a literal or a set is written with.

    Raises:
        InvalidGrammar: one of its escapes is none.
    """
    out, at = [], 0
    while at < len(text):
        found = _CHAR.match(text, at)
        code = -1
        if found is not None:
            digits = found["x"] or found["u"] or found["U"]
            code = int(digits, 16) if digits else ord(_CONTROL.get(found["one"], found["one"] or found["char"]))
        if found is None or not (0 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF):
            raise InvalidGrammar(f"The escape {text[at : at + 10]!r} in the grammar is not known.")
        out.append(code)
        at = found.end()
    return out


def _set(text: str) -> str:
    """Return a set of characters; a range is written with a hyphen that is not escaped, and not the last."""
    negated = text.startswith("^")
    parts, at = "", 1 if negated else 0
    codes: list[tuple[int, bool]] = []
    while at < len(text):
        found = _CHAR.match(text, at)
        end = found.end() if found else len(text)
        codes.append((_codes(text[at:end])[0], text[at:end] == "-"))
        at = end
    place = 0
    while place < len(codes):
        low, _ = codes[place]
        if place + 2 < len(codes) and codes[place + 1][1]:
            high = codes[place + 2][0]
            if high < low:
                raise InvalidGrammar(f"The range {chr(low)}-{chr(high)} in the grammar is out of order.")
            parts += f"{_code(low)}-{_code(high)}"
            place += 3
        else:
            parts += _code(low)
            place += 1
    if not parts:
        raise InvalidGrammar("A set of characters in the grammar is empty.")
    return f"/[{'^' if negated else ''}{parts}]/"


def _code(code: int) -> str:
    return f"\\u{{{code:x}}}"
