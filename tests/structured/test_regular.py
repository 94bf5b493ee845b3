"""Regular expressions for a whole answer: both engines take what Python's `re.fullmatch` takes, and nothing else."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from concurrent.futures import Future
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_local.engine.constraint import Constraint, ConstraintFailed
from llm_local.errors import InvalidGrammar, InvalidSchema
from llm_local.structured.gbnf import check_gbnf
from llm_local.structured.grammars import Grammars
from llm_local.structured.guidance import Guidance
from llm_local.structured.native import NativeEngine
from llm_local.structured.regular import Regular
from llm_local.structured.schema import canonical
from llm_local.structured.spec import RegexSpec
from tests.examples import examples, rest_is_slow
from tests.structured.native import FakeNative
from tests.structured.vocabulary import accepts, guidance, piece, tokens_of, walks

GUIDANCE = guidance()
NATIVE = NativeEngine(FakeNative(GUIDANCE), compact=True)
ENGINES = pytest.mark.parametrize("engine", [GUIDANCE, NATIVE], ids=["llguidance", "llama"])

# What the pattern says, and how a judge that knows Unicode's classes is told the same.
ATOMS = [
    ("a", "a"), ("b", "b"), ("Я", "Я"), ("ё", "ё"), ("-", "-"), (".", r"[^\n\r\u2028\u2029]"), (r"\.", r"\."),
    (r"\d", "[0-9]"), (r"\D", r"[^\d]"), (r"\w", "[0-9A-Za-z_]"), (r"\W", r"[^\w]"), (r"\s", r"[ \t\n\r\f\v]"),
    (r"\S", r"[^\s]"), ("[a-c]", "[a-c]"), ("[^a-c]", "[^a-c]"), ("[А-Яё]", "[А-Яё]"), (r"[^\d\s]", r"[^\d\s]"),
    (r"[\w-]", r"[0-9A-Za-z_-]"), (r"\u0431", "б"), (r"\x41", "A"), (r"\t", r"\t"), (r"[\]\\^]", r"[\]\\^]"),
    (r"\{", r"\{"), ("{", r"\{"), ("😀", "😀"), (r"[\s\S]", r"[\s\S]"), (r"\n", r"\n"),
]  # fmt: skip
COUNTS = st.sampled_from(["*", "+", "?", "{2}", "{0}", "{1,3}", "{2,}", "{0,2}", "*?", "+?", "??", "{1,2}?"])
LETTERS = "abcdЯёбz019_A-. \t\n{\\]^é😀\u2028"


def _joined(parts: list[tuple[str, str]], between: str = "") -> tuple[str, str]:
    return between.join(part[0] for part in parts), between.join(part[1] for part in parts)


def _grown(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    some = st.lists(inner, min_size=1, max_size=4)
    return st.one_of(
        some.map(_joined),
        some.map(lambda parts: tuple(f"({ways})" for ways in _joined(parts, "|"))),
        st.tuples(inner, COUNTS).map(lambda two: tuple(f"(?:{part}){two[1]}" for part in two[0])),
        st.tuples(st.sampled_from(ATOMS), COUNTS).map(lambda two: tuple(part + two[1] for part in two[0])),
    )


EXPRESSIONS = st.recursive(st.sampled_from(ATOMS), _grown, max_leaves=8)
ANCHORED = st.tuples(st.sampled_from(["", "^"]), EXPRESSIONS, st.sampled_from(["", "$"])).map(
    # An anchor binds closer than an alternative.
    lambda three: (f"{three[0]}(?:{three[1][0]}){three[2]}", three[1][1])
)
"""A pattern, and one that means the same to Python."""


@given(st.data(), ANCHORED, st.lists(st.text(LETTERS, max_size=6), max_size=4))
@examples(30)
def test_both_engines_take_what_python_matches_as_a_whole(
    data: st.DataObject, pair: tuple[str, str], texts: list[str]
) -> None:
    pattern, judged = pair
    judge = re.compile(judged)
    own = data.draw(st.from_regex(judge, fullmatch=True, alphabet=LETTERS), "matching")
    if len(own) < 20:  # Python goes back and forth: longer ones may take it minutes.
        texts = [*texts, own, own[:-1], own + "a"]
    both = (GUIDANCE.regex(pattern), NATIVE.regex(pattern))
    for text in texts:
        wanted = judge.fullmatch(text) is not None
        assert [accepts(engine.start(), text) for engine in both] == [wanted, wanted], text


@given(ANCHORED, st.integers(0, 2**32))
@examples(12)
def test_whatever_comes_back_matches(pair: tuple[str, str], seed: int) -> None:
    for text in walks((NATIVE.regex(pair[0]).start() for _ in range(3)), random.Random(seed)):
        assert re.fullmatch(pair[1], text), text


CASES: list[tuple[str, list[str], list[str]]] = [
    # pattern, what it matches, what it does not
    (r"^(да|нет)$", ["да", "нет"], ["д", "да!", "данет"]),
    (r"^a|b$", ["a", "b"], ["ab", ""]),
    (r"(^a|b)(c|d$)", ["ac", "bd"], ["cd"]),
    (r"^^a$$", ["a"], ["aa"]),
    (r"^a\\$", ["a\\"], ["a", "a\\$"]),
    (r"a\$", ["a$"], ["a"]),
    (r"(a*)*b", ["b", "aaab"], ["a", "ba"]),
    (r"(|a)+", ["", "aaa"], ["b"]),
    (r"(?i)хЭй [a-c]k", ["ХЭЙ Bk", "хэй aK"], ["хэй dk"]),
    (r"(?i)[^k]", ["a"], ["k", "K", "\u212a"]),
    (r"\p{Lu}\p{L}*", ["Аня", "É"], ["аня", "А1"]),
    (r"\P{L}+", ["12 "], ["1а"]),
    (r"\p{Nd}{2}", ["12", "٣٣"], ["1a"]),
    (r"[А-Яа-яЁё ]{1,200}", ["Привет мир", "ё" * 200], ["", "Hello", "ё" * 201]),
    (r"[^а-я]{2}", ["AB", "😀\n"], ["аб"]),
    (r"(?:[01]\d|2[0-3]):[0-5]\d", ["00:00", "23:59"], ["24:00", "1:00"]),
    (r"(a{1,9}){1,9}", ["a" * 81], ["", "a" * 82]),
    (r"(a|ab)(c|bcd)(d*)", ["abcd", "abcdd", "ac"], ["abd"]),
    (r"", [""], ["a"]),
    (r"^$", [""], [" "]),
    (r"[\d\-x]+", ["1-x"], ["\\"]),
    (r"(?<year>\d{4})", ["2026"], ["26"]),
]


@ENGINES
@pytest.mark.parametrize(("pattern", "matching", "others"), CASES, ids=[case[0] for case in CASES])
def test_what_matches(engine: NativeEngine, pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = engine.regex(pattern)
    assert [accepts(compiled.start(), text) for text in matching] == [True] * len(matching)
    assert [accepts(compiled.start(), text) for text in others] == [False] * len(others)


REFUSED = [
    # pattern, what is said, where
    (r"ab(?=c)", r"look-around ((?=...)", "character 3"),
    (r"(?!a)b", "look-around ((?!...)", "character 1"),
    (r"(?<=a)b", "look-around ((?<=...)", "character 1"),
    (r"(?<!a)b", "look-around", "character 1"),
    (r"(a)\1", "back-references", "character 4"),
    (r"\bда\b", "word boundaries", "character 1"),
    (r"да^нет", "the anchor ^", "character 3"),
    (r"\u0434$а", "the anchor $", "character 7"),
    (r"(^a)+", "the anchor ^", "character 2"),
    (r"a++", "nothing to repeat", "character 3"),
    (r"a{3,2}", "out of order", "character 2"),
    (r"[z-a]", "out of order", "[z-a]"),
    (r"(a", "not closed", "(a"),
    (r"a)", "closed that was not opened", "a)"),
    ("(" * 200 + "a" + ")" * 200, "nested over", "(("),
]


@ENGINES
@pytest.mark.parametrize(("pattern", "what", "where"), REFUSED, ids=[case[0][:20] for case in REFUSED])
def test_what_cannot_be_exact_is_refused_with_what_and_where(
    engine: NativeEngine, pattern: str, what: str, where: str
) -> None:
    with pytest.raises(InvalidGrammar) as caught:
        engine.regex(pattern)
    assert caught.value.message.startswith("guided_regex: ")
    assert what in caught.value.message
    assert where in caught.value.message


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"[\s\S]*a.{30}", "over 4000 states"),
        (r"(a{1,100}){1,100}", "too many ways"),
        (r"(a{0,1000}){0,1000}", "over 10000 characters"),
        (r"a{99999}", "over 10000 characters"),
        ("a?" * 4000, "may be left out"),
        (r"a[^\s\S]", "no text matches"),
        (r"\x00", "no text matches"),
        (r"\p{Script=Cyrillic}", "general categories"),
    ],
)
def test_what_is_too_much_for_llama_cpp_is_refused_quickly(pattern: str, says: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidGrammar, match=re.escape(says)):
        NATIVE.regex(pattern)
    assert time.process_time() - began < 2


WORDS = r"(\p{L}{1,30} ?){1,30}"
NESTED = [r"(\w{1,12} ?){1,60}", r"(a{1,30}){1,30}", r"(.{1,80}\n){1,400}", r"(\p{L}+,? ?){1,30}", "(ab|c){20000}"]


@pytest.mark.parametrize("pattern", NESTED)
def test_nested_repetitions_are_followed(pattern: str) -> None:
    """A lexer takes so many expressions for the next token; some need more than llguidance's default."""
    constraint = GUIDANCE.regex(pattern).start()
    text = {r"(.{1,80}\n){1,400}": "ab \n", "(ab|c){20000}": "abc"}.get(pattern, "a")
    for token in tokens_of((text * 90).encode()):
        constraint.accept(token)
        assert constraint.allowed().any()


