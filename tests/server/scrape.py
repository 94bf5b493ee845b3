"""What `/metrics` says, as numbers."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

Numbers = dict[str, float]


def numbers(http: httpx.Client) -> Numbers:
    """Return value by name, with labels as `name{a="b"}` in alphabetical order, without the prefix `llm_local_`."""
    found = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix("llm_local_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def wait_for(http: httpx.Client, wanted: Callable[[Numbers], bool], timeout_s: float = 5.0) -> Numbers:
    """Scrape until the numbers are as wanted (a request is counted just after its last byte)."""
    end = time.monotonic() + timeout_s
    while not wanted(now := numbers(http)):
        assert time.monotonic() < end, now
        time.sleep(0.01)
    return now
