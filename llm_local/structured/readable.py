"""What no grammar of JSON says, around one: items differ, names have one spelling, numbers end. Any thread."""

from __future__ import annotations

from collections.abc import Sequence

from llm_local.structured.digits import CompiledDigits
from llm_local.structured.distinct import CompiledDistinct
from llm_local.structured.keys import CompiledKeys, check_names, has_other_names
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
        compiled = CompiledDistinct(compiled, places, tokens)
    nodes = [node for schema in schemas for node in (schema.root, *schema.defs.values())]
    if has_other_names(nodes):
        check_names(nodes)
        compiled = CompiledKeys(compiled, tokens)
    return CompiledDigits(compiled, tokens)
