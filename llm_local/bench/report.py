"""The report for people: PNG pictures, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from llm_local.bench.plots import pictures
from llm_local.bench.run import Findings
from llm_local.bench.table import Table, tables
from llm_local.bench.verdict import Check
from llm_local.errors import StartupError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 14px; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
caption { text-align: left; color: #555; padding-bottom: .3rem; }
.words td, .words th { text-align: left; }
.pass { color: #06683f; } .FAIL { color: #b3261e; font-weight: bold; } .not { color: #666; }
img { max-width: 100%; } code { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
"""


def write(folder: Path, findings: Findings, whole: dict[str, Any], checks: list[Check]) -> Path:
    """Write the pictures and the page into the folder; return where the page is.

    Raises:
        StartupError: the folder cannot be written.
    """
    pngs = pictures(findings.runs)
    page = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in pngs.items():
            (folder / f"{name}.png").write_bytes(png)
        page.write_text(render(findings, whole, checks, pngs), encoding="utf-8")
    except OSError as error:
        raise StartupError(f"cannot write the report into {folder}: {error.strerror}") from None
    return page


def render(findings: Findings, whole: dict[str, Any], checks: list[Check], pngs: dict[str, bytes]) -> str:
    """Return the page: verdict, pictures, tables, and what was measured where."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>llm-local bench</title>",
        f"<style>{STYLE}</style></head><body><h1>llm-local bench</h1>",
        f"<p>{_text(whole['date'])}, {_text(whole['machine']['processor'])}, {whole['machine']['cpus']} CPUs"
        f"{'' if whole['complete'] else ', <strong>interrupted</strong>'}</p>",
        "<h2>Verdict</h2>",
        _verdict(checks),
    ]
    for name in dict.fromkeys(run.workload.name for run in findings.runs if run.rounds):
        runs = [run for run in findings.runs if run.workload.name == name and run.rounds]
        parts += [f"<h2>{_text(name)}</h2><p>{_text(runs[0].workload.about)}</p>", _image(name, pngs[name])]
        parts += [_table(table) for run in runs for table in tables(run)]
    parts += ["<h2>What was measured</h2>", _pairs(whole), "</body></html>"]
    return "\n".join(parts)


def _verdict(checks: list[Check]) -> str:
    rows = "".join(
        f"<tr><td>{_text(check.server)}</td><td>{_text(check.level)}</td>"
        f"<td class='{check.word.split()[0]}'>{check.word}</td><td>{_text(check.found)}</td></tr>"
        for check in checks
    )
    head = "<tr><th>server</th><th>level</th><th>verdict</th><th>found</th></tr>"
    return f"<div class='wide'><table class='words'>{head}{rows}</table></div>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    title = f"<caption>{_text(table.title)}</caption>"
    return f"<div class='wide'><table>{title}<tr>{head}</tr>{rows}</table></div>{notes}"


def _image(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{_text(name)}' src='data:image/png;base64,{data}'>"


def _pairs(whole: dict[str, Any]) -> str:
    shown = [(name, whole[name]) for name in ("machine", "versions", "arguments", "servers", "characters_per_token")]
    rows = [(f"{name}: {key}", value) for name, part in shown for key, value in part.items()]
    cells = "".join(f"<tr><td>{_text(name)}</td><td><code>{_text(value)}</code></td></tr>" for name, value in rows)
    return f"<table class='words'>{cells}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
