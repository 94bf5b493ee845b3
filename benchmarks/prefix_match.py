#!/usr/bin/env python3
"""Time to find a common prefix among many sequences: the radix tree against a comparison with each of them.

prefix_match.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from llm_local.engine.radix_tree import RadixTree, Tokens, common_prefix

CASES = [("slots", 16, 4000), ("slots", 136, 4000), ("parked", 200, 1000), ("parked", 1000, 1000)]
SYSTEM_TOKENS = 400
VOCABULARY = 150_000


def median_us(work: Callable[[Tokens], object], tokens: Tokens, n: int = 200) -> float:
    times = []
    for _ in range(n):
        began = time.perf_counter()
        work(tokens)
        times.append(time.perf_counter() - began)
    return 1e6 * float(np.median(times))


def main() -> None:
    choose = np.random.default_rng(0)

    def some(n: int) -> Tokens:
        return choose.integers(0, VOCABULARY, n).astype(np.int32)

    print(f"{'':24} {'insert':>8} {'new user':>18} {'next turn':>18}   us, linear -> tree")
    for name, n, length in CASES:
        system = some(SYSTEM_TOKENS)
        sequences = [np.concatenate([system, some(length - SYSTEM_TOKENS)]) for _ in range(n)]
        tree: RadixTree[int] = RadixTree()
        began = time.perf_counter()
        for number, sequence in enumerate(sequences):
            tree.insert(number, sequence)
        insert_us = 1e6 * (time.perf_counter() - began) / n
        linear = partial(_linear, sequences)
        in_tree = partial(_in_tree, tree)
        shown = []
        for wanted in (np.concatenate([system, some(600)]), np.concatenate([sequences[n // 2], some(100)])):
            assert in_tree(wanted) == linear(wanted)
            shown.append(f"{median_us(linear, wanted):8.0f} -> {median_us(in_tree, wanted):6.1f}")
        print(f"{f'{n} {name} of {length} tokens':24} {insert_us:8.1f} {shown[0]:>18} {shown[1]:>18}")


def _linear(sequences: list[Tokens], tokens: Tokens) -> int:
    return max(common_prefix(sequence, tokens) for sequence in sequences)


def _in_tree(tree: RadixTree[int], tokens: Tokens) -> int:
    walk = tree.walk(tokens)
    walk.holder()
    return walk.length


if __name__ == "__main__":
    main()
