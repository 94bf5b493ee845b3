"""What `doctor` found, as text for a terminal or as JSON."""

from __future__ import annotations

import os
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

TITLE_WIDTH, NAME_WIDTH = 10, 12
WIDTH, LEAST_WIDTH = 110, 60

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"

Row = tuple[str, str, dict[str, Any]]
"""Name, text, and the same as data."""


@dataclass(slots=True)
class Section:
    """One thing that was looked at: its key in JSON, its title, its rows."""

    key: str
    title: str
    rows: list[Row]


@dataclass(slots=True)
class Report:
    """All sections, why the server would not start (nothing: it would), and what to change."""

    sections: dict[str, Section] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def add(self, section: Section) -> None:
        """Append a section."""
        self.sections[section.key] = section

    def refuse(self, reason: str) -> None:
        """Say why the server would not start; once is enough."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    def advise(self, change: str) -> None:
        """Say what to change; once is enough."""
        if change not in self.changes:
            self.changes.append(change)

    def as_json(self) -> dict[str, Any]:
        """Return everything as data: `would_start`, `reasons`, `changes`, and one object for each section."""
        found: dict[str, Any] = {"would_start": not self.reasons, "reasons": self.reasons, "changes": self.changes}
        for section in self.sections.values():
            found[section.key] = {name: value for _, _, facts in section.rows for name, value in facts.items()}
        return found

    def as_text(self, *, colour: bool, width: int = WIDTH) -> str:
        """Return the report for people, in lines of `width`; `colour` uses ANSI codes unless NO_COLOR is set."""
        paint = _painter(colour and not os.environ.get("NO_COLOR"))
        lines: list[str] = []
        for section in self.sections.values():
            lines += _section(section, paint, width)
        lines.append("")
        if self.reasons:
            lines.append(paint(RED, "would not start"))
            lines += [line for reason in self.reasons for line in _item("-", reason, width)]
        else:
            lines.append(paint(GREEN, "would start"))
        if self.changes:
            lines += ["", paint(YELLOW, "what to change")]
            lines += [
                line for number, change in enumerate(self.changes, 1) for line in _item(f"{number}.", change, width)
            ]
        return "\n".join(lines)


def _painter(colour: bool) -> Any:
    return lambda code, text: f"\033[{code}m{text}\033[0m" if colour else text


def _section(section: Section, paint: Any, width: int) -> list[str]:
    lines: list[str] = []
    named = any(name for name, _, _ in section.rows)
    indent = TITLE_WIDTH + (NAME_WIDTH if named else 0)
    for index, (name, text, _) in enumerate(section.rows):
        title = section.title if index == 0 else ""
        head = paint(BOLD, title) + " " * (TITLE_WIDTH - len(title)) + (f"{name:<{NAME_WIDTH}}" if named else "")
        wrapped = _wrap(text, width - indent)
        lines.append((head + wrapped[0]).rstrip())
        lines += [" " * indent + line for line in wrapped[1:]]
    return lines


def _item(mark: str, text: str, width: int) -> list[str]:
    first, *rest = _wrap(text, width - 5)
    return [f"  {mark:<3}{first}", *(" " * 5 + line for line in rest)]


def _wrap(text: str, width: int) -> list[str]:
    """Break into lines, but not between a number and its unit."""
    held = re.sub(r"(?<=\d) (?=[A-Za-z]+)", "\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(held, width, break_long_words=False, break_on_hyphens=False) or [""]
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
