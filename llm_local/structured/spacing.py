"""How much whitespace there is between the parts of JSON. Any thread."""

from __future__ import annotations

from enum import Enum


class Spacing(Enum):
    """Where whitespace stands, or may stand.

    Attributes:
        COMPACT: nowhere.
        SPACED: a space after each comma and colon, as models were trained to write calls (Python's `json.dumps`).
        FLEXIBLE: anywhere between parts, but not without end: small models get lost in it.
    """

    COMPACT = "compact"
    SPACED = "spaced"
    FLEXIBLE = "flexible"
