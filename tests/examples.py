"""How many examples property tests draw: few by default, ten times as many with `LLM_LOCAL_TEST_THOROUGH=1`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = 10 if os.environ.get("LLM_LOCAL_TEST_THOROUGH") else 1


def examples(n: int) -> settings:
    """Settings for `n` examples, the same in each run; for ten times as many when tests are to be thorough."""
    return settings(max_examples=n * TIMES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
