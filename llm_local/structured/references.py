"""`$ref`: what it points to inside one schema document. Nothing is ever fetched. Any thread.

Sources: JSON Schema 2020-12, core, sections 8.2 ($id, $anchor, $ref, $dynamicRef) and RFC 6901 (JSON pointer);
2019-09, core, 8.2.4.2 ($recursiveRef).
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from llm_local.errors import InvalidSchema

VALUES = frozenset({"enum", "const", "default", "examples", "example"})
"""Keywords whose values are data: what looks like a schema in there is none."""

IGNORE_SIBLINGS = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
"""In these drafts a `$ref` is the whole schema."""


class References:
    """The identified parts of a document.

    Args:
        root: the whole schema.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._documents: dict[str, Any] = {"": root}
        self._anchors: dict[str, Any] = {}
        self._n_dynamic = Counter[str]()
        self._bases: dict[int, str] = {}
        dialect = root.get("$schema") if isinstance(root, dict) else None
        self.ref_stands_alone = isinstance(dialect, str) and any(name in dialect for name in IGNORE_SIBLINGS)
        self._walk(root, "")

    def _walk(self, node: Any, base: str) -> None:
        stack = [(node, base)]
        while stack:
            node, base = stack.pop()
            if isinstance(node, list):
                stack += [(item, base) for item in node]
            if not isinstance(node, dict):
                continue
            base = self._identify(node, base)
            self._bases[id(node)] = base
            stack += [(value, base) for key, value in node.items() if key not in VALUES]

    def _identify(self, node: dict[str, Any], base: str) -> str:
        for key in ("$id", "id"):
            name = node.get(key)
            if not isinstance(name, str) or (self.ref_stands_alone and "$ref" in node):
                continue
            if name.startswith("#"):
                self._anchors[base + name] = node
            elif key == "$id" or "://" in name or node is self._root:
                base = urldefrag(urljoin(base, name))[0]
                self._documents.setdefault(base, node)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(node.get(key), str):
                self._anchors[f"{base}#{node[key]}"] = node
        if isinstance(node.get("$dynamicAnchor"), str):
            self._n_dynamic[node["$dynamicAnchor"]] += 1
        if node.get("$recursiveAnchor") is True:
            self._n_dynamic[""] += 1
        return base

    def depends_on_use(self, reference: Any) -> bool:
        """Tell whether it depends on where a schema is used what its `$dynamicRef` or `$recursiveRef` names.

        Where there is one dynamic anchor of a name, it is a `$ref`.
        """
        return isinstance(reference, str) and self._n_dynamic[urldefrag(reference)[1]] > 1

    def resolve(self, reference: Any, holder: dict[str, Any], where: str) -> Any:
        """Return the schema that `holder`'s `$ref` names.

        Raises:
            InvalidSchema: it is not in this document.
        """
        if not isinstance(reference, str):
            raise InvalidSchema(f"{where}/$ref: a reference is a string, not {type(reference).__name__}.")
        has_id = "$id" in holder or "://" in str(holder.get("id", ""))
        if has_id and isinstance(self._root, dict) and "$schema" not in self._root:
            raise InvalidSchema(
                f"{where}/$ref: beside '$id' it means different things in different drafts; name yours in '$schema'."
            )
        base = self._bases.get(id(holder), "")
        address, fragment = urldefrag(urljoin(base, reference) if not reference.startswith("#") else base + reference)
        if address not in self._documents:
            raise InvalidSchema(
                f"{where}/$ref: {reference!r} is not in this schema, and nothing is fetched. "
                "Put the definition under $defs and refer to it as '#/$defs/NAME'."
            )
        if not fragment:
            return self._documents[address]
        if fragment.startswith("/"):
            return _follow(self._documents[address], fragment, reference, where)
        anchored = self._anchors.get(f"{address}#{fragment}")
        if anchored is None:
            raise InvalidSchema(f"{where}/$ref: no $anchor {fragment!r} in this schema.")
        return anchored


def _follow(node: Any, pointer: str, reference: str, where: str) -> Any:
    for part in unquote(pointer).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise InvalidSchema(f"{where}/$ref: {reference!r} points to nothing ({name!r} is not there).")
    return node
