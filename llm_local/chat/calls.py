"""Tool calls in a model's text: the parser that tells them from content. Any thread."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from llm_local.chat.openings import CLOSE, FENCE, SPACE, Openings, skip

_NAME = re.compile(r'"name"\s*:\s*"([^"]*)"')


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
        # Nothing but calls follows a call: what is between them, or the beginning of one that was cut, is markup.
        if self.n_calls:
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
        at = skip(self._held, at + 1)
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
