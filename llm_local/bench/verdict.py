"""Does a server keep the service levels, and what a hardware profile promises? Or how can it be measured?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_local.bench.measure import percentile
from llm_local.bench.result import Run
from llm_local.bench.run import Findings
from llm_local.errors import StartupError

REPLY_TOKENS = (50, 80)
REPLY_S = 5.0
BACKCHANNEL_S = 2.0
"""A backchannel comes within 1 to 2 s."""
AT_ONCE = 4
WINDOW = 8192
TOLERANCE = 0.05
"""A profile's figures are rounded ("about 150"): this much worse still passes."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a kind of hardware promises for Qwen2.5-7B; another model is held against it as it is, and named."""

    name: str
    hardware: str
    file_type: str
    tok_s: float
    """Of one answer, alone."""
    memory_gb: float
    ttft_ms: float


_PROFILES = (
    Profile("rtx-4090", "RTX 4090", "Q5_K_M", 150, 8, 50),
    Profile("rtx-3080", "RTX 3080", "Q5_K_M", 100, 8, 80),
    Profile("rtx-3060", "RTX 3060", "Q4_K_M", 60, 6, 120),
    Profile("rtx-4060-ti", "RTX 4060 Ti", "Q5_K_M", 25, 8, 200),
    Profile("cpu-16", "CPU with 16 cores", "Q5_K_M", 20, 8, 300),
    Profile("cpu-8", "CPU with 8 cores", "Q4_K_M", 15, 6, 400),
)
PROFILES = {profile.name: profile for profile in _PROFILES}


@dataclass(frozen=True, slots=True)
class Check:
    """One level, what was found, and whether it is kept; None: it was not measured."""

    server: str
    level: str
    found: str
    passed: bool | None

    @property
    def word(self) -> str:
        """Pass, fail or not measured."""
        return "not measured" if self.passed is None else "pass" if self.passed else "FAIL"


def find_profile(name: str | None) -> Profile | None:
    """Return the profile of that name.

    Raises:
        StartupError: there is none; the text lists those that there are.
    """
    if name is None:
        return None
    if name not in PROFILES:
        raise StartupError(f"there is no profile '{name}'; there are: {', '.join(PROFILES)}")
    return PROFILES[name]


def verdict(findings: Findings, profile: Profile | None = None) -> list[Check]:
    """Hold what each server did against the service levels, then against the profile if there is one."""
    checks = []
    for server in findings.servers:
        runs = findings.runs
        checks += [_reply(server, runs, 1), _reply(server, runs, AT_ONCE), _backchannel(server, runs)]
        checks.append(_window(server, runs, findings.servers[server].get("about") or {}))
        if profile:
            checks += _of_profile(server, runs, profile, findings.servers[server])
    return checks


def _samples(server: str, runs: list[Run], wanted: Callable[[Run], bool]) -> list[dict[str, Any]]:
    return [s for run in runs if wanted(run) for result in run.of(server) for s in result.samples]


def _chat_of(clients: int) -> Callable[[Run], bool]:
    return lambda run: run.workload.name == "chat" and run.load.clients == clients


def _reply(server: str, runs: list[Run], clients: int) -> Check:
    """A main reply in time: 9 of 10 answers of that length, and none that fails."""
    low, high = REPLY_TOKENS
    who = "alone" if clients == 1 else f"{clients} at once"
    level = f"a reply of {low} to {high} tokens within {REPLY_S:g} s, {who}"
    samples = _samples(server, runs, _chat_of(clients))
    replies = [s["e2e_s"] for s in samples if not s["error"] and low <= s["output_tokens"] <= high]
    how = f"--workload chat --clients {clients} --max-tokens 64"
    return _in_time(server, level, replies, samples, REPLY_S, how)


def _backchannel(server: str, runs: list[Run]) -> Check:
    level = f"a backchannel within 1 to {BACKCHANNEL_S:g} s under load"
    samples = _samples(server, runs, lambda run: run.workload.name == "backchannel")
    urgent = [s for s in samples if s["group"] == "with priority"]
    times = [s["e2e_s"] for s in urgent if not s["error"]]
    return _in_time(server, level, times, urgent, BACKCHANNEL_S, "--workload backchannel")


