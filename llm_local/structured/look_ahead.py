"""Patterns that begin with look-aheads, as patterns that all hold for one text. Any thread.

`^(?=.*[A-Z])(?=.*\\d).{8,}$` are three patterns, and `^(?!-)[a-z-]+$` are two, of which one is the complement of `^-`.
"""

from __future__ import annotations

from llm_local.structured.complement import others
from llm_local.structured.expression import Choice, parse
from llm_local.structured.pattern import PatternError, to_rust

LOOK_AHEADS = ("(?=", "(?!")


class Pattern(str):
    """A pattern in Rust's syntax.

    Attributes:
        source: what it is the translation of.
    """

    __slots__ = ("source",)

    source: str

    @classmethod
    def of(cls, source: str, where: str) -> Pattern:
        """Translate a pattern (ECMA-262).

        Raises:
            InvalidSchema: there is no exact equivalent.
        """
        made = cls(to_rust(source, where))
        made.source = source
        return made


class OtherTexts(str):
    """A pattern (Rust) of texts in which another one is not found; of fewer ones where readers differ.

    Attributes:
        pattern: the other one.
    """

    __slots__ = ("pattern",)

    pattern: Pattern

    @classmethod
    def than(cls, pattern: Pattern) -> OtherTexts | None:
        """Return the opposite of a pattern, or None where it is long."""
        opposite = others(pattern.source)
        if opposite is None:
            return None
        made = cls(opposite)
        made.pattern = pattern
        return made


def patterns(source: str, where: str) -> list[Pattern | OtherTexts]:
    """Return patterns (Rust) that match the same together; the last of them is what the look-aheads leave.

    Raises:
        InvalidSchema: there is no exact equivalent.
    """
    if not source.startswith(("^(?=", "^(?!")):
        return [Pattern.of(source, where)]
    found: list[Pattern | OtherTexts] = []
    rest = source[1:]
    while rest.startswith(LOOK_AHEADS):
        end = _end_of_group(rest)
        if end is None:
            return [Pattern.of(source, where)]
        inner = f"^(?:{rest[3:end]})"
        ahead = Pattern.of(inner, where)
        if rest[2] == "=":
            found.append(ahead)
        else:
            opposite = OtherTexts.than(ahead)
            if opposite is None:
                return [Pattern.of(source, where)]
            found.append(opposite)
        rest = rest[end + 1 :]
    body = Pattern.of(f"^{rest}", where)
    try:
        is_whole = not isinstance(parse(body), Choice)
    except PatternError:
        is_whole = "|" not in rest
    # (Where it is one of several ways, the look-aheads are about that one only.)
    return [*found, body] if is_whole else [Pattern.of(source, where)]


def _end_of_group(text: str) -> int | None:
    """Return where the parenthesis is closed that a text begins with."""
    depth, in_class, at = 0, False, 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None
