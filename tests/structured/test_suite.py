"""The official JSON Schema Test Suite, where `LLM_LOCAL_TEST_JSON_SCHEMA_SUITE` names its folder `tests`.

Nothing invalid may be an answer, and almost everything valid may. Which schemas are refused, and which valid instances,
is counted and printed (`-s`).
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_local.errors import InvalidSchema
from llm_local.structured.native import NativeEngine
from llm_local.structured.places import Places
from llm_local.structured.readable import readable
from llm_local.structured.scalars import FORMATS
from llm_local.structured.schema import canonical
from llm_local.structured.tokens import Compiled, Tokens
from tests.structured.native import FakeNative
from tests.structured.vocabulary import END, N_VOCAB, accepts, guidance, piece

DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
GUIDANCE = guidance()
NATIVE = NativeEngine(FakeNative(GUIDANCE), compact=True)
TOKENS = Tokens(N_VOCAB, piece, GUIDANCE.byte_tokens, [END])
MAX_ORDERS = 200
MAX_REFUSED = 0.01
"""Of the valid instances of schemas that are served."""

ANNOTATED = "is only an annotation by default"
"""How the suite ends its word on a format that it does not want to be checked; we enforce the usual ones."""


def orders(value: Any) -> Iterator[Any]:
    """The same value with its keys in other orders: answers have them in the order of the schema."""
    if isinstance(value, dict):
        for keys in itertools.permutations(value):
            for inner in itertools.product(*(list(orders(value[key])) for key in keys)):
                yield dict(zip(keys, inner, strict=True))
    elif isinstance(value, list):
        for items in itertools.product(*(list(orders(item)) for item in value)):
            yield list(items)
    else:
        yield value


def spelt(value: Any, number: Callable[[int | float], int | float]) -> Any:
    """The same value with its numbers written in another way."""
    if isinstance(value, dict):
        return {key: spelt(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [spelt(item, number) for item in value]
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def whole(number: float) -> int | float:
    """1.0 as 1."""
    return int(number) if number == int(number) else number


def fraction(number: float) -> int | float:
    """1 as 1.0."""
    return float(number) if abs(number) < 2**53 else number


def texts_of(value: Any) -> Iterator[str]:
    """The ways to write a value, which JSON Schema does not distinguish."""
    for one in (value, spelt(value, whole), spelt(value, fraction)):
        yield from map(written, itertools.islice(orders(one), MAX_ORDERS))


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def compiled(engine: str, document: Any) -> Compiled:
    schema = canonical(document)
    one: Any = GUIDANCE if engine == "llguidance" else NATIVE
    return readable(one.json(schema), [schema], Places([schema]), TOKENS)


def suite() -> Path:
    folder = os.environ.get("LLM_LOCAL_TEST_JSON_SCHEMA_SUITE")
    if not folder:
        pytest.skip("LLM_LOCAL_TEST_JSON_SCHEMA_SUITE does not name the suite's folder")
    return Path(folder)


@pytest.mark.parametrize("engine", ["llguidance", "llama"])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_no_text_that_is_not_of_a_format_is_an_answer(name: str, engine: str) -> None:
    for group in json.loads((suite() / "draft2020-12" / "optional" / "format" / f"{name}.json").read_text()):
        try:
            compiled_one = compiled(engine, group["schema"])
        except InvalidSchema:
            assert engine == "llama"
            continue
        taken = [case["data"] for case in group["tests"] if accepts(compiled_one.start(), written(case["data"]))]
        assert [case["data"] for case in group["tests"] if not case["valid"] and case["data"] in taken] == []


@pytest.mark.parametrize("engine", ["llguidance", "llama"])
@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_invalid_of_the_official_suite_is_an_answer(draft: str, engine: str) -> None:
    count, refused, wrong = Counter[str](), Counter[str](), []
    unexplained = 0
    paths = sorted((suite() / draft).glob("*.json"))
    assert paths, f"no suite in {suite()}/{draft}"
    for path in paths:
        for group in json.loads(path.read_text()):
            document = group["schema"]
            if isinstance(document, dict):
                document = {"$schema": DRAFTS[draft], **document}
            try:
                compiled_one = compiled(engine, document)
            except InvalidSchema as error:
                unexplained += len(error.message) < 10
                count["schemas refused"] += 1
                refused[path.stem] += 1
                if "-v" in os.environ.get("PYTEST_ADDOPTS", ""):
                    print(f"REFUSED {path.stem}: {group['description']}: {error.message}")
                continue
            count["schemas served"] += 1
            for case in group["tests"]:
                taken = any(accepts(compiled_one.start(), text) for text in texts_of(case["data"]))
                if not taken and case["description"].endswith(ANNOTATED):
                    count["refused for their format"] += 1
                    continue
                kind = "valid" if case["valid"] else "invalid"
                count[f"{kind} {'accepted' if taken else 'refused'}"] += 1
                if taken != case["valid"]:
                    wrong.append((case["valid"], path.stem, group["description"], case["description"]))
    print(f"\n{draft} {engine}: {dict(sorted(count.items()))}; refused: {dict(refused.most_common())}")
    for _, *place in (one for one in wrong if one[0]):
        print("valid, but refused:", *place, sep=" | ")
    assert [one for one in wrong if not one[0]] == []
    assert count["valid refused"] <= MAX_REFUSED * (count["valid accepted"] + count["valid refused"])
    assert not unexplained
