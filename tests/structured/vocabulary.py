"""A vocabulary of bytes, some common pieces and the marks of tool calls, and ways to drive a constraint over it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import ClassVar

import llguidance

from llm_local.engine.constraint import Constraint, ConstraintFailed
from llm_local.structured.guidance import Guidance

PIECES = ['{"', '":', '",', '"}', "true", "false", "null", '","', "  ", "name", "При", "вет", "1.", "00", '\\"', "]}"]
MARKS = ["<tool_call>", "</tool_call>", "<end>"]
TOKENS = [bytes([byte]) for byte in range(256)] + [piece.encode() for piece in PIECES]
END = len(TOKENS) + MARKS.index("<end>")
N_VOCAB = len(TOKENS) + len(MARKS)


class _Wrapper:
    """The vocabulary as llguidance's own wrapper wants it."""

    eos_token_id = END
    bos_token_id = None
    tokens: ClassVar = [*TOKENS, *(b"\xff" + mark.encode() for mark in MARKS)]
    special_token_ids = tuple(range(len(TOKENS), N_VOCAB))

    def __call__(self, text: bytes) -> list[int]:
        return tokens_of(text)


IDS = {text: token for token, text in enumerate(TOKENS)}
LONGEST_FIRST = re.compile(b"|".join(map(re.escape, sorted(TOKENS, key=len, reverse=True))))


def tokens_of(text: bytes) -> list[int]:
    """The longest piece first, as a greedy tokenizer."""
    return [IDS[found] for found in LONGEST_FIRST.findall(text)]


def piece(token: int) -> bytes:
    """What a token stands for in an answer; marks are text there."""
    return TOKENS[token] if token < len(TOKENS) else b"" if token == END else MARKS[token - len(TOKENS)].encode()


@lru_cache
def tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Wrapper()), slices=[])


def guidance(*, compact: bool = True) -> Guidance:
    return Guidance(tokenizer(), N_VOCAB, compact=compact)


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether the answer may be this text: token by token, asked as the engine asks."""
    for token in tokens_of(text.encode()):
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return constraint.may_end


CLOSING = {IDS[text] for text in (b'"', b"}", b"]", b'"}', b"]}") if text in IDS}
USUAL = {IDS[text] for text in TOKENS if text[:1] < b"\x7f"}


def _chosen(constraint: Constraint, choose: random.Random, step: int) -> int:
    """Draw a token; the constraint is asked about those that are drawn only, as by the engine."""
    ids = list(map(int, constraint.allowed().nonzero()[0]))
    hurried = choose.random() < 0.3 + step / 100
    while True:
        closing = [n for n in ids if n in CLOSING] if hurried else []
        token = choose.choice(closing or [n for n in ids if n in USUAL] or ids)
        if constraint.allows(token):
            return token
        ids.remove(token)


def walk(constraint: Constraint, choose: random.Random, most: int = 300) -> str | None:
    """A random answer; None when it did not end in time. Ends and closing marks are preferred, or it never would."""
    out = bytearray()
    for step in range(most):
        forced = list(constraint.forced())
        if not forced:
            if constraint.must_end or (constraint.may_end and choose.random() < 0.7):
                return out.decode()
            forced = [_chosen(constraint, choose, step)]
            if forced == [END]:
                return out.decode()
        for token in forced:
            constraint.accept(token)
            out += piece(token)
    return None


def walks(start: Iterable[Constraint], choose: random.Random) -> list[str]:
    """Random answers of fresh constraints, those that ended."""
    found = []
    for constraint in start:
        try:
            text = walk(constraint, choose)
        except ConstraintFailed:
            continue
        if text is not None:
            found.append(text)
    return found
