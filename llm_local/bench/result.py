"""What a run found: figures of each round, spreads over rounds, ratios. Becomes the JSON file as it stands."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_local.bench.client import Answer, Request
from llm_local.bench.measure import METRICS, Spread, percentile, ratios, resident_mb, spread
from llm_local.bench.options import Load, Server
from llm_local.bench.workloads import Workload

Figures = dict[str, float]
ALL = "all"
"""The group of all groups."""


@dataclass(slots=True)
class Round:
    """One server in one round."""

    seconds: float
    groups: dict[str, Figures]
    errors: dict[str, int]
    invalid: dict[str, int]
    n_answers: int
    n_left: int
    """Answers whose client left before their end, as it was to."""
    resident_mb: float
    without_usage: int
    samples: list[dict[str, Any]]
    """Each answer: group, TTFT and end to end in seconds from when it was due, tokens, what went wrong."""


@dataclass(slots=True)
class Run:
    """One workload under one load: its rounds, each by server. A round that was interrupted may lack servers."""

    workload: Workload
    load: Load
    servers: tuple[str, ...]
    seed: int
    rounds: list[dict[str, Round]] = field(default_factory=list)
    cut_short: bool = False
    """The only round there is was interrupted."""

    @property
    def groups(self) -> list[str]:
        """Return the groups in the order in which they came."""
        found = [group for rounds in self.rounds for result in rounds.values() for group in result.groups]
        return list(dict.fromkeys(found))

    def of(self, server: str) -> list[Round]:
        """Return the rounds of a server."""
        return [rounds[server] for rounds in self.rounds if server in rounds]

    def values(self, server: str, group: str, metric: str) -> list[float]:
        """Return a metric of a server, one value a round."""
        of_server = [rounds[server].groups if server in rounds else {} for rounds in self.rounds]
        return [groups.get(group, {}).get(metric, math.nan) for groups in of_server]

    def spread(self, server: str, group: str, metric: str) -> Spread:
        """Return the spread of a metric over the rounds."""
        return spread(self.values(server, group, metric), self.seed)

    def ratio(self, metric: str, a: tuple[str, str], b: tuple[str, str]) -> Spread:
        """Return the spread of a metric's ratio within rounds; `a` and `b` are a server and a group."""
        return spread(ratios(self.values(*a, metric), self.values(*b, metric)), self.seed)

    def comparisons(self) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
        """Return what is divided by what: the first server by each other, and the workload's own contrast."""
        first, *others = self.servers
        pairs = [(first, group, other) for other in others for group in self.groups]
        out = [(_named(f"{a} / {b}", group), (a, group), (b, group)) for a, group, b in pairs]
        contrast = self.workload.contrast
        if contrast and set(contrast) <= set(self.groups):
            up, down = contrast
            out += [(f"{server}: {up} / {down}", (server, up), (server, down)) for server in self.servers]
        return out

    def errors(self, server: str) -> Counter[str]:
        """Return how often what went wrong."""
        return sum((Counter(result.errors) for result in self.of(server)), Counter())

    def invalid(self, server: str) -> Counter[str]:
        """Return how often a complete answer was not what had been asked for."""
        return sum((Counter(result.invalid) for result in self.of(server)), Counter())

    def as_json(self) -> dict[str, Any]:
        """Return everything, raw values and spreads."""
        summary = [
            {"server": server, "group": group, "metric": metric, **asdict(found)}
            for server in self.servers
            for group in self.groups
            for metric in METRICS
            if (found := self.spread(server, group, metric)).values
        ]
        compared = [
            {"ratio": label, "metric": metric, "of": list(a), "to": list(b), **asdict(found)}
            for label, a, b in self.comparisons()
            for metric in METRICS
            if (found := self.ratio(metric, a, b)).values
        ]
        return {
            "workload": self.workload.name,
            "load": asdict(self.load),
            "cut_short": self.cut_short,
            "summary": summary,
            "ratios": compared,
            "errors": {server: dict(self.errors(server)) for server in self.servers},
            "invalid": {server: dict(self.invalid(server)) for server in self.servers},
            "rounds": [{server: asdict(result) for server, result in rounds.items()} for rounds in self.rounds],
        }


