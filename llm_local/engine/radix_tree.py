"""Token sequences by their prefixes: a radix (compressed) tree. Engine thread; each tier of the cache has its own.

Two conversations (A, B) with one system prompt, and a third sequence (C) that ends inside it:

    root --[ system pr ]-- C --[ ompt ]--+--[ user A ... ]-- A
                                         +--[ user B ... ]-- B

A walk compares whole edges with numpy, so that a look-up costs by the branches it passes, not by the sequences stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
H = TypeVar("H")


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Return how many leading tokens are the same."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    different = a[:n] != b[:n]
    first = int(different.argmax())
    return first if different[first] else n


class Node(Generic[H]):
    """The tokens of one edge, what ends where they end, and what follows.

    Attributes:
        depth: tokens from the root to the end of the edge.
        children: by their first token.
        ends: holders whose sequence ends here, in order of insertion.
    """

    __slots__ = ("children", "depth", "ends", "parent", "tokens")

    def __init__(self, parent: Node[H] | None, tokens: Tokens) -> None:
        self.parent = parent
        self.tokens = tokens
        self.depth: int = len(tokens) + (parent.depth if parent is not None else 0)
        self.children: dict[int, Node[H]] = {}
        self.ends: dict[H, None] = {}

    def holders(self) -> Iterator[H]:
        """Yield whoever has all tokens up to this node, those with the fewest branches after it first."""
        level = [self]
        while level:
            for node in level:
                yield from node.ends
            level = [child for node in level for child in node.children.values()]


class Walk(Generic[H]):
    """How far a look-up came.

    Attributes:
        length: tokens that are in the tree.
        node: the node at whose end, or on whose edge, it stopped.
        passed: the nodes whose whole path was matched, from the root on.
    """

    __slots__ = ("length", "node", "passed")

    def __init__(self, length: int, node: Node[H], passed: list[Node[H]]) -> None:
        self.length = length
        self.node = node
        self.passed = passed

    def holder(self, prefers: Callable[[H], bool] | None = None) -> H | None:
        """Return someone who has all `length` tokens, if possible one that is preferred; None when `length` is 0."""
        if self.length == 0:
            return None
        first = None
        for holder in self.node.holders():
            if prefers is None or prefers(holder):
                return holder
            first = holder if first is None else first
        return first


class RadixTree(Generic[H]):
    """Holders (anything hashable), each with one sequence of tokens.

    Invariant: a node other than the root has a holder, or at least two children.
    """

    def __init__(self) -> None:
        self._root: Node[H] = Node(None, np.empty(0, np.int32))
        self._at: dict[H, Node[H]] = {}

    def __len__(self) -> int:
        """Return how many holders there are."""
        return len(self._at)

    def __contains__(self, holder: H) -> bool:
        return holder in self._at

    def length(self, holder: H) -> int:
        """Return how many tokens the holder has in the tree."""
        return self._at[holder].depth

    def walk(self, tokens: Tokens) -> Walk[H]:
        """Follow the tokens as far as the tree has them."""
        node, depth, n = self._root, 0, len(tokens)
        passed = [node]
        while depth < n:
            child = node.children.get(int(tokens[depth]))
            if child is None:
                break
            depth += common_prefix(child.tokens, tokens[depth:])
            if depth < child.depth:
                return Walk(depth, child, passed)
            node = child
            passed.append(node)
        return Walk(depth, node, passed)

    def insert(self, holder: H, tokens: Tokens) -> None:
        """Let the holder have these tokens, whatever it had before. They are copied."""
        before = self._at.get(holder)
        if before is not None:
            del before.ends[holder]
        walk = self.walk(tokens)
        node = walk.node if walk.length == walk.node.depth else self._split(walk.node, walk.length)
        if walk.length < len(tokens):
            leaf = Node(node, tokens[walk.length :].copy())
            node.children[int(leaf.tokens[0])] = leaf
            node = leaf
        node.ends[holder] = None
        self._at[holder] = node
        if before is not None:
            self._prune(before)

    def trim(self, holder: H, length: int) -> None:
        """Let the holder have only its first `length` tokens."""
        before = self._at[holder]
        if length >= before.depth:
            return
        node = before
        while node.parent is not None and node.parent.depth >= length:
            node = node.parent
        if node.depth > length:
            node = self._split(node, length)
        del before.ends[holder]
        node.ends[holder] = None
        self._at[holder] = node
        self._prune(before)

    def remove(self, holder: H) -> None:
        """Forget the holder, if it is there."""
        node = self._at.pop(holder, None)
        if node is not None:
            del node.ends[holder]
            self._prune(node)

    def _split(self, node: Node[H], depth: int) -> Node[H]:
        """Cut the edge of a node where it is `depth` tokens from the root; return the new node in between."""
        assert node.parent is not None
        at = depth - node.parent.depth
        upper = Node(node.parent, node.tokens[:at])
        node.parent.children[int(upper.tokens[0])] = upper
        node.parent, node.tokens = upper, node.tokens[at:]
        upper.children[int(node.tokens[0])] = node
        return upper

    def _prune(self, node: Node[H]) -> None:
        """Restore the invariant at a node that lost a holder."""
        while node.parent is not None and not node.ends and len(node.children) < 2:
            parent, first = node.parent, int(node.tokens[0])
            if node.children:
                (child,) = node.children.values()
                child.tokens = np.concatenate([node.tokens, child.tokens])
                child.parent = parent
                parent.children[first] = child
                return
            del parent.children[first]
            node = parent
