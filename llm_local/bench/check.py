"""Is an answer what was asked for? Run after a round, never in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def fits_schema(schema: dict[str, Any]) -> Callable[[str], str | None]:
    """Return a check that says what keeps a text from being JSON that fits the schema; needs the `bench` extra."""

    def check(text: str) -> str | None:
        from jsonschema import Draft202012Validator

        try:
            value = json.loads(text)
        except ValueError:
            return "not JSON"
        error = next(Draft202012Validator(schema).iter_errors(value), None)
        return None if error is None else f"does not fit the schema: {error.validator} at {error.json_path}"

    return check
