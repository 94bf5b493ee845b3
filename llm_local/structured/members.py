"""Objects and tuples as rules of llama.cpp's grammar language (GBNF). Workers.

llama-cpp-python's converter lets further properties be declared ones again, and knows only tuples of full length.
Whitespace is written as it writes it, for `symbols.relabelled`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

from llm_local.structured.other_strings import trie_of
from llm_local.structured.symbols import in_set, literal

CHAR, ESCAPED = "char", "escaped"
"""Rules of a character of a JSON string, and of one with a backslash before it."""

UNWRITTEN = r"\"\\\x00-\x1f\x7f"
"""Characters that are not written as they are (in a set)."""

ESCAPES = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
COMMA, COLON = '"," space', 'space ":" space'

RULES = {CHAR: f"[^{UNWRITTEN}] | {ESCAPED}", ESCAPED: r'"\\" ["\\/bfnrt]'}

STRIDE = 8
"""Optional properties that one rule chooses from: from all were much to write, one by one too deep a chain of rules."""


@dataclass(frozen=True, slots=True)
class Member:
    """A declared property: its name, the rule of its value, and whether it must be there."""

    name: str
    value: str
    required: bool


def object_rules(rule: str, members: SequenceOf[Member], rest: str | None, taken: Iterable[str]) -> dict[str, str]:
    """Return the rules of an object whose properties come in the order of their declaration, and others behind them.

    Args:
        rule: the object's; the names of the others begin with it.
        rest: the rule of other properties' values; None when there are none.
        taken: names that other properties may not have.
    """
    n = len(members)
    rules = {f"{rule}k{at}": f"{_text(member.name)} {COLON} {member.value}" for at, member in enumerate(members)}
    if rest is not None:
        rules[f"{rule}k{n}"] = rf'"\"" {other_keys(taken)} "\"" {COLON} {rest}'
    n_needed = max((at + 1 for at, member in enumerate(members) if member.required), default=0)
    last = n + (rest is not None)

    def begun(at: int, separator: str) -> str:
        """What comes when the first `at` properties are done with, in between or as the first."""
        text = f"{separator} {rule}-{at}" if at < last else ""
        return text if at < n_needed or not text else f"({text})?"

    def ways(at: int) -> Iterator[str]:
        for place in range(at, min(at + STRIDE, n)):
            yield f"{rule}k{place} {rule}t{place + 1}"
            if members[place].required:
                return
        if at + STRIDE < n:
            yield f"{rule}-{at + STRIDE}"
        elif rest is not None:
            yield f"{rule}k{n} {rule}t{n}"

    rules |= {f"{rule}-{at}": " | ".join(ways(at)) for at in range(last)}
    rules |= {f"{rule}t{at}": begun(at, COMMA) or '""' for at in range(n + 1)}
    return {**rules, rule: f'"{{" space {begun(0, "")} "}}" space'}


def tuple_rule(items: SequenceOf[str], rest: str | None, least: int, most: int | None) -> str:
    """Return the rule of an array.

    Args:
        items: the rules of its first items.
        rest: the rule of those behind them; None when there are none.
        least: number of items.
        most: number of items; None for any.
    """
    n, text = len(items), ""
    if rest is not None and (most is None or most > n):
        text = f"({COMMA} {rest}){{{max(least - n, 0)},{'' if most is None else most - n}}}"
    for at in reversed(range(n if most is None else min(n, most))):
        text = f"{COMMA if at else ''} {items[at]} {text}"
        if at >= least:
            text = f"({text})?"
    return f'"[" space {text} "]" space'


def value_rule(values: Iterable[Any]) -> str:
    """Return the rule of some values that are neither arrays nor objects."""
    return " | ".join(map(_text, values))


def _text(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


def other_keys(names: Iterable[str]) -> str:
    """Return what matches the text between the quotes of any key but these."""
    return _other_than(trie_of(names))


def _other_than(trie: dict[str, Any]) -> str:
    following = [char for char in trie if char]
    if not following:
        return f"{CHAR}{'+' if '' in trie else '*'}"
    escapes = "".join(in_set(escape) for char, escape in ESCAPES.items() if char not in trie)
    escaped = rf'"\\" [{escapes}]' if ESCAPES.keys() & trie.keys() else ESCAPED
    ways = [f"([^{UNWRITTEN}{''.join(map(in_set, following))}] | {escaped}) {CHAR}*"]
    ways += [f"{spelt} {_other_than(trie[char])}" for char in following if (spelt := _spelt(char))]
    return f"({' | '.join(ways)})" if "" in trie else f"({' | '.join(ways)})?"


def _spelt(char: str) -> str:
    """Return what matches a character in a string; nothing where other keys have no such character."""
    ways = [] if char in '"\\\x7f' or char < " " else [literal(char)]
    if char in ESCAPES:
        ways.append(literal(f"\\{ESCAPES[char]}"))
    return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})" if ways else ""
