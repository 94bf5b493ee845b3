"""Whether the beginning of a JSON text may become a given value, however that is written. Any thread."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from llm_local.structured.logic import value_key

MAX_DIGITS = 15
"""Significant digits that a double keeps: further ones may all be the same number."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBER = re.compile(r"[0-9.eE+-]+")
_WORD = re.compile(r"[a-z]+")
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?$|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?$")


def may_become(text: str, value: Any) -> bool:
    """Tell whether a JSON text (without whitespace between its parts) that begins so may be this value in the end.

    Where that is uncertain, it may.
    """
    try:
        return _Reading(text).is_value(value)
    except _Ends:
        return True
    except (ValueError, RecursionError):
        # Half a character, thousands of digits or brackets.
        return True


class _Ends(Exception):
    """The text ends, and agrees with the value so far."""


class _Reading:
    """Reads a text along a value. Its methods say whether they agree, or raise `_Ends`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def is_value(self, wanted: Any) -> bool:
        """Read a value."""
        match self._peek():
            case '"':
                return isinstance(wanted, str) and self._is_string([wanted]) is not None
            case "{":
                return isinstance(wanted, dict) and self._is_object(wanted)
            case "[":
                return isinstance(wanted, list) and self._is_array(wanted)
            case "t" | "f" | "n":
                return self._is_word(wanted)
        return isinstance(wanted, int | float) and not isinstance(wanted, bool) and self._is_number(wanted)

    def _peek(self) -> str:
        if self._at == len(self._text):
            raise _Ends
        return self._text[self._at]

    def _skip_comma(self) -> None:
        self._at += self._peek() == ","
        self._peek()

    def _is_string(self, wanted: list[str]) -> str | None:
        """Return which of these strings is read, if one of them is."""
        whole = _STRING.match(self._text, self._at)
        if whole is not None:
            self._at = whole.end()
            read = json.loads(whole[0])
            return read if read in wanted else None
        begun = json.loads(_HALF_ESCAPE.sub("", self._text[self._at :]) + '"')
        if any(one.startswith(begun) for one in wanted):
            raise _Ends
        return None

    def _is_object(self, wanted: dict[str, Any]) -> bool:
        self._at += 1
        n = 0
        while self._peek() != "}":
            if n == len(wanted):
                return False
            self._skip_comma()
            key = self._is_string([*wanted])
            if key is None:
                return False
            self._peek()
            self._at += 1
            if not self.is_value(wanted[key]):
                return False
            n += 1
        self._at += 1
        return n == len(wanted)

    def _is_array(self, wanted: list[Any]) -> bool:
        self._at += 1
        n = 0
        while self._peek() != "]":
            if n == len(wanted):
                return False
            self._skip_comma()
            if not self.is_value(wanted[n]):
                return False
            n += 1
        self._at += 1
        return n == len(wanted)

    def _is_word(self, wanted: Any) -> bool:
        found = _WORD.match(self._text, self._at)
        assert found is not None
        if wanted is not None and not isinstance(wanted, bool):
            return False
        word = json.dumps(wanted)
        self._at = found.end()
        if self._at == len(self._text) and word.startswith(found[0]):
            raise _Ends
        return word == found[0]

    def _is_number(self, wanted: float) -> bool:
        found = _NUMBER.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        if self._at < len(self._text):
            return value_key(json.loads(found[0])) == value_key(wanted)
        if wanted != 0 and (found[0][0] == "-") != (wanted < 0):
            return False
        if _digits_agree(found[0], wanted):
            raise _Ends
        return False


def _digits_agree(begun: str, wanted: float) -> bool:
    """Tell whether the digits so far are those of the number; where its point is, an exponent may still say."""
    mantissa, exponent, _ = begun.lower().partition("e")
    digits = mantissa.lstrip("-").replace(".", "").lstrip("0")
    if len(digits) > MAX_DIGITS:
        return True
    all_digits = "".join(map(str, Decimal(repr(wanted)).as_tuple().digits)).strip("0")
    if exponent:
        return digits.rstrip("0") == all_digits
    return all_digits.ljust(len(digits), "0").startswith(digits)
