"""Real schemas with real instances, where `LLM_LOCAL_TEST_JSON_SCHEMA_PAIRS` names a folder of folders.

Each of those has a `schema.json`, and instances in its other `*.json`; `jsonschema` says which of them are valid. No
invalid one may be an answer, nor a copy of a valid one with one thing wrong. Which schemas are refused, and which valid
instances (with their keys in the order in which answers have them), is counted and printed (`-s`).
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry
from referencing.exceptions import Unresolvable

from llm_local.errors import InvalidSchema
from llm_local.structured.logic import REF, Defs, Node
from llm_local.structured.scalars import FORMATS
from llm_local.structured.schema import Schema, canonical
from llm_local.structured.tokens import Compiled
from tests.structured.test_suite import compiled, written
from tests.structured.vocabulary import accepts

N_ORDERS = 3
"""Orders of keys that are tried where several branches of a schema admit an instance."""

N_WRONG = 20
LONGEST_WRONG = 20_000
"""Characters of instances whose wrong copies are tried, for the time that it takes."""

OTHERS: list[Any] = [None, True, 0, -1, 1.5, 10**9, "", "x", "x" * 300, [], [None], {}, {"unknown": 1}]


def is_valid(schema: Any, value: Any) -> bool | None:
    """What `jsonschema` says; None where it cannot say (a pattern that Python does not know, a `$ref` to elsewhere)."""
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    judge = kind(schema, format_checker=jsonschema.FormatChecker(FORMATS), registry=Registry())
    try:
        return bool(judge.is_valid(value))
    except (re.error, FutureWarning, Unresolvable, RecursionError):
        return None


class Order:
    """Puts keys in the order of a canonical schema.

    Args:
        choice: which of several branches that admit a value says the order.
    """

    def __init__(self, schema: Schema, choice: int) -> None:
        self._defs: Defs = schema.defs
        self._choice = choice
        self._judge = jsonschema.Draft202012Validator({"$defs": dict(schema.defs)}, registry=Registry())

    def put(self, value: Any, node: Node) -> Any:
        """Return a value that a node describes in its order."""
        if not isinstance(value, dict | list):
            return value
        parts = list(self._parts(value, node))
        if isinstance(value, list):
            return [self.put(item, {"allOf": [_item(part, at) for part in parts]}) for at, item in enumerate(value)]
        declared, required = (
            [name for part in parts for name in part.get(key, [])] for key in ("properties", "required")
        )
        keys = dict.fromkeys(name for name in [*declared, *required, *value] if name in value)
        return {key: self.put(value[key], {"allOf": [*_properties(parts, key)]}) for key in keys}

    def _parts(self, value: Any, node: Node) -> Iterator[dict[str, Any]]:
        """Yield the schemas without `$ref`, `allOf` and `anyOf` that a value satisfies by a node."""
        if isinstance(node, bool):
            return
        if "$ref" in node:
            yield from self._parts(value, self._defs[node["$ref"].removeprefix(REF)])
        elif "allOf" in node:
            for part in node["allOf"]:
                yield from self._parts(value, part)
        elif "anyOf" in node:
            found = [branch for branch in node["anyOf"] if self._admits(branch, value)]
            if found:
                yield from self._parts(value, found[self._choice % len(found)])
        else:
            yield node

    def _admits(self, node: Node, value: Any) -> bool:
        try:
            return bool(self._judge.evolve(schema=node).is_valid(value))
        except (re.error, FutureWarning):
            # (A pattern in Rust's syntax.)
            return True


def _item(part: dict[str, Any], at: int) -> Node:
    first = part.get("prefixItems", [])
    return first[at] if at < len(first) else part.get("items", True)


def _properties(parts: list[dict[str, Any]], name: str) -> Iterator[Node]:
    for part in parts:
        declared = part.get("properties", {})
        yield declared[name] if name in declared else part.get("additionalProperties", True)
        yield from part.get("patternProperties", {}).values()


def accepted(constraints: Compiled, schema: Schema, value: Any) -> str | None:
    """Return an instance as it may be an answer; None where no order of its keys was found in which it may."""
    for choice in range(N_ORDERS):
        text = written(Order(schema, choice).put(value, schema.root))
        if accepts(constraints.start(), text):
            return text
    return None


def wrong_copies(value: Any, choose: random.Random) -> Iterator[Any]:
    """Yield copies with a key dropped or added, or with something else in one place; some are right all the same."""
    for _ in range(N_WRONG):
        whole = [json.loads(json.dumps(value))]
        holder, key = choose.choice(list(_places(whole)))
        kind = choose.choice(["drop", "add", "replace"])
        if kind == "drop" and isinstance(holder, dict):
            del holder[key]
        elif kind == "add" and isinstance(holder[key], dict):
            holder[key]["unknown-key"] = choose.choice(OTHERS)
        else:
            holder[key] = choose.choice(OTHERS)
        yield whole[0]


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def instances(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*.json")):
        if path.name != "schema.json":
            yield f"{folder.name}/{path.name}", json.loads(path.read_text())


@pytest.mark.parametrize("engine", ["llguidance", "llama"])
def test_nothing_invalid_of_real_pairs_is_an_answer(engine: str) -> None:
    folder = os.environ.get("LLM_LOCAL_TEST_JSON_SCHEMA_PAIRS")
    if not folder:
        pytest.skip("LLM_LOCAL_TEST_JSON_SCHEMA_PAIRS names no folder of folders with a schema.json")
    schemas = sorted(Path(folder).glob("*/schema.json"))
    assert schemas, f"no */schema.json in {folder}"
    count = Counter[str]()
    wrong = [found for path in schemas for found in wrongly_accepted(engine, path, count)]
    print(f"\n{engine}: {dict(sorted(count.items()))}")
    assert wrong == []


def wrongly_accepted(engine: str, path: Path, count: Counter[str]) -> Iterator[str]:
    """Yield what is invalid and may be an answer."""
    document = json.loads(path.read_text())
    try:
        schema, constraints = canonical(document), compiled(engine, document)
    except InvalidSchema as error:
        count["schemas refused"] += 1
        print(f"schema refused: {path.parent.name}: {error.message}")
        return
    count["schemas served"] += 1
    for name, value in instances(path.parent):
        valid = is_valid(document, value)
        found = accepted(constraints, schema, value)
        kind = "unjudged" if valid is None else "valid" if valid else "invalid"
        count[f"{kind} {'refused' if found is None else 'accepted'}"] += 1
        if valid and found is None:
            print("valid, but refused:", name)
        if valid is False and found is not None:
            yield name
        if valid and found is not None and len(found) <= LONGEST_WRONG:
            for copy in wrong_copies(json.loads(found), random.Random(name)):
                if is_valid(document, copy) is False:
                    count["wrong copies"] += 1
                    if accepts(constraints.start(), written(copy)):
                        yield f"{name}: {written(copy)}"
