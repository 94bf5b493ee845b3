"""Threads make way for other processes. (No model; it stands here because llama_cpp is imported.)"""

from __future__ import annotations

import pytest

from llm_local.llama import threads
from llm_local.llama.threads import ThreadGovernor

pytestmark = pytest.mark.model


class System:
    """Four CPUs, other processes that want some of them, and threads of ours that work all the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n_cpus: int) -> None:
        self.n_cpus, self.wanted = n_cpus, 0.0
        self.now, self.busy, self.own = 100.0, 0.0, 0.0
        monkeypatch.setattr(threads, "_affinity", lambda: set(range(n_cpus)))
        monkeypatch.setattr(ThreadGovernor, "_busy", lambda _: self.busy)
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(threads.time, "process_time", lambda: self.own)
        self.governor = ThreadGovernor(n_cpus)
        self.governor.look()

    def run(self, seconds: float) -> list[int]:
        """Let time pass in which every running thread gets its fair share; return the threads that were used."""
        used = []
        for _ in range(round(seconds / 0.5)):
            ours = self.governor.current
            share = min(1.0, self.n_cpus / (ours + self.wanted))
            self.now += 0.5
            self.own += 0.5 * ours * share
            self.busy += 0.5 * min(self.n_cpus, (ours + self.wanted) * share)
            used.append(self.governor.look())
        return used


def test_a_thread_makes_way_for_another_process_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, 4)
    assert system.run(3) == [4] * 6
    system.wanted = 1
    assert system.run(3)[2:] == [3] * 4
    system.wanted = 0.2
    assert system.run(3)[2:] == [4] * 4, "a little is borne"


def test_where_others_want_all_cpus_one_thread_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, 2)
    system.wanted = 3
    assert system.run(10)[2:] == [1] * 18
    system.wanted = 0
    assert system.run(3)[2:] == [2] * 4


def test_after_a_pause_nothing_is_decided_from_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, 4)
    system.now += 60
    system.busy += 200
    assert system.governor.look() == 4


def test_what_others_use_is_read_from_the_system() -> None:
    busy = ThreadGovernor(2)._busy()
    assert busy is None or busy > 0