def _in_time(
    server: str, level: str, times: list[float], samples: list[dict[str, Any]], limit_s: float, how: str
) -> Check:
    n_failed = sum(1 for sample in samples if sample["error"])
    if not times:
        found = f"{n_failed} of {len(samples)} failed" if n_failed else f"measure with {how}"
        return Check(server, level, found, False if n_failed else None)
    p50, p90 = percentile(times, 50), percentile(times, 90)
    found = f"p90 {p90:.2f} s, p50 {p50:.2f} s of {len(times)}" + (f", {n_failed} failed" if n_failed else "")
    return Check(server, level, found, p90 <= limit_s and not n_failed)


def _window(server: str, runs: list[Run], about: dict[str, Any]) -> Check:
    """The window that a server states (llm_local, llama.cpp, vLLM), else the longest sequence that it answered."""
    level = f"a window of {WINDOW} tokens"
    stated = about.get("context_window") or (about.get("meta") or {}).get("n_ctx") or about.get("max_model_len")
    if isinstance(stated, int):
        return Check(server, level, f"says {stated}", stated >= WINDOW)
    fine = [s for s in _samples(server, runs, lambda _: True) if not s["error"]]
    longest = max((s["prompt_tokens"] + s["output_tokens"] for s in fine), default=0)
    if longest >= 0.95 * WINDOW:
        return Check(server, level, f"answered {longest}", True)
    return Check(server, level, f"measure with --workload long-prompt --prompt-tokens {WINDOW - 200}", None)


def _of_profile(server: str, runs: list[Run], profile: Profile, about: dict[str, Any]) -> list[Check]:
    alone = [run for run in runs if _chat_of(1)(run)]
    speed = [run.spread(server, "", "answer_tok_s_p50").median for run in alone]
    first = [run.spread(server, "", "ttft_p50_ms").median for run in alone]
    name = f"{profile.hardware}, {profile.file_type}"
    how = "measure with --workload chat --clients 1"
    tok_s, ttft_ms, gb = profile.tok_s, profile.ttft_ms, profile.memory_gb
    # A smaller model passes easily: which one it was stands beside the figure.
    unit = f"tok/s of {about.get('model') or 'an unnamed model'}"
    return [
        _at_least(server, f"{name}: about {tok_s:g} tok/s", _first(speed), tok_s, unit, how),
        _at_most(server, f"{name}: first token in about {ttft_ms:g} ms", _first(first), ttft_ms, "ms", how),
        _memory(server, runs, f"{name}: {gb:g} GB", profile, about),
    ]


def _memory(server: str, runs: list[Run], level: str, profile: Profile, about: dict[str, Any]) -> Check:
    """On a graphics card the memory of the device, elsewhere the largest resident one."""
    if profile.name.startswith("rtx"):
        used = about.get("device_mb", math.nan) / 1024
        how = "name the server's process, URL@PID, where nvidia-smi lists it"
        return _at_most(server, level, used, profile.memory_gb, "GB on the device", how)
    known = [mb for run in runs for result in run.of(server) if not math.isnan(mb := result.resident_mb)]
    resident = max(known, default=math.nan) / 1024
    return _at_most(server, level, resident, profile.memory_gb, "GB resident", "name the server's process: URL@PID")


def _first(values: list[float]) -> float:
    return values[0] if values else math.nan


def _at_least(server: str, level: str, value: float, target: float, unit: str, how: str) -> Check:
    if math.isnan(value):
        return Check(server, level, how, None)
    return Check(server, level, f"{value:.1f} {unit}", value >= target * (1 - TOLERANCE))


def _at_most(server: str, level: str, value: float, target: float, unit: str, how: str) -> Check:
    if math.isnan(value):
        return Check(server, level, how, None)
    return Check(server, level, f"{value:.1f} {unit}", value <= target * (1 + TOLERANCE))
