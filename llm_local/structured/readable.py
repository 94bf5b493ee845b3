"""What no grammar of JSON says, around one: items differ, names have one spelling, numbers end. Any thread."""

from __future__ import annotations

from collections.abc import Sequence

from llm_local.structured.around import CompiledAround
from llm_local.structured.digits import Digits
from llm_local.structured.distinct import Distinct
from llm_local.structured.keys import Keys, check_names, has_other_names
from llm_local.structured.places import Places
from llm_local.structured.schema import Schema
from llm_local.structured.tokens import Compiled, Tokens


def readable(compiled: Compiled, schemas: Sequence[Schema], places: Places | None, tokens: Tokens) -> Compiled:
    """Return a compiled grammar of JSON with all that is needed around it.

    Args:
        compiled: the grammar.
        schemas: of what is in the answer.
        places: where items must differ; None for nowhere.
        tokens: of the vocabulary.

    Raises:
        InvalidSchema: the name of a property would never be written.
    """
    if places is not None:
        compiled = CompiledAround(compiled, lambda inner: Distinct(inner, places, tokens))
    nodes = [node for schema in schemas for node in (schema.root, *schema.defs.values())]
    if has_other_names(nodes):
        check_names(nodes)
        compiled = CompiledAround(compiled, lambda inner: Keys(inner, tokens))
    return CompiledAround(compiled, lambda inner: Digits(inner, tokens))
