"""Where in a schema that no value satisfies the contradiction is. Any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llm_local.structured.logic import Node

MOST = 100
"""Parts of a schema that are tried, each of which is compiled."""


def contradiction(root: Node, why: Callable[[Node], str | None]) -> tuple[str, str] | None:
    """Return the path of the smallest part of a canonical schema that nothing satisfies by itself, and why.

    Args:
        root: of the schema.
        why: tells why nothing satisfies a part; None when something does.

    Returns:
        None when the root is satisfiable.
    """
    path, node, reason = "#", root, why(root)
    left = MOST
    while reason is not None:
        for name, part in _parts(node):
            left -= 1
            found = why(part) if left >= 0 else None
            if found is not None:
                path, node, reason = f"{path}/{name}", part, found
                break
        else:
            return path, reason
    return None


def _parts(node: Node) -> Iterator[tuple[str, Node]]:
    if not isinstance(node, dict):
        return
    for name, part in node.get("properties", {}).items():
        yield f"properties/{name.replace('~', '~0').replace('/', '~1')}", part
    for key in ("prefixItems", "allOf", "anyOf"):
        for at, part in enumerate(node.get(key, [])):
            yield f"{key}/{at}", part
    if "items" in node:
        yield "items", node["items"]
