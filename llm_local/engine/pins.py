"""Prefixes that are evicted last, because they were asked for in advance. Engine thread."""

from __future__ import annotations

from llm_local.engine.radix_tree import RadixTree, Tokens


class Pins:
    """Pinned prefixes; they stay pinned for good."""

    def __init__(self) -> None:
        self._tree: RadixTree[int] = RadixTree()

    def __len__(self) -> int:
        """Return how many prefixes are pinned."""
        return len(self._tree)

    def add(self, tokens: Tokens) -> None:
        """Pin a prefix."""
        if tokens not in self:
            self._tree.insert(len(self._tree), tokens)

    def longest(self, tokens: Tokens) -> int:
        """Return the length of the longest pinned prefix that the tokens begin with, 0 when there is none."""
        return max((node.depth for node in self._tree.walk(tokens).passed if node.ends), default=0)

    def __contains__(self, tokens: Tokens) -> bool:
        """Tell whether exactly these tokens are pinned."""
        return self.longest(tokens) == len(tokens) > 0
