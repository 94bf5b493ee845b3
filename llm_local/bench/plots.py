"""Plots of a run: one picture for each workload. Needs matplotlib, of the `bench` extra."""

from __future__ import annotations

import io
import math
from typing import Any

from llm_local.bench.measure import METRICS
from llm_local.bench.result import ALL, Run

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which people who see fewer colours can tell apart."""
PANELS_A_ROW = 3


def pictures(runs: list[Run]) -> dict[str, bytes]:
    """Return a PNG for each workload, by its name."""
    return {name: _picture(name, [run for run in runs if run.workload.name == name]) for name in _names(runs)}


def _names(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(run.workload.name for run in runs if run.rounds))


def _picture(name: str, runs: list[Run]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = [run for run in runs if run.rounds]
    panels = [metric for metric in runs[0].workload.columns if _has_values(runs, metric)]
    columns, rows = min(len(panels), PANELS_A_ROW) or 1, math.ceil(len(panels) / PANELS_A_ROW) or 1
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{name}: median over rounds; bars from the smallest to the largest")
    for number, metric in enumerate(panels):
        _panel(figure.add_subplot(rows, columns, number + 1), runs, metric)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _has_values(runs: list[Run], metric: str) -> bool:
    return any(
        run.spread(server, group, metric).values for run in runs for server in run.servers for group in run.groups
    )


def _panel(axes: Any, runs: list[Run], metric: str) -> None:
    """Draw one metric: a group of bars for each load and group of answers, one bar a server."""
    spots = [(run, group) for run in runs for group in run.groups if group != ALL or len(run.groups) == 1]
    servers = runs[0].servers
    width = 0.8 / len(servers)
    for index, server in enumerate(servers):
        found = [run.spread(server, group, metric) for run, group in spots]
        at = [spot + (index - (len(servers) - 1) / 2) * width for spot in range(len(spots))]
        heights = [0.0 if math.isnan(spread.median) else spread.median for spread in found]
        ends = [
            [0.0 if math.isnan(spread.median) else spread.median - spread.smallest for spread in found],
            [0.0 if math.isnan(spread.median) else spread.largest - spread.median for spread in found],
        ]
        colour = COLOURS[index % len(COLOURS)]
        axes.bar(at, heights, width * 0.92, yerr=ends, capsize=3, color=colour, label=server, error_kw={"lw": 1})
    several = len(runs[0].groups) > 1
    labels = [f"{run.load.label}\n{group}" if several else run.load.label for run, group in spots]
    axes.set_xticks(range(len(spots)), labels, fontsize=8, rotation=30 if len(spots) > 5 else 0)
    better = "more is better" if METRICS[metric].more_is_better else "less is better"
    axes.set_title(f"{METRICS[metric].head} ({better})", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(servers) > 1:
        axes.legend(fontsize=8)
