"""Tool calls in a model's text: where one begins, and the parser that tells them from content. Any thread.

Whatever the dialect, a call is a JSON object that begins with the name of the function:

    <tool_call>  {"name": "f", "arguments": {...}}  </tool_call>      after a mark, a call is certain
    ```json      {"name": "f", "arguments": {...}}  ```               in a fence, once the name is a function's
                 {"name": "f", "parameters": {...}}                   at the start of an answer, likewise
"""

from __future__ import annotations

import re
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import Enum

OPEN, CLOSE, FENCE = "<tool_call>", "</tool_call>", "```"
PYTHON_TAG = "<|python_tag|>"
"""Llama 3.1 may write it before a bare call. As a control token it is not in the text; spelled out it is markup."""

SPACE = " \t\r\n"
_NAME = re.compile(r'"name"\s*:\s*"([^"]*)"')


class Kind(Enum):
    """How a call was opened."""

    MARKED = "marked"
    FENCED = "fenced"
    BARE = "bare"


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a call in a text.

    Attributes:
        start: where its markup begins.
        end: where what is constrained begins: after the mark, or after the name.
        name: of the function; None after a mark, where it is yet to come.
    """

    kind: Kind
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
                at = text.find(mark, at + len(mark))
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
        start = at = _skip(text, 0)
        if PYTHON_TAG.startswith(text[start:]):
            raise _Partial
        if text.startswith(PYTHON_TAG, start):
            at += len(PYTHON_TAG)
        elif text[start] != "{":
            return None
        return self._named(text, start, at, Kind.BARE)

    def _at(self, text: str, at: int, mark: str) -> Opening | None:
        if mark == OPEN:
            return Opening(Kind.MARKED, at, at + len(OPEN))
        inside = at + len(FENCE)
        if text.startswith("json", inside):
            inside += 4
        elif "json".startswith(text[inside : inside + 4]):
            raise _Partial
        return self._named(text, at, inside, Kind.FENCED)

    def _named(self, text: str, start: int, at: int, kind: Kind) -> Opening | None:
        """Match `{ "name" : "NAME"` with any whitespace."""
        for literal in ("{", '"name"', ":", '"'):
            at = _skip(text, at)
            if not text.startswith(literal, at):
                if literal.startswith(text[at:]):
                    raise _Partial
                return None
            at += len(literal)
        for name in self._names:
            if text.startswith(f'{name}"', at):
                return Opening(kind, start, at + len(name) + 1, name)
            if f'{name}"'.startswith(text[at:]):
                raise _Partial
        return None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A call of a function, whose arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments' JSON text."""

    index: int
    text: str


Event = Content | CallBegins | CallArguments


class _State(Enum):
    TEXT = "text"
    PLAIN = "plain"
    NAME = "name"
    KEY = "key"
    ARGUMENTS = "arguments"
    TAIL = "tail"


@dataclass(slots=True)
class ReplyParser:
    """Turns an answer's text, as it comes, into content and calls. Markup is in neither.

    Attributes:
        openings: of the functions that may be called.
        certain: the answer is calls from its first character on.
        mark: where the answer is calls or JSON: what calls begin with; JSON may say anything.
        n_calls: how many calls have begun.
    """

    openings: Openings
    names: tuple[str, ...]
    certain: bool = False
    mark: str = ""
    n_calls: int = 0
    _state: _State = _State.TEXT
    _held: str = ""
    _at_start: bool = True
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _said: bool = field(default=False)

    def feed(self, text: str, *, last: bool = False) -> list[Event]:
        """Take more text; return what it decided. With `last`, nothing more comes."""
        self._held += text
        events: list[Event] = []
        while self._step(events):
            pass
        if last and self._state is _State.TEXT and self._held:
            self._say(self._held, events)
            self._held = ""
        return events

    def _step(self, events: list[Event]) -> bool:
        """Advance as far as one state goes; False when more text is needed."""
        match self._state:
            case _State.TEXT:
                return self._text(events)
            case _State.PLAIN:
                if self._held:
                    self._say(self._held, events)
                    self._held = ""
                return False
            case _State.NAME:
                return self._name(events)
            case _State.KEY:
                return self._key()
            case _State.ARGUMENTS:
                return self._arguments(events)
            case _State.TAIL:
                return self._tail()

    def _say(self, text: str, events: list[Event]) -> None:
        # Whitespace between content and a call, or between calls, is markup.
        if self.n_calls and not text.strip():
            return
        events.append(Content(text))
        self._said = True

    def _text(self, events: list[Event]) -> bool:
        if self.mark and self._at_start:
            text = self._held.lstrip(SPACE)
            if not text.startswith(self.mark) and self.mark.startswith(text):
                return False
            if not text.startswith(self.mark):
                self._state = _State.PLAIN
                return True
        if self.certain and self._at_start:
            self._state, self._at_start = _State.NAME, False
            return bool(self._held)
        opening, decided = self.openings.find(self._held, at_start=self._at_start or bool(self.n_calls))
        before = self._held[:decided]
        if opening is None:
            # Whitespace is kept back: it belongs to a call if one follows.
            kept = before.rstrip(SPACE)
            if kept:
                self._say(kept, events)
                self._at_start = False
            self._held = self._held[len(kept) :]
            return False
        if before.strip(SPACE):
            self._say(before.rstrip(SPACE), events)
        self._held = self._held[opening.end :]
        self._at_start = False
        if opening.name is None:
            self._state = _State.NAME
        else:
            self._begin(opening.name, events)
        return True

    def _begin(self, name: str, events: list[Event]) -> None:
        events.append(CallBegins(self.n_calls, name))
        self.n_calls += 1
        self._state = _State.KEY

    def _name(self, events: list[Event]) -> bool:
        """Between a mark and the name: `{"name": "NAME"`; a mark may be repeated where calls are certain."""
        found = _NAME.search(self._held)
        if found is None:
            return False
        self._held = self._held[found.end() :]
        self._begin(found[1], events)
        return True

    def _key(self) -> bool:
        """Between the name and the arguments: `, "arguments":`."""
        at = self._held.find(":")
        if at < 0:
            return False
        at = _skip(self._held, at + 1)
        if at == len(self._held):
            return False
        self._held = self._held[at:]
        self._state, self._depth = _State.ARGUMENTS, 0
        return True

    def _arguments(self, events: list[Event]) -> bool:
        for at, char in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    events.append(CallArguments(self.n_calls - 1, self._held[: at + 1]))
                    self._held = self._held[at + 1 :]
                    self._state = _State.TAIL
                    return True
        if self._held:
            events.append(CallArguments(self.n_calls - 1, self._held))
            self._held = ""
        return False

    def _tail(self) -> bool:
        """After the arguments: `}` and the closing markup, if there is any, up to the next call or text."""
        text = self._held.lstrip(SPACE)
        if not text or not text.startswith("}"):
            self._held = text
            return False
        rest = text[1:].lstrip(SPACE + ";,")
        for mark in (CLOSE, FENCE):
            if rest.startswith(mark):
                self._held, self._state = rest[len(mark) :], _State.TEXT
                return True
            if mark.startswith(rest):
                # Nothing or a part of the markup: it is decided with the next text.
                return False
        self._held, self._state = rest, _State.TEXT
        return True
