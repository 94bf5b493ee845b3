"""The guard before llama.cpp's grammar parser: what would exhaust or crash the process is refused, quickly."""

from __future__ import annotations

import contextlib
import time

import pytest

from llm_local.errors import InvalidGrammar
from llm_local.structured.gbnf import check_gbnf
from tests.structured.vocabulary import accepts, guidance

GOOD = [
    'root ::= "a"',
    'root ::= "a" | b\nb ::= [a-z]+ # comment\n',
    'root ::= ("a" | "b"){2,5} "c"?',
    'root ::= item ("," item)*\nitem ::= "\\"" [^"\\\\]* "\\""',
    "root ::= [А-я ]{1,200}",
    'root-1 ::= "x"\nroot ::= root-1 root-1',
    'root ::= "(" root ")" | "x"',
    'root ::= "\\u0041\\x42"',
    "root ::= .",
]


@pytest.mark.parametrize("grammar", GOOD)
def test_ordinary_grammars_pass(grammar: str) -> None:
    check_gbnf(grammar)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("", "no rule named 'root'"),
        ('start ::= "a"', "no rule named 'root'"),
        ("root ::= b", "'b', which is not defined"),
        ('root ::= root "a" | "a"', "left-recursive"),
        ('root ::= a\na ::= b? a "x"\nb ::= "y"', "left-recursive"),
        ('root ::= "a"{1,100000}', "too large"),
        ('root ::= "a"{5,2}', "out of order"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a")', "not opened"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= "a', "cannot be read at line 1"),
        ('root ::= "a"\nroot ::= @', "cannot be read at line 2"),
        ('"a"', "must begin with a rule"),
        ("root ::= " + "(" * 1000 + '"a"' + ")" * 1000, "nested over"),
        ('root ::= "' + "a" * 300_000 + '"', "bytes"),
        ("root ::= " + "( " * 0 + " ".join(['"a"?'] * 60), "may all be empty"),
        ("root ::= (" + " ".join(['"a"?'] * 20) + "){20}", "may all be empty"),
        ("root ::= " + " ".join(f'"{n}"{{900}}' for n in range(60)), "symbols"),
        ("root ::= a0\n" + "\n".join(f"a{n} ::= a{n + 1} | a{n + 1} | a{n + 1}" for n in range(20)) + '\na20 ::= "x"',
         "too many ways"),
        ('root ::= "\0"', "NUL"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_what_endangers_the_process_is_refused(grammar: str, says: str) -> None:
    with pytest.raises(InvalidGrammar, match=says.replace("(", r"\(")):
        check_gbnf(grammar)


CHAINS = {
    "each may be the last": "\n".join(f's{n} ::= "a" s{n + 1} | ""' for n in range(4000)) + '\ns4000 ::= ""',
    "each is the next": "\n".join(f"s{n} ::= s{n + 1}" for n in range(15)) + '\ns15 ::= ""',
    "too many in a row": "\n".join(f"s{n} ::= s{n + 1}" for n in range(9000)) + '\ns9000 ::= ""',
}


@pytest.mark.parametrize(("name", "passes"), [(name, at < 2) for at, name in enumerate(CHAINS)])
def test_a_long_chain_of_rules_is_looked_at_quickly(name: str, passes: bool) -> None:
    began = time.process_time()
    with contextlib.nullcontext() if passes else pytest.raises(InvalidGrammar, match="too complex"):
        check_gbnf(f"root ::= s0\n{CHAINS[name]}")
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "да" | "нет"', ["да", "нет"], ["д", "может"]),
        ('root ::= item ("," item)*\nitem ::= [0-9]+', ["1", "1,22"], ["", "1,"]),
        ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["(x"]),
        ('root ::= ("ab" | "c"){2,3}', ["abc", "ccc"], ["c", "cccc"]),
        ('root ::= "\\u0041\\x42" "\\u004300" "\\U0001F600"', ["ABC00😀"], ["\u4100", "AB\u4300😀"]),
        (r"root ::= [\u0430-\u044f]+", ["аяб"], ["z", ""]),
        ("root ::= [^a&&b]", ["c"], ["a", "b", "&"]),
        ("root ::= [a&&b~~-]", ["a", "b", "&", "~", "-"], ["c"]),
        ('root ::= [^a] . "/"', ["\n\n/", "я😀/"], ["ab/"]),
        (r"root ::= [\]\\^-]+", ["]\\^-"], ["a"]),
        ('root ::= word "end"\nword ::= [a-z]*', ["abend", "endend", "end"], ["en", "abendx"]),
        ('root ::= "if" | name\nname ::= [a-z]+', ["if", "i", "iffy"], ["", "if "]),
        ('root ::= start\nstart ::= a-b a_b\na-b ::= "x"\na_b ::= "y"', ["xy"], ["x"]),
        ('root ::= "a" # "c"\n  | "b" |', ["a", "b", ""], ["c"]),
        ('root ::= "x"{0} "y"{2} ("z"{0,1}){0,} ("ab"+)?', ["yy", "yyzzab", "yyabab"], ["xyy", "y", "yya"]),
        ("root ::= " + '("a" ' * 90 + ")?" * 90, ["", "aaa"], ["b"]),
    ],
)
def test_gbnf_runs_on_llguidance_too(grammar: str, good: list[str], bad: list[str]) -> None:
    check_gbnf(grammar)
    compiled = guidance().gbnf(grammar)
    for text in good:
        assert accepts(compiled.start(), text)
    for text in bad:
        assert not accepts(compiled.start(), text)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ('root ::= "\\q"', "escape"),
        ('root ::= "\\ud800"', "escape"),
        ("root ::= [z-a]", "out of order"),
        ("root ::= []", "is empty"),
        ("root ::= !<think>", "LlamaGrammar only"),
    ],
)
def test_gbnf_that_llguidance_is_not_given_is_refused(grammar: str, says: str) -> None:
    check_gbnf(grammar)
    with pytest.raises(InvalidGrammar, match=says):
        guidance().gbnf(grammar)


def test_gbnf_that_is_nested_too_deep_for_the_translation_is_refused() -> None:
    with pytest.raises(InvalidGrammar, match="nested too deep"):
        guidance().gbnf("root ::= " + "(" * 500 + '"a"' + ")" * 500)
