"""Figures: percentiles, spreads, bootstrap intervals, ratios within rounds. Pure functions."""

from __future__ import annotations

import math
import shutil
import statistics
import subprocess
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path

N_RESAMPLES = 2000
"""Draws of a bootstrap; the ends of its interval then move by less than the last digit that tables show."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a round: its name in JSON, its head in tables, whether more is better."""

    name: str
    head: str
    digits: int = 0
    more_is_better: bool = False


METRICS = {
    metric.name: metric
    for metric in [
        Metric("tok_s", "tok/s", 1, more_is_better=True),
        *[
            Metric(f"answer_tok_s_p{p}", f"tok/s of an answer p{p}", 1, more_is_better=True)
            for p in (10, 50, 90)  # The slowest tenth is below p10.
        ],
        Metric("requests_s", "requests/s", 2, more_is_better=True),
        Metric("inputs_s", "inputs/s", 1, more_is_better=True),
        *[
            Metric(f"{measure}_p{p}_ms", f"{head} p{p}, ms", digits)
            for measure, head, digits in [("ttft", "TTFT", 0), ("gap", "gap", 1), ("e2e", "end to end", 0)]
            for p in (50, 90, 99)
        ],
        Metric("gap_max_ms", "longest gap, ms", 0),
        Metric("prompt_tokens", "prompt tokens"),
        Metric("cached_tokens", "of them cached", more_is_better=True),
        Metric("output_tokens", "answer tokens"),
        Metric("accepted_tokens", "accepted guesses", 1, more_is_better=True),
        Metric("rejected_tokens", "rejected guesses", 1),
    ]
}


def percentile(values: SequenceOf[float], p: float) -> float:
    """Return the p-th percentile (0 to 100), linear between neighbours; nan of none.

    Hyndman and Fan's type 7, numpy's default.
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    at = (len(ordered) - 1) * p / 100
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over rounds, a bootstrap 95 % interval of it, and the smallest and largest round."""

    median: float
    low: float
    high: float
    smallest: float
    largest: float
    values: tuple[float, ...]


def spread(values: SequenceOf[float], seed: int = 0) -> Spread:
    """Return the spread of one value a round; rounds without a value (nan) are left out."""
    known = tuple(value for value in values if not math.isnan(value))
    if not known:
        return Spread(math.nan, math.nan, math.nan, math.nan, math.nan, ())
    low, high = bootstrap_interval(known, seed)
    return Spread(statistics.median(known), low, high, min(known), max(known), known)


def bootstrap_interval(values: SequenceOf[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the median (Efron 1979): rounds drawn with replacement."""
    import numpy as np

    sample = np.asarray(values)
    drawn = np.random.default_rng(seed).integers(0, len(sample), size=(N_RESAMPLES, len(sample)))
    medians = np.median(sample[drawn], axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratios(ours: SequenceOf[float], theirs: SequenceOf[float]) -> list[float]:
    """Return ours / theirs round by round, so that the machine's drift cancels out; nan where there is none."""
    return [a / b if b else math.nan for a, b in zip(ours, theirs, strict=True)]


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB of 2^20 bytes, from Linux's /proc; nan where it cannot be read."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return math.nan
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else math.nan


def device_mb(pid: int) -> float:
    """Return the memory of a process on NVIDIA devices in MB of 2^20 bytes; nan where nvidia-smi does not tell.

    (In a container it may list processes by other numbers.)
    """
    tool = shutil.which("nvidia-smi")
    if not tool:
        return math.nan
    command = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return math.nan
    rows = [line.split(",") for line in listed.splitlines()]
    used = [row[1].strip() for row in rows if len(row) == 2 and row[0].strip() == str(pid)]
    return float(sum(int(mb) for mb in used)) if used and all(mb.isdigit() for mb in used) else math.nan
