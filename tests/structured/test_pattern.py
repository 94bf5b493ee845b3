"""ECMA-262 patterns: what the answer may be is what Python's `re`, as the judge of JSON Schema, finds."""

from __future__ import annotations

import random
import re

import pytest

from llm_local.errors import InvalidGrammar, InvalidSchema
from llm_local.structured.pattern import to_rust
from llm_local.structured.schema import canonical
from tests.structured.vocabulary import accepts, guidance, walks

GUIDANCE = guidance()

PATTERNS = [
    r"^\d{2}-\d{2}$", r"^[^\s]+$", r"^\S+\s\S+$", r"^\w+$", r"^\W$", r"[\d\-_]+", r"^[a-z\]]{1,3}$", r"^(?:ab|cd)+$",
    r"^(?<year>\d{4})$", r"^a{2,}$", r"^.{0,3}$", r"^[\w.]+@[\w.]+$", r"^\u0041\x42$", r"^[А-яЁё ]+$", r"^a|b$", r"^$",
    r"^[$&~#-]+$", r"^\{\}$", r"^x{,2}y$|^z$", r"^\p{Lu}\p{L}*$", r"\.json$", r"^[+-]?\d+([.,]\d+)?$", r"^\/a\/$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if "\\p" not in p and "{,2}" not in p])
def test_what_a_pattern_lets_through_is_found_by_python_too(pattern: str) -> None:
    compiled = GUIDANCE.json(canonical({"type": "string", "pattern": pattern, "maxLength": 40}))
    judge = re.compile(pattern.replace("(?<", "(?P<").replace(r"\/", "/"))
    answers = walks((compiled.start() for _ in range(25)), random.Random(1))
    assert len(answers) > 5
    for text in answers:
        assert judge.search(eval(text)), text


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"^\p{Lu}\p{L}*$", "Аня", True),
        (r"^\p{Lu}\p{L}*$", "аня", False),
        (r"^[^\W]$", "é", False),
        (r"^\d$", "٣", False),
        (r"^[\s\S]$", "é", True),
        (r"^.$", "\\n", False),
        (r"^[.]$", "a", False),
        (r"^\ud83d\ude00$", "😀", True),
        (r"^[a\-z]$", "b", False),
        (r"^[a\-z]$", "-", True),
        (r"^[\d-x]$", "-", True),
        (r"^[+-\d]$", "-", True),
        (r"^[+-\d]$", ",", False),
        (r"^[.-\w]$", "/", False),
        (r"^[^+-\d]$", ",", True),
        (r"^[\p{Lu}-z]$", "-", True),
        (r"^(a|b)?c$", "c", True),
    ],
)
def test_classes_and_escapes(pattern: str, text: str, matches: bool) -> None:
    constraint = GUIDANCE.json(canonical({"type": "string", "pattern": pattern})).start()
    assert accepts(constraint, f'"{text}"') == matches


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(?=a)", "look-around"),
        (r"(?!a)", "look-around"),
        (r"(?<=a)", "look-around"),
        (r"(a)\1", "back-references"),
        (r"\ba\b", "word boundaries"),
        (r"a{5,2}", "out of order"),
        (r"a{1000000}", "too large"),
        (r"a{,3}", "lower bound"),
        (r"a++", "nothing to repeat before '+'"),
        (r"a{2}{3}", "nothing to repeat before '{3}'"),
        (r"(*a)", "nothing to repeat before '*'"),
        (r"^?a", "nothing to repeat"),
        (r"[a", "not closed"),
        ("a\\", "ends with a backslash"),
        (r"(?x)a", "not part of ECMA-262"),
        (r"\ud800", "no character"),
        (r"\u12", "not complete"),
        (r"\z", "different things"),
        ("a" * 9000, "8192"),
    ],
)
def test_what_no_automaton_does_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(InvalidSchema, match=re.escape(says)) as caught:
        to_rust(pattern, "#/pattern")
    assert caught.value.message.startswith("#/pattern: ")


def test_a_regular_expression_is_for_the_whole_answer() -> None:
    assert accepts(GUIDANCE.regex(r"\d+").start(), "123")
    assert not accepts(GUIDANCE.regex(r"\d+").start(), "123a")
    assert accepts(GUIDANCE.regex(r"^(да|нет)$").start(), "нет")
    with pytest.raises(InvalidGrammar, match="look-around"):
        GUIDANCE.regex("(?=a)")
    with pytest.raises(InvalidGrammar, match="anchor"):
        GUIDANCE.regex("a^b")


def test_choices_are_texts_not_patterns() -> None:
    compiled = GUIDANCE.choice(["да", "a|b", "x.y", "да, конечно"])
    for text in ("да", "a|b", "x.y", "да, конечно"):
        assert accepts(compiled.start(), text)
    for text in ("a", "xzy", "д", "да,"):
        assert not accepts(compiled.start(), text)
