"""The pattern of all strings but some. Any thread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class OtherStrings(str):
    """A pattern (Rust) of all strings but some.

    Attributes:
        strings: which ones.
    """

    __slots__ = ("strings",)

    strings: list[str]


def other_strings(strings: list[str]) -> OtherStrings:
    """Return a pattern that matches all strings but these."""
    made = OtherStrings(f"^(?:{_not_in(trie_of(strings))})$")
    made.strings = strings
    return made


def trie_of(strings: Iterable[str]) -> dict[str, Any]:
    """Return the tree of the strings' characters; `""` is where one of them ends."""
    trie: dict[str, Any] = {}
    for text in strings:
        at = trie
        for char in text:
            at = at.setdefault(char, {})
        at[""] = {}
    return trie


def _not_in(trie: dict[str, Any]) -> str:
    branches = [char for char in trie if char]
    options = [] if "" in trie else [""]
    listed = "".join(f"\\u{{{ord(char):x}}}" for char in branches)
    options.append((f"[^{listed}]" if listed else r"[\s\S]") + r"[\s\S]*")
    options += [f"\\u{{{ord(char):x}}}(?:{_not_in(trie[char])})" for char in branches]
    return "|".join(options)
