"""Findings as plain text: one table of figures and one of ratios for each workload and load."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from llm_local.bench.measure import METRICS, Spread, spread
from llm_local.bench.result import Run
from llm_local.bench.verdict import Check

RATIO_DIGITS = 2


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a head, rows of cells; the report and the terminal show the same ones."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: bool = False
    """Its cells are words, not figures."""


def tables(run: Run) -> list[Table]:
    """Return the tables of a run: figures, then ratios where there is something to compare."""
    figures = _figures(run)
    ratios = _ratios(run)
    return [figures, ratios] if ratios.rows else [figures]


def _columns(run: Run) -> list[str]:
    """Return the workload's metrics that have a value."""
    return [
        metric
        for metric in run.workload.columns
        if any(run.spread(server, group, metric).values for server in run.servers for group in run.groups)
    ]


def _figures(run: Run) -> Table:
    columns = _columns(run)
    residents = {name: spread([result.resident_mb for result in run.of(name)]) for name in run.servers}
    shows_memory = any(found.values for found in residents.values())
    rows = []
    for server in run.servers:
        for group in run.groups:
            cells = [_cell(run.spread(server, group, metric), METRICS[metric].digits) for metric in columns]
            memory = [_cell(residents[server], 0)] if shows_memory else []
            rows.append((f"{server}, {group}" if group else server, *cells, *memory))
    head = ("", *[METRICS[metric].head for metric in columns], *(["resident, MB"] if shows_memory else []))
    n = len(run.rounds)
    title = f"{run.workload.name}, {run.load.label}: {n} round{'s' if n != 1 else ''}, median [smallest, largest round]"
    return Table(title, head, tuple(rows), tuple(_notes(run)))


def _notes(run: Run) -> list[str]:
    notes = ["interrupted in its first round"] if run.cut_short else []
    for server in run.servers:
        sent = sum(result.n_answers for result in run.of(server))
        for what, counts in [("failed", run.errors(server)), ("not as asked for", run.invalid(server))]:
            if counts:
                listed = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
                notes.append(f"{server}: {counts.total()} of {sent} {what}: {listed}")
        left = sum(result.n_left for result in run.of(server)) if run.workload.session else 0
        if left:
            notes.append(f"{server}: {left} of {sent + left} were left by their clients, as asked for by --leave")
        if any(result.without_usage for result in run.of(server)):
            counted = ", so its tokens are counted by chunks" if run.workload.name != "embeddings" else ""
            notes.append(f"{server}: gives no usage{counted}")
    return notes


def _ratios(run: Run) -> Table:
    columns = _columns(run)
    rows = [(label, *[_ratio_cell(run.ratio(metric, a, b)) for metric in columns]) for label, a, b in run.comparisons()]
    shown = [row for row in rows if any(row[1:])]
    head = ("", *[METRICS[metric].head.removesuffix(", ms") for metric in columns])
    title = "ratios within rounds: median [bootstrap 95 % interval] smallest..largest"
    return Table(title, head, tuple(shown))


def _cell(found: Spread, digits: int) -> str:
    if not found.values:
        return ""
    middle, low, high = (f"{value:.{digits}f}" for value in (found.median, found.smallest, found.largest))
    return middle if len(found.values) == 1 else f"{middle} [{low}, {high}]"


def _ratio_cell(found: Spread) -> str:
    if not found.values or math.isnan(found.median):
        return ""
    d = RATIO_DIGITS
    if len(found.values) == 1:
        return f"{found.median:.{d}f}"
    return f"{found.median:.{d}f} [{found.low:.{d}f}, {found.high:.{d}f}] {found.smallest:.{d}f}..{found.largest:.{d}f}"


def of_checks(checks: SequenceOf[Check]) -> Table:
    """Return the verdict as a table."""
    rows = [(check.server, check.word, check.level, check.found) for check in checks]
    return Table("verdict against the service levels", ("", "verdict", "level", "found"), tuple(rows), words=True)


def as_text(table: Table) -> str:
    """Lay a table out in columns."""
    widths = [max(len(row[column]) for row in [table.head, *table.rows]) for column in range(len(table.head))]
    lines = []
    for first, *cells in [table.head, *table.rows]:
        padded = [
            cell.ljust(width) if table.words else cell.rjust(width)
            for cell, width in zip(cells, widths[1:], strict=True)
        ]
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join([table.title, *lines, *table.notes])
