"""Where a call begins in a model's text. Any thread.

Whatever the dialect, a call is a JSON object that begins with the name of the function:

    <tool_call>  {"name": "f", "arguments": {...}}  </tool_call>      after a mark, a call is certain
    ```json      {"name": "f", "arguments": {...}}  ```               in a fence, once the name is a function's
                 {"name": "f", "parameters": {...}}                   at the start of an answer, likewise
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

OPEN, CLOSE, FENCE = "<tool_call>", "</tool_call>", "```"
PYTHON_TAG = "<|python_tag|>"
"""Llama 3.1 may write it before a bare call. As a control token it is not in the text; spelled out it is markup."""

SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a call in a text.

    Attributes:
        start: where its markup begins.
        end: where what is constrained begins: after the mark, or after the name.
        name: of the function; None after a mark, where it is yet to come.
    """

    start: int
    end: int
    name: str | None = None


class _Partial(Exception):
    """The text ends before it is decided."""


class Openings:
    """Finds openings.

    Args:
        names: of the functions.
    """

    def __init__(self, names: SequenceOf[str]) -> None:
        # The longest first: one name may begin another.
        self._names = sorted(names, key=len, reverse=True)

    def find(self, text: str, *, at_start: bool = True) -> tuple[Opening | None, int]:
        """Look for the first opening.

        Args:
            text: the answer, or the part of it that is not decided yet.
            at_start: whether `text` is the beginning of the answer, where a bare object may be a call.

        Returns:
            The opening, if there is one, and how much of the text is surely not part of one.
        """
        best: Opening | None = None
        decided = len(text)
        for mark in (OPEN, FENCE):
            at = text.find(mark)
            while at >= 0 and (best is None or at < best.start):
                try:
                    found = self._at(text, at, mark)
                except _Partial:
                    decided = min(decided, at)
                    break
                if found is not None:
                    best = found
                    break
                # One character on: of a row of backticks the last three may be the fence, however the text is cut.
                at = text.find(mark, at + 1)
            decided = min(decided, len(text) - _overlap(text, mark))
        if at_start:
            try:
                best = self._bare(text) or best
            except _Partial:
                decided = 0
        if best is not None and best.start > decided:
            best = None
        return best, best.start if best is not None else decided

    def _bare(self, text: str) -> Opening | None:
        """Match a call at the beginning of a text."""
        start = at = skip(text, 0)
        if PYTHON_TAG.startswith(text[start:]):
            raise _Partial
        if text.startswith(PYTHON_TAG, start):
            at += len(PYTHON_TAG)
        elif text[start] != "{":
            return None
        return self._named(text, start, at)

    def _at(self, text: str, at: int, mark: str) -> Opening | None:
        if mark == OPEN:
            return Opening(at, at + len(OPEN))
        inside = at + len(FENCE)
        if text.startswith("json", inside):
            inside += 4
        elif "json".startswith(text[inside : inside + 4]):
            raise _Partial
        return self._named(text, at, inside)

    def _named(self, text: str, start: int, at: int) -> Opening | None:
        """Match `{ "name" : "NAME"` with any whitespace."""
        for literal in ("{", '"name"', ":", '"'):
            at = skip(text, at)
            if not text.startswith(literal, at):
                if literal.startswith(text[at:]):
                    raise _Partial
                return None
            at += len(literal)
        for name in self._names:
            if text.startswith(f'{name}"', at):
                return Opening(start, at + len(name) + 1, name)
            if f'{name}"'.startswith(text[at:]):
                raise _Partial
        return None


def skip(text: str, at: int) -> int:
    """Return where the whitespace at a place ends."""
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
