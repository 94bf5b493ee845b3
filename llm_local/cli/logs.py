"""The log: lines for people or JSON lines, both from the same records.

Everybody's lines come out alike: ours, uvicorn's, llama.cpp's, Python's warnings. A record may carry `fields` (a
mapping of what is known beside the message) and `head` (what the message says already, for JSON only).

A formatter of our own: all that a library would add is the loop over the fields, and what matters here (orjson, times
as RFC 3339 in UTC, nothing that breaks a line) would have to be written for it as well.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from llm_local.config import Settings
from llm_local.server.requestlog import request_id

QUIET = ("asyncio", "sse_starlette", "httpx", "httpx2", "httpcore", "filelock", "uvicorn", "urllib3")
"""Whose lines below a warning say nothing that we do not."""

# Control characters, and what some programs take for the end of a line: whoever can choose a name could write lines.
_BREAKING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s\"=]+")


def set_up(settings: Settings, stream: TextIO | None = None) -> None:
    """Send everything that is logged to stderr (or to `stream`), as the settings say."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    handler.addFilter(_with_request_id)
    logging.basicConfig(
        level="DEBUG" if settings.verbose else settings.log_level.upper(), handlers=[handler], force=True
    )
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel("WARNING")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then fields, and the exception with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, Any] = {
            "time": _utc(record.created).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, "request_id", None):
            line["request_id"] = request
        for name, value in {**_of(record, "head"), **_of(record, "fields")}.items():
            if value is not None:
                line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        # What some programs take for the end of a line, although JSON does not.
        text = orjson.dumps(_encodable(line), default=str).decode()
        return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


class TextLines(logging.Formatter):
    """A line for people, in local time; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        time = _utc(record.created).astimezone().isoformat(" ", "milliseconds")
        head = f"{time} {record.levelname:<7} {record.name}: {record.getMessage()}"
        fields = {**_of(record, "fields"), "request_id": getattr(record, "request_id", None)}
        shown = [f"{name}={_word(value)}" for name, value in fields.items() if value is not None]
        line = _one_line(" ".join([head, *shown]))
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line + "\n" + record.stack_info if record.stack_info else line


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


def _of(record: logging.LogRecord, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, name, {})
    return found


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _word(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else orjson.dumps(_encodable(text)).decode()


def _one_line(text: str) -> str:
    return _BREAKING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _encodable(value: Any) -> Any:
    """Return strings with what cannot be UTF-8 (half a surrogate pair, from a file's name) escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return {name: _encodable(one) for name, one in value.items()} if isinstance(value, dict) else value
