"""A schema that nothing satisfies is refused with the place of the contradiction."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from llm_local.errors import InvalidSchema
from llm_local.structured.grammars import Grammars
from llm_local.structured.guidance import Guidance
from llm_local.structured.schema import canonical
from llm_local.structured.spec import CallsSpec
from llm_local.structured.unsatisfiable import contradiction
from tests.structured.test_calls import HERMES
from tests.structured.vocabulary import guidance, piece

GUIDANCE = guidance()
NOTHING = {"type": "string", "minLength": 5, "maxLength": 2}
TOO_SHORT = "minLength (5) is greater than maxLength (2)"


def within(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"well": {"type": "integer"}, name: schema}, "required": [name]}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        (NOTHING, "#"),
        (within("a", within("b", NOTHING)), "#/properties/a/properties/b"),
        (within("имя/a~", NOTHING), "#/properties/имя~1a~0"),
        (within("a", {"type": "array", "items": NOTHING, "minItems": 1}), "#/properties/a/items"),
        ({"anyOf": [NOTHING, {"$ref": "#/$defs/d"}], "$defs": {"d": NOTHING}}, "#/anyOf/0"),
        (within("a", {"$ref": "#/$defs/d"}) | {"$defs": {"d": NOTHING}}, "#/properties/a"),
    ],
)
def test_the_place_of_a_contradiction_is_named(schema: Any, where: str) -> None:
    with pytest.raises(InvalidSchema) as caught:
        GUIDANCE.json(canonical(schema))
    assert str(caught.value) == f"{where}: no value satisfies this: {TOO_SHORT}."


def test_the_tool_with_a_contradiction_is_named() -> None:
    tables: Future[Guidance] = Future()
    tables.set_result(GUIDANCE)
    schemas = [{}, within("x", NOTHING)]
    tools = tuple((f"f{n}", schema, f"tools.{n}.function.parameters") for n, schema in enumerate(schemas))
    with pytest.raises(InvalidSchema, match=r"^#/properties/x: no value satisfies this: minLength") as caught:
        Grammars(tables, piece).constraints(CallsSpec(tools, HERMES, parallel=True), [9])
    assert caught.value.param == "tools.1.function.parameters"


def test_a_large_schema_is_not_searched_for_ever() -> None:
    asked = []

    def why(node: Any) -> str | None:
        asked.append(node)
        return "all" if node == "last" or "properties" in node else None

    root = {"properties": {**{str(n): {} for n in range(1000)}, "last": "last"}}
    assert contradiction(root, why) == ("#", "all")
    assert len(asked) < 200