def _named(label: str, group: str) -> str:
    return f"{label}, {group}" if group else label


def summarize(server: Server, sent: list[tuple[Request, Answer]], seconds: float, *, together: bool = True) -> Round:
    """Make the figures of a round of its answers; those that were given up at its end count only with their gaps.

    With `together` there is a row for all groups, where there are several.
    """
    _check(sent)
    answers = [answer for _, answer in sent]
    names = list(dict.fromkeys(answer.group for answer in answers))
    groups = {name: _figures([pair for pair in sent if pair[1].group == name], seconds) for name in names}
    if together and len(names) > 1:
        groups[ALL] = _figures(sent, seconds)
    done = [answer for answer in answers if answer.end_s]
    return Round(
        seconds=seconds,
        groups=groups,
        errors=dict(Counter(answer.error for answer in done if answer.error)),
        invalid=dict(Counter(answer.invalid for answer in done if answer.invalid)),
        n_answers=len(done),
        n_left=sum(1 for answer in answers if answer.leave_after is not None and not answer.end_s),
        resident_mb=resident_mb(server.pid) if server.pid else math.nan,
        without_usage=sum(1 for answer in done if not (answer.error or answer.has_usage)),
        samples=[_sample(answer) for answer in done],
    )


def _check(sent: list[tuple[Request, Answer]]) -> None:
    for request, answer in sent:
        if request.check and answer.end_s and not answer.error:
            answer.invalid = "cut by max_tokens" if answer.finish == "length" else request.check(answer.text) or ""


def _figures(sent: list[tuple[Request, Answer]], seconds: float) -> Figures:
    answers = [answer for _, answer in sent]
    fine = [answer for answer in answers if answer.end_s and not answer.error]
    # 0 where all failed, which is a figure; nan where such a thing was not asked for.
    failed = {bool(request.body.get("stream")) for request, answer in sent if answer.error}
    figures = {
        "tok_s": sum(answer.output_tokens for answer in fine) / seconds or (0.0 if True in failed else math.nan),
        "requests_s": len(fine) / seconds,
        "inputs_s": sum(answer.n_inputs for answer in fine) / seconds or (0.0 if False in failed else math.nan),
    }
    first = [answer.first_s - answer.due_s for answer in fine if answer.first_s is not None]
    gaps = [gap for answer in answers if not answer.error for gap in answer.gaps]
    whole = [answer.end_s - answer.due_s for answer in fine]
    for name, values in [("ttft", first), ("gap", gaps), ("e2e", whole)]:
        for p in (50, 90, 99):
            figures[f"{name}_p{p}_ms"] = percentile(values, p) * 1e3
    speeds = [answer.speed for answer in fine if answer.speed is not None]
    for p in (10, 50, 90):
        figures[f"answer_tok_s_p{p}"] = percentile(speeds, p)
    figures["gap_max_ms"] = max(gaps, default=math.nan) * 1e3
    for name in ("prompt_tokens", "cached_tokens", "output_tokens", "accepted_tokens", "rejected_tokens"):
        counts = [getattr(answer, name) for answer in fine]
        figures[name] = statistics.fmean(counts) if counts else math.nan
    return figures


def _sample(answer: Answer) -> dict[str, Any]:
    first = None if answer.first_s is None else round(answer.first_s - answer.due_s, 5)
    return {
        "group": answer.group,
        "ttft_s": first,
        "e2e_s": round(answer.end_s - answer.due_s, 5),
        "chunks": len(answer.chunk_times),
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "output_tokens": answer.output_tokens,
        "tok_s": None if answer.speed is None else round(answer.speed, 3),
        "finish": answer.finish,
        "error": answer.error,
        "invalid": answer.invalid,
    }
