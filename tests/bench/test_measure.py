"""Figures against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_local.bench.measure import bootstrap_interval, percentile, ratios, resident_mb, spread


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(1).exponential(size=37))
    for p in (0, 1, 50, 90, 99, 100):
        assert percentile(values, p) == pytest.approx(float(np.percentile(values, p)))


def test_a_percentile_of_few_values_lies_between_them() -> None:
    assert percentile([10.0, 20.0], 50) == 15
    assert percentile([7.0], 99) == 7
    assert math.isnan(percentile([], 50))


def test_the_bootstrap_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    samples = random.normal(10, 2, size=(150, 15))
    held = sum(low <= 10 <= high for low, high in (bootstrap_interval(list(s), seed=3) for s in samples))
    assert 0.90 <= held / len(samples) <= 0.99


def test_the_interval_is_the_same_for_the_same_seed_and_lies_within_the_extremes() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 10.0]
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert 1 <= low < 3 < high <= 10


def test_a_spread_leaves_out_rounds_without_a_value() -> None:
    found = spread([2.0, math.nan, 4.0, 3.0])
    assert (found.median, found.smallest, found.largest, len(found.values)) == (3, 2, 4, 3)
    assert spread([math.nan]).values == ()


def test_ratios_are_taken_within_rounds() -> None:
    # Both drift by 10 from round to round, and one is always twice the other.
    assert ratios([10, 100, 1000], [5, 50, 500]) == [2, 2, 2]
    assert math.isnan(ratios([1.0], [0.0])[0])


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert math.isnan(resident_mb(2**22 + 1))
