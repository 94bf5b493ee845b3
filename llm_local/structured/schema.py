"""JSON Schema to its canonical form: fewer keywords, the same values. Any thread.

What the engines do not know is rewritten where an equivalent exists (`oneOf` of exclusive branches, `if`, `not`,
`dependentRequired`, `propertyNames`, `uniqueItems` over a small enum, ...) and refused by name and place where none
does. Unknown keywords are annotations, as the specification says, and so is a `format` that nothing checks.

Sources: JSON Schema 2020-12, core and validation; drafts 4 to 2019-09 where their keywords differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured import arrays, combining, objects, scalars, unevaluated
from llm_local.structured.endings import can_end, endless, looping, without
from llm_local.structured.joined_patterns import MAX_PATTERNS, too_many_patterns
from llm_local.structured.logic import Defs, Node, has_all_of
from llm_local.structured.rewriter import MAX_MULTIPLE, Rewriter

HANDLERS = combining.HANDLERS | scalars.HANDLERS | arrays.HANDLERS | objects.HANDLERS | unevaluated.HANDLERS


@dataclass(frozen=True, slots=True)
class Schema:
    """A canonical schema: `root` may refer to `defs` by `#/$defs/NAME`."""

    root: Node
    defs: Defs


def canonical(schema: Any) -> Schema:
    """Return the canonical form.

    Raises:
        InvalidSchema: it is no schema, cannot be enforced, or no value satisfies it.
    """
    try:
        return _canonical(schema)
    except RecursionError:
        raise InvalidSchema("#: the schema is nested, or its references are chained, too deep.") from None
    except OverflowError:
        raise InvalidSchema("#: a number in the schema is too large.") from None


def _canonical(schema: Any) -> Schema:
    _check_text(schema)
    rewriter = Rewriter(schema, HANDLERS)
    root = rewriter.node(schema, "#", 0)
    if looping(rewriter.defs) is not None:
        raise InvalidSchema("#: a '$ref' leads back to itself without going into a property or an item.")
    if rewriter.least_multiple > MAX_MULTIPLE and has_all_of([root, *rewriter.defs.values()]):
        raise InvalidSchema(
            f"#: the least common multiple of all 'multipleOf' is over {MAX_MULTIPLE}, and they may meet."
        )
    if too_many_patterns([root, *rewriter.defs.values()], rewriter.defs):
        raise InvalidSchema(f"#/allOf: over {MAX_PATTERNS} patterns or formats must match at once; join them into one.")
    dead = endless(rewriter.defs)
    defs = {name: node for name, node in rewriter.defs.items() if name not in dead}
    if not can_end(root, set(defs)):
        raise InvalidSchema("#: no value satisfies this schema.")
    return Schema(root, defs) if not dead else Schema(without(root, dead), {n: without(defs[n], dead) for n in defs})


def _check_text(schema: Any) -> None:
    """Refuse what JSON text cannot say."""
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidSchema("#: a text in the schema has half of a surrogate pair.") from None
    except ValueError:
        raise InvalidSchema("#: a number in the schema is infinite or none.") from None
    except RecursionError:
        raise InvalidSchema("#: the schema is nested too deep.") from None
