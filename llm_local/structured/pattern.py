r"""JSON Schema's regular expressions (ECMA-262) in the syntax of Rust's `regex`, which llguidance reads. Any thread.

Where implementations differ on what a class holds (`\s` in ECMA-262, Python and Rust), a class stands for what all of
them accept, and a negated one for what none of them rejects: an answer is valid whoever checks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_local.errors import InvalidSchema

MAX_LENGTH = 8192
MAX_REPEAT = 100_000

SPACE = r"\t\n\x0b\x0c\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}"
ANY_SPACE = SPACE + r"\x1c-\x1f\x85\u{180e}\u{feff}"
WORD = "0-9A-Za-z_"
ANY_WORD = r"\p{L}\p{M}\p{N}\p{Pc}\u{200c}\u{200d}"
DIGIT = "0-9"
ANY_DIGIT = r"\p{Nd}"
# What a class letter stands for, and what its negation excludes.
CLASSES = {"s": (SPACE, ANY_SPACE), "w": (WORD, ANY_WORD), "d": (DIGIT, ANY_DIGIT)}

# What a class letter may hold for some readers only, and more; among the letters of most languages there are no digits.
DOUBTFUL = {
    "s": r"\x1c-\x1f\x85\u{180e}\u{feff}",
    "w": r"\u{aa}-\u{10ffff}",
    "d": r"\u{660}-\u{1c59}\u{a620}-\u{abf9}\u{ff10}-\u{ff19}\u{104a0}-\u{10ffff}",
}

CONTROL = {"t": r"\t", "n": r"\n", "r": r"\r", "f": r"\x0c", "v": r"\x0b", "0": r"\x00"}
LAST_NEWLINE = r"\n?$"
"""What `$` may mean: for Python the end is before a last newline, too."""

DOT, WIDEST_DOT = r"[^\n\r\u{2028}\u{2029}]", r"[^\n]"
"""What `.` means for all readers, and for any."""

PUNCTUATION = set("^$\\.*+?()[]{}|/-&~#'\"!%,:;<=>@_` ")
LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")
_QUANTIFIER = re.compile(r"\{(\d+)(,(\d*))?\}")
_NAMED = re.compile(r"\(\?P?<[A-Za-z_]\w*>")


class PatternError(ValueError):
    """The pattern has no exact equivalent; the text says why."""


def to_rust(pattern: str, where: str = "pattern") -> str:
    """Return a pattern in Rust's syntax that matches the same, or less where implementations differ.

    Raises:
        InvalidSchema: it uses what finite automata cannot do (look-around, back-references), or is not a pattern.
    """
    if len(pattern) > MAX_LENGTH:
        raise InvalidSchema(f"{where}: a pattern may have {MAX_LENGTH} characters, this one has {len(pattern)}.")
    translation = _Translation(pattern)
    try:
        return translation.run()
    except PatternError as error:
        place = f"at character {translation.at + 1} of the pattern {pattern[:100]!r}"
        raise InvalidSchema(f"{where}: {str(error).rstrip('.')} ({place}).") from None


def widest(pattern: str) -> str:
    """Return a pattern in Rust's syntax that matches what any reader takes this one to match.

    Raises:
        PatternError: it uses what finite automata cannot do.
    """
    return _Translation(pattern, is_widest=True).run()


def coarsest(pattern: str) -> str | None:
    """Return a short pattern that matches no less than the widest one, or None where that is not certain.

    Raises:
        PatternError: it uses what finite automata cannot do.
    """
    if r"\p" in pattern.lower():
        return None
    coarse = widest(pattern).replace(ANY_WORD, WORD + DOUBTFUL["w"])
    return coarse.replace(ANY_DIGIT, DIGIT + DOUBTFUL["d"])


def doubtful_characters(pattern: str) -> list[str]:
    """Return sets (Rust, without brackets) of what only some readers take a class of a pattern to hold, and more."""
    return [DOUBTFUL[letter] for letter in CLASSES if f"\\{letter}" in pattern.lower()]


def source_of(pattern: str, at: int) -> int:
    """Return where in a pattern that stands which is at an offset of its translation."""
    return _Translation(pattern).source_of(at)


class _Translation:
    """One pass over a pattern.

    Attributes:
        at: where the part of the pattern begins that is read, for errors.
    """

    def __init__(self, pattern: str, *, is_widest: bool = False) -> None:
        self._pattern = pattern
        self._is_widest = is_widest
        self._at = 0
        self._is_repeatable = False
        self.at = 0

    def run(self) -> str:
        return "".join(self._items())

    def source_of(self, at: int) -> int:
        n_out = 0
        for item in self._items():
            n_out += len(item)
            if n_out > at:
                break
        return self.at

    def _items(self) -> Iterator[str]:
        if self._pattern.startswith("(?i)"):
            self._at = 4
            yield "(?i)"
        while self._at < len(self._pattern):
            self.at = self._at
            char = self._pattern[self._at]
            item = self._item()
            if char in "*+?" or (char == "{" and item[0] == "{"):
                self._repeat(item)
            else:
                self._is_repeatable = char not in "(|^$"
            yield item

    def _repeat(self, item: str) -> None:
        if not self._is_repeatable:
            raise PatternError(f"there is nothing to repeat before {item!r}")
        self._is_repeatable = False
        # A lazy repetition matches the same.
        self._at += self._peek() == "?"

    def _item(self) -> str:
        rest = self._pattern[self._at :]
        char = rest[0]
        if char == "\\":
            return self._escape(in_class=False, negated=False)
        if char == "[":
            return self._class()
        if char == "(":
            return self._group(rest)
        if char == "{":
            return self._braces(rest)
        self._at += 1
        if char == ".":
            return WIDEST_DOT if self._is_widest else DOT
        if char == "$" and self._is_widest:
            return LAST_NEWLINE
        if char in "}]#&~- ":
            return "\\" + char if char in "}]" else _literal(char)
        return char

    def _group(self, rest: str) -> str:
        for opening in LOOK_AROUND:
            if rest.startswith(opening):
                raise PatternError(f"look-around ({opening}...) is not supported")
        named = _NAMED.match(rest)
        if named:
            self._at += named.end()
            return "("
        if rest.startswith("(?:"):
            self._at += 3
            return "(?:"
        if rest.startswith("(?"):
            raise PatternError(f"{rest[:4]!r} is not part of ECMA-262")
        self._at += 1
        return "("

    def _braces(self, rest: str) -> str:
        found = _QUANTIFIER.match(rest)
        if found is None:
            if re.match(r"\{,\d+\}", rest):
                raise PatternError("a repetition without a lower bound is read in two ways; write {0,n}")
            self._at += 1
            return r"\{"
        low, high = int(found[1]), int(found[3] or 0)
        if max(low, high) > MAX_REPEAT:
            raise PatternError(f"a repetition of over {MAX_REPEAT} is too large")
        if found[3] and high < low:
            raise PatternError(f"the repetition {found[0]} is out of order")
        self._at += found.end()
        return found[0]

    def _class(self) -> str:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        items: list[str] = []
        while True:
            char = self._peek()
            if not char:
                raise PatternError("a character class is not closed")
            if char == "]":
                self._at += 1
                break
            items.append(self._class_item(negated))
        if not items:
            return r"[\s\S]" if negated else r"[^\s\S]"
        return f"[{'^' if negated else ''}{''.join(items)}]"

    def _class_item(self, negated: bool) -> str:
        low = self._class_atom(negated)
        follows = self._pattern[self._at : self._at + 2]
        if not (len(follows) == 2 and follows[0] == "-" and follows[1] != "]"):
            return low
        if _is_set(low):
            return low
        self._at += 1
        high = self._class_atom(negated)
        # Beside a class the hyphen stands for itself: `[+-\d]`.
        return f"{low}\\-{high}" if _is_set(high) else f"{low}-{high}"

    def _class_atom(self, negated: bool) -> str:
        char = self._peek()
        if char == "\\":
            return self._escape(in_class=True, negated=negated)
        self._at += 1
        return _literal(char)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _escape(self, *, in_class: bool, negated: bool) -> str:
        rest = self._pattern[self._at + 1 :]
        if not rest:
            raise PatternError("it ends with a backslash")
        char = rest[0]
        if char.lower() in CLASSES:
            self._at += 2
            return _class_letter(char, in_class, negated != self._is_widest)
        if char in CONTROL and not (char == "0" and rest[1:2].isdigit()):
            self._at += 2
            return CONTROL[char]
        if char in "xucpP":
            return self._numeric_escape(rest)
        if char == "b" and in_class:
            self._at += 2
            return r"\x08"
        if char.isalnum():
            raise PatternError(_why_not(char))
        self._at += 2
        return _literal(char)

    def _numeric_escape(self, rest: str) -> str:
        if found := re.match(r"u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})", rest):
            code = 0x10000 + ((int(found[1], 16) - 0xD800) << 10) + int(found[2], 16) - 0xDC00
        elif found := re.match(r"(?:u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2}))", rest):
            code = int(found[1] or found[2] or found[3], 16)
        elif found := re.match(r"c([A-Za-z])", rest):
            code = ord(found[1]) % 32
        elif found := re.match(r"[pP]\{[A-Za-z_=]+\}", rest):
            self._at += 1 + found.end()
            return "\\" + found[0]
        else:
            raise PatternError(f"the escape \\{rest[:6]} is not complete")
        if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
            raise PatternError(f"\\{found[0]} is no character")
        self._at += 1 + found.end()
        return f"\\u{{{code:x}}}"


def _class_letter(char: str, in_class: bool, negated: bool) -> str:
    """Return what a class letter stands for: less where readers differ, or more if it is `negated`."""
    sure, possible = CLASSES[char.lower()]
    if char.islower():
        body = possible if negated else sure
        return body if in_class else f"[{body}]"
    # In a negated class, the complement that is excluded must be the larger one.
    return f"[^{sure if negated else possible}]"


def _is_set(item: str) -> bool:
    """Tell whether an item of a class is a class itself, and not a character."""
    classes = [part for pair in CLASSES.values() for part in pair]
    return item.startswith(("[", r"\p", r"\P")) or item in classes


def _literal(char: str) -> str:
    return "\\" + char if char in PUNCTUATION and char not in "'\"!%,:;<=>@_`/ " else char


def _why_not(char: str) -> str:
    if char in "bB":
        return f"word boundaries (\\{char}) are not supported"
    if char.isdigit() or char == "k":
        return "back-references are not supported"
    return f"the escape \\{char} means different things to different readers"
