"""How many examples property tests draw: few in `make fast`, more in all tests, many with LLM_LOCAL_TEST_THOROUGH=1."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TIMES = 10 if os.environ.get("LLM_LOCAL_TEST_THOROUGH") else 1


def examples(n: int) -> settings:
    """Settings for `n` examples, the same in each run; for ten times as many when tests are to be thorough."""
    return settings(max_examples=n * TIMES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def seeds(n: int, fast: int = 6) -> list[Any]:
    """Seeds of a test that draws by itself: `fast` of them for `make fast`, `n` for all tests, or ten times as many."""
    return [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= fast)) for seed in range(n * TIMES)]