@pytest.mark.parametrize("pattern", rest_is_slow([WORDS, r"(\p{L}{1,200} ?){1,200}", "((a{1,90}b?){1,90}c?){1,90}"]))
def test_what_would_be_given_up_in_the_middle_of_an_answer_is_refused(pattern: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidGrammar, match="too many ways to read"):
        GUIDANCE.regex(pattern)
    for schema, place in (
        ({"items": {"pattern": f"^{pattern}$"}}, "#/items/pattern"),
        ({"patternProperties": {f"^{pattern}$": True}}, "#/patternProperties"),
        ({"propertyNames": {"pattern": f"^{pattern}$"}}, "#/propertyNames/pattern"),
    ):
        with pytest.raises(InvalidSchema, match=f"^{place}: there are too many ways to read it"):
            canonical(schema)
    assert time.process_time() - began < 2


def test_an_answer_that_hits_a_limit_does_not_spoil_the_grammar_for_later_ones() -> None:
    """All answers of a compiled grammar share a lexer, which fails for good once it has failed: it is compiled anew.

    That is work for the threads that compile, and neither for the event loop nor for the engine's.
    """
    small: Any = guidance()
    tables, threads = Future[Guidance](), []
    small._limits = llguidance.LLParserLimits(step_lexer_fuel=3000)
    tables.set_result(small)
    compile_ = small.regex
    small.regex = lambda pattern: (threads.append(threading.current_thread()), compile_(pattern))[1]
    grammars = Grammars(tables, piece)

    def ask() -> Constraint:
        return asyncio.run(grammars.prepare(RegexSpec("(a{1,40}){1,40}"), [99]))[0]

    for _ in range(2):
        constraint, other = ask(), ask()
        assert constraint.allowed().any()
        with pytest.raises(ConstraintFailed):  # noqa: PT012
            for _ in range(200):
                constraint.accept(ord("a"))
                constraint.allowed()
        other.close()
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    grammars.close()


@ENGINES
@pytest.mark.parametrize("pattern", ["[]", "a[]b", r"[^\s\S]+"])
def test_what_nothing_matches_is_refused_in_words(engine: NativeEngine, pattern: str) -> None:
    with pytest.raises(InvalidGrammar, match=r"no text matches|nothing matches"):
        engine.regex(pattern)


@given(ANCHORED)
@examples(30)
def test_the_grammar_is_one_that_llama_cpp_can_be_given(pair: tuple[str, str]) -> None:
    check_gbnf(Regular(pair[0]).gbnf())


@ENGINES
def test_choices_are_texts(engine: NativeEngine) -> None:
    compiled = engine.choice(["да", "a|b", 'x"\\y', "да, конечно", "[a-z]", "строка\nдва"])
    for text in ("да", "a|b", 'x"\\y', "да, конечно", "[a-z]", "строка\nдва"):
        assert accepts(compiled.start(), text), text
    for text in ("a", "д", "да,", "q", ""):
        assert not accepts(compiled.start(), text), text
