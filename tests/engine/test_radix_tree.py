"""The radix tree against the linear matcher that it replaced."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llm_local.engine.radix_tree import Node, RadixTree, common_prefix
from tests.examples import seeds


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def nodes(tree: RadixTree[int]) -> list[Node[int]]:
    found, level = [], [tree._root]
    while level:
        found += level
        level = [child for node in level for child in node.children.values()]
    return found


def check_invariants(tree: RadixTree[int], held: dict[int, list[int]]) -> None:
    """Every holder's path spells its tokens, and no node is there without need."""
    assert sorted(tree._at) == sorted(held)
    for node in nodes(tree):
        if node.parent is not None:
            assert node.ends or len(node.children) > 1, "a node that neither ends nor branches"
            assert node.depth == node.parent.depth + len(node.tokens)
            assert len(node.tokens) > 0
        for first, child in node.children.items():
            assert (int(child.tokens[0]), child.parent) == (first, node)
    for holder, tokens in held.items():
        at, spelt = tree._at[holder], []
        assert holder in at.ends
        while at.parent is not None:
            spelt[:0] = at.tokens.tolist()
            at = at.parent
        assert spelt == tokens


@pytest.mark.parametrize("seed", seeds(20))
def test_a_walk_finds_what_a_comparison_with_everyone_finds(seed: int) -> None:
    choose = random.Random(seed)
    tree: RadixTree[int] = RadixTree()
    held: dict[int, list[int]] = {}

    def some_tokens() -> list[int]:
        begun = choose.choice([[], *held.values()])
        start = begun[: choose.randint(0, len(begun))] if begun else []
        return start + choose.choices(range(3), k=choose.randint(0, 12))

    for _ in range(400):
        holder = choose.randrange(12)
        act = choose.choice(["insert", "insert", "trim", "remove", "look"])
        if act == "insert":
            held[holder] = some_tokens()
            tree.insert(holder, array(held[holder]))
        elif act == "trim" and holder in held:
            length = choose.randint(0, 15)
            held[holder] = held[holder][:length]
            tree.trim(holder, length)
        elif act == "remove":
            held.pop(holder, None)
            tree.remove(holder)
        check_invariants(tree, held)
        wanted = array(some_tokens())
        common = {holder: common_prefix(array(tokens), wanted) for holder, tokens in held.items()}
        longest = max(common.values(), default=0)
        walk = tree.walk(wanted)
        assert walk.length == longest
        best = {holder for holder, length in common.items() if length == longest} if longest else set()
        assert walk.holder() in (best or {None})
        even = {holder for holder in best if holder % 2 == 0}
        assert walk.holder(lambda holder: holder % 2 == 0) in (even or best or {None})
        assert set(walk.node.holders() if longest else []) == best


def test_of_those_that_have_a_prefix_the_one_that_ends_there_comes_first() -> None:
    tree: RadixTree[str] = RadixTree()
    tree.insert("longer", array([1, 2, 3, 4]))
    tree.insert("exact", array([1, 2]))
    tree.insert("other", array([1, 2, 9]))
    assert tree.walk(array([1, 2, 7])).holder() == "exact"
    assert tree.length("longer") == 4
    tree.remove("exact")
    assert tree.walk(array([1, 2, 7])).holder() in ("longer", "other")


def test_what_was_inserted_does_not_change_with_the_array_it_came_from() -> None:
    tree: RadixTree[str] = RadixTree()
    tokens = array([1, 2, 3])
    tree.insert("a", tokens)
    tokens[:] = 9
    assert tree.walk(array([1, 2, 3])).length == 3
