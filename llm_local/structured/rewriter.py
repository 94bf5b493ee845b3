"""A walk over a JSON Schema that leaves its canonical form. Any thread.

`Rewriter` walks and knows the references; a `Subschema` is one schema object on its way. What becomes of each keyword
is said by handlers: `combining.py`, `scalars.py`, `arrays.py` and `objects.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.exclusion import known
from llm_local.structured.logic import REF, Node, all_of
from llm_local.structured.product import multiplied
from llm_local.structured.references import References

MAX_NODES = 20_000
MAX_DEPTH = 48
MAX_MULTIPLE = 100_000
"""Of the smallest unit: llguidance goes through all remainders, and gave up at 9973 of them."""

MAX_CPU_S = 1.5
"""Time of its own that a worker may spend on one schema, so that the same schemas are served on a busy machine."""

MAX_ELAPSED_S = 15.0

LAST = ("unevaluatedProperties", "unevaluatedItems")


class Rewriter:
    """Walks a schema once; `$ref` targets become definitions of their own.

    Args:
        root: the whole schema.
        handlers: take each keyword into the canonical form; others mean nothing.

    Attributes:
        defs: canonical forms of what is referred to, by name.
        handlers: see above.
        least_multiple: the least common multiple of all `multipleOf`, as whole numbers of their last digits.
        has_unique_items: whether items of some array must differ, as far as was looked.
    """

    def __init__(self, root: Any, handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self._references = References(root)
        self._root = root
        self._names: dict[int, str] = {}
        self._n_nodes = 0
        self.least_multiple = 1
        self.has_unique_items = False
        self._began = time.thread_time(), time.monotonic()
        self.defs: dict[str, Node] = {}

    def node(self, node: Any, where: str, depth: int) -> Node:
        """Return the canonical form of a subschema."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise InvalidSchema(f"{where}: a schema is an object or a boolean, not {kind(node)}.")
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise InvalidSchema(f"{where}: the schema has over {MAX_NODES} parts.")
        self.check_time(where)
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"{where}: the schema is nested over {MAX_DEPTH} deep. Move parts to $defs.")
        return Subschema(self, node, where, depth).canonical()

    def check_time(self, where: str) -> None:
        """Give up on a schema that takes too long, whatever makes it so."""
        cpu, clock = self._began
        if time.thread_time() - cpu > MAX_CPU_S or time.monotonic() - clock > MAX_ELAPSED_S:
            raise InvalidSchema(f"{where}: the schema takes over {MAX_CPU_S} s to translate. Make it smaller.")

    def reference(self, holder: dict[str, Any], key: str, where: str) -> Node:
        """Return a reference to the canonical form of what `holder` refers to."""
        target = self._references.resolve(holder[key], holder, where)
        if isinstance(target, bool):
            return target
        name = self._names.get(id(target))
        if name is None:
            name = self._names[id(target)] = f"d{len(self._names)}"
            self.defs[name] = self.node(target, str(holder[key]), 0)
        return {"$ref": f"#/$defs/{name}"}

    def target(self, node: Node) -> Node:
        """Return what a reference refers to, where that is translated already; all else as it is."""
        for _ in range(MAX_DEPTH):
            if not isinstance(node, dict) or "$ref" not in node or not known(node, self.defs):
                break
            node = self.defs[node["$ref"].removeprefix(REF)]
        return node

    def multiple(self, value: float, bad: Callable[[str, str], InvalidSchema]) -> None:
        """Check a `multipleOf`: an automaton counts its remainders."""
        if value <= 0:
            raise bad("multipleOf", "must be greater than 0.")
        number = Decimal(repr(value)).normalize()
        count = int(number.scaleb(max(-int(number.as_tuple().exponent), 0)))
        self.least_multiple = math.lcm(self.least_multiple, count)
        if count > MAX_MULTIPLE:
            raise bad("multipleOf", f"{value} has too many digits or is too large; at most {MAX_MULTIPLE} is counted.")

    @property
    def ref_stands_alone(self) -> bool:
        """Whether keywords beside a `$ref` mean nothing (drafts 3 to 7)."""
        return self._references.ref_stands_alone

    def depends_on_use(self, reference: Any) -> bool:
        """Tell whether it depends on where a schema is used what its `$dynamicRef` or `$recursiveRef` names."""
        return self._references.depends_on_use(reference)

    def original(self, reference: str, holder: dict[str, Any], where: str) -> Any:
        """Return what a reference points to, as it was written."""
        return self._references.resolve(reference, holder, where)


class Subschema:
    """One schema object on its way to canonical form.

    Attributes:
        plain: keywords that engines know.
        parts: schemas that must hold beside them.
    """

    def __init__(self, rewriter: Rewriter, source: dict[str, Any], where: str, depth: int) -> None:
        self.rewriter = rewriter
        self.source = source
        self.where = where
        self.depth = depth
        self.plain: dict[str, Any] = {}
        self.parts: list[Node] = []

    def canonical(self) -> Node:
        """Translate all keywords, in the order in which they were written: it is the order of properties, too.

        What is about that which the others leave comes last.
        """
        if "$ref" in self.source and self.rewriter.ref_stands_alone:
            return self.rewriter.reference(self.source, "$ref", self.where)
        place: int | None = None
        for key in sorted(self.source, key=LAST.__contains__):
            value = self.source[key]
            handler = self.rewriter.handlers.get(key)
            if handler is None or (value is None and key != "const"):
                continue
            handler(self, key, value)
            if key == "properties":
                place = len(self.parts)
        if self.plain:
            self.parts.insert(0 if place is None else place, self.plain)
        return multiplied(all_of(self.parts), self.rewriter.defs, lambda: self.rewriter.check_time(self.where))

    def sub(self, value: Any, *path: object) -> Node:
        """Return the canonical form of a schema inside this one."""
        return self.rewriter.node(value, "/".join([self.where, *map(str, path)]), self.depth + 1)

    def bad(self, key: str, message: str) -> InvalidSchema:
        """Return an error that names the keyword and its place."""
        return InvalidSchema(f"{self.where}/{key}: {message}")

    def subs(self, key: str, value: Any) -> list[Node]:
        """Return the canonical forms of a list of schemas."""
        if not isinstance(value, list):
            raise self.bad(key, f"must be a list of schemas, not {kind(value)}.")
        return [self.sub(item, key, index) for index, item in enumerate(value)]

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        """Return a keyword's value that must be an object."""
        if not isinstance(value, dict):
            raise self.bad(key, f"must be an object, not {kind(value)}.")
        return value

    def names(self, key: str, value: Any) -> list[str]:
        """Return a keyword's value that must be a list of names, each once."""
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.bad(key, "must be a list of property names.")
        return list(dict.fromkeys(value))

    def conjoin(self, part: dict[str, Any]) -> None:
        """Add a keyword that may be there already."""
        if any(key in self.plain for key in part):
            self.parts.append(part)
        else:
            self.plain.update(part)


Handler = Callable[[Subschema, str, Any], None]
"""Takes a keyword and its value into a subschema's canonical form."""


def kind(value: Any) -> str:
    """Return what a value is called in errors."""
    return "null" if value is None else type(value).__name__
