"""Who may come in, by the queue's limit and by the predicted wait."""

from __future__ import annotations

import time

import pytest

from llm_local.engine.admission import Admission
from llm_local.engine.types import GenerationRequest, SamplingParams, Usage
from llm_local.errors import DeadlineExceeded, QueueFull


def asked(timeout_s: float | None = None, priority: int = 0) -> list[GenerationRequest]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    return [GenerationRequest((1,), SamplingParams(), 1, deadline=deadline, priority=priority)]


def busy(n_open: int, answer_s: float, n_answers: int = 10) -> Admission:
    admission = Admission(max_running=2, queue_max=20)
    for _ in range(n_answers):
        admission.entered(0, 1)
        admission.ended(0, Usage(1, 0, 1, 0.0, answer_s * 250, answer_s * 750))
    admission.entered(0, n_open)
    return admission


def test_a_wait_that_is_longer_than_the_timeout_is_refused_at_once() -> None:
    admission = busy(n_open=9, answer_s=3.0)
    assert admission.predicted_wait_s(0) == pytest.approx(3.0 * 8 / 2)
    with pytest.raises(QueueFull, match="would wait about 12 s for its turn, longer than its timeout of 5 s") as caught:
        admission.check(asked(5.0))
    assert caught.value.retry_after_s in (7, 8)
    admission.check(asked(20.0))
    admission.check(asked())


def test_urgent_requests_wait_only_for_those_that_are_as_urgent() -> None:
    admission = busy(n_open=9, answer_s=3.0)
    admission.check(asked(1.0, priority=-1))
    admission.entered(-1, 4)
    assert admission.predicted_wait_s(-1) == pytest.approx(3.0 * 3 / 2)
    assert admission.predicted_wait_s(0) == pytest.approx(3.0 * 12 / 2)


def test_nothing_is_predicted_from_a_few_answers_or_with_free_places() -> None:
    busy(n_open=9, answer_s=30.0, n_answers=3).check(asked(0.1))
    busy(n_open=1, answer_s=30.0).check(asked(0.1))


def test_a_deadline_that_has_passed_is_no_busy_server() -> None:
    with pytest.raises(DeadlineExceeded):
        busy(n_open=0, answer_s=1.0).check(asked(-0.01))


def test_a_full_queue_is_refused_whatever_the_timeout() -> None:
    admission = busy(n_open=22, answer_s=1.0)
    with pytest.raises(QueueFull, match="22 sequences run or wait, and at most 22 may"):
        admission.check(asked())
    assert admission.n_open == 22
