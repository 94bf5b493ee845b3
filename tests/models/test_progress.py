"""What is said while a download goes on."""

from __future__ import annotations

import io

import pytest

from llm_local.cli.pull import Bar, Lines
from llm_local.models.progress import Progress, duration, size
from llm_local.models.remote import retry_after_s


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_says_share_rate_and_time_left() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.begin("qwen-q5_k_m", 5_000_000_000, 0)
    for _ in range(10):
        clock.now += 1
        progress.advance(12_000_000)
    assert str(progress) == "downloading 2 % of qwen-q5_k_m (5.0 GB), 12 MB/s, 7 min left"
    progress.say("waiting")
    assert str(progress) == "waiting"


def test_the_rate_is_that_of_the_last_seconds_and_not_of_what_was_there() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.begin("x", 1000, 500)
    for n in [10] * 30 + [1] * 30:
        clock.now += 1
        progress.advance(n)
    assert progress.rate == pytest.approx(1.0)
    progress.advance(-200)
    assert progress.done == 500 + 330 - 200
    assert progress.rate == 0


def test_a_download_of_unknown_size_says_what_came() -> None:
    progress = Progress()
    progress.begin("x", 0, 0)
    progress.advance(2_000_000)
    assert str(progress) == "downloading x, 2.0 MB so far"


def test_lines_come_every_few_seconds_notes_once_and_the_end_always() -> None:
    clock, said = Clock(), list[str]()
    progress = Progress(Lines(said.append, 5.0, clock), clock)
    progress.begin("x", 100, 0)
    for _ in range(10):
        clock.now += 1
        progress.advance(9)
    progress.say("again")
    progress.say("again")
    progress.advance(10)
    assert [line.partition(" of")[0] for line in said] == [
        "downloading 0 %", "downloading 45 %", "downloading 90 %", "again", "downloading 100 %"
    ]  # fmt: skip


def test_the_bar_begins_with_what_was_there_and_shows_a_rate() -> None:
    out = io.StringIO()
    bar = Bar(out)
    progress = Progress(bar)
    progress.begin("qwen", 1_000_000, 400_000)
    progress.advance(600_000)
    progress.say("a note")
    bar.close()
    assert "qwen:  40%" in out.getvalue()
    assert "1.00M/1.00M" in out.getvalue()
    assert "B/s" in out.getvalue()
    assert "a note" in out.getvalue()


def test_sizes_and_times_are_readable() -> None:
    assert [size(n) for n in (999, 12_345, 5_444_831_360, 15_237_853_536)] == ["999 B", "12 kB", "5.4 GB", "15 GB"]
    assert [duration(s) for s in (40, 420, 7800)] == ["40 s", "7 min", "2 h 10 min"]


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s({"retry-after": "17"}) == 17
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None
