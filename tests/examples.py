"""How many examples a test draws: few in `make fast`, more in all tests, many with LLM_LOCAL_TEST_THOROUGH=1."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TIMES = 10 if os.environ.get("LLM_LOCAL_TEST_THOROUGH") else 1
FEWER = 5
"""By how much Hypothesis's profile `fast`, which is that of `make fast`, divides the examples of a test."""


def few(n: int, fast: int = 1) -> int:
    """`n` draws; in `make fast` a fifth of them and at least `fast`, or ten times as many when tests are thorough."""
    return max(-(-n // FEWER), fast) if settings.get_current_profile_name() == "fast" else n * TIMES


def examples(n: int) -> settings:
    """Hypothesis's settings for `n` examples, the same in each run."""
    return settings(
        max_examples=few(n),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def seeds(n: int, fast: int = 2) -> list[Any]:
    """Seeds of a test that draws by itself: `fast` of them for `make fast`, `n` for all tests, or ten times as many."""
    return [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= fast)) for seed in range(n * TIMES)]


def rest_is_slow(cases: list[Any], fast: int = 1) -> list[Any]:
    """The cases of a test that takes long in each of them, of which `make fast` runs the first `fast`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=[pytest.mark.slow] * (at >= fast))
        for at, case in enumerate(cases)
    ]
