"""Figures against known values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from llm_local.bench.measure import bootstrap_interval, device_mb, percentile, ratios, resident_mb, spread


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
    values = list(np.random.default_rng(2).normal(size=40))
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert (low, high) != bootstrap_interval(values, seed=2)
    assert min(values) < low < high < max(values)


def test_a_spread_leaves_out_rounds_without_a_value() -> None:
    found = spread([2.0, math.nan, 4.0, 3.0])
    assert (found.median, found.smallest, found.largest, len(found.values)) == (3, 2, 4, 3)
    assert spread([math.nan]).values == ()


def test_ratios_are_taken_within_rounds() -> None:
    # Both drift by 10 from round to round, and one is always twice the other.
    assert ratios([10, 100, 1000], [5, 50, 500]) == [2, 2, 2]
    assert math.isnan(ratios([1.0], [0.0])[0])


def test_device_memory_is_what_nvidia_smi_lists_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '4711, 5600'\necho '4711, 400'\necho '4712, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_mb(4711) == 6000
    assert math.isnan(device_mb(4712))
    assert math.isnan(device_mb(1))
    monkeypatch.setenv("PATH", "/nowhere")
    assert math.isnan(device_mb(4711))


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert math.isnan(resident_mb(2**22 + 1))
