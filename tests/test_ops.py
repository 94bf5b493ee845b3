"""What is in `ops/` and docs/metrics.md is about metrics that exist, and Prometheus' own tools find it right."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import serving

ROOT = Path(__file__).parent.parent
ALERTS, ALERTS_TEST, DASHBOARD = (
    ROOT / "ops" / name for name in ("alerts.yml", "alerts_test.yml", "grafana-dashboard.json")
)
DOCUMENT = ROOT / "docs" / "metrics.md"
MADE_BY_PROMETHEUS = {"up"}
CHAT = "/v1/chat/completions"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


@pytest.fixture(scope="module")
def families() -> list[Metric]:
    """All families of a server that has answered, refused and embedded, so that each has its labels."""
    with serving(join=True) as served, httpx.Client(base_url=served.url) as http:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "guided_choice": ["a", "b"]}
        http.post(CHAT, json={**body, "stream": True})
        http.post("/v1/embeddings", json={"input": "x"})
        http.get("/nowhere")
        return list(text_string_to_metric_families(http.get("/metrics").text))


@pytest.fixture(scope="module")
def samples(families: list[Metric]) -> dict[str, set[str]]:
    """Names of labels by name of the sample."""
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def alert_expressions() -> list[str]:
    text = re.sub(r"expr: >\n", "expr: ", ALERTS.read_text())
    return re.findall(r"expr: (.*?)\n +(?:for|labels):", text, re.DOTALL)


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:llm_local_\w+|process_\w+|up)\b", re.sub(r'"[^"]*"', "", expression)))


def test_dashboard_and_alerts_ask_for_metrics_that_there_are(samples: dict[str, set[str]]) -> None:
    assert len(alert_expressions()) == ALERTS.read_text().count("alert:")
    for expression in [*dashboard_expressions(), *alert_expressions()]:
        names = names_in(expression)
        assert names, expression
        assert names <= set(samples) | MADE_BY_PROMETHEUS, expression
        for name, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
            wanted = set(re.findall(r"(\w+)=?[!=~]", selector)) - {"job", "instance"}
            assert wanted <= samples.get(name, set()), expression
        for group in re.findall(r"by \(([^)]*)\)", expression):
            known = {"job", "instance"}.union(*(samples.get(name, set()) for name in names))
            assert {label.strip() for label in group.split(",")} <= known, expression


def test_everything_that_is_measured_is_on_the_dashboard(families: list[Metric]) -> None:
    shown = set().union(*(names_in(expression) for expression in dashboard_expressions()))
    missing = [
        family.name
        for family in families
        if family.name.startswith("llm_local_")
        and not shown & {f"{family.name}{suffix}" for suffix in ("", "_total", "_bucket")}
    ]
    assert missing == ["llm_local_model_window_tokens"]


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert {"title", "uid", "schemaVersion", "templating", "panels"} <= set(dashboard)
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "job", "instance"]
    idents = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(idents)) == len(idents)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        for expression in (target["expr"] for target in panel["targets"]):
            assert 'job=~"$job",instance=~"$instance"' in expression


@pytest.mark.slow
@needs_promtool
def test_promtool_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(dashboard_expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML, too.
    promtool("check", "rules", str(file))


@pytest.mark.slow
@needs_promtool
def test_promtool_finds_the_alerts_right_and_their_tests_pass() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(ALERTS_TEST))


def test_every_alert_has_a_test_and_says_what_to_do() -> None:
    text, tests = ALERTS.read_text(), ALERTS_TEST.read_text()
    alerts = re.findall(r"alert: (\w+)", text)
    assert len(alerts) == text.count("summary:") == text.count("description:") == text.count("severity:") > 8
    assert [name for name in alerts if f"alertname: {name}\n" not in tests] == []


def test_the_document_has_each_metric_with_its_type_labels_and_meaning(families: list[Metric]) -> None:
    # (The rows of the process are there on Linux only.)
    expected = {row(family) for family in families}
    written = {line for line in DOCUMENT.read_text().splitlines() if line.startswith(("| `llm_", "| `proc", "| `pyth"))}
    others = {line for line in written if not line.startswith("| `llm_local_")}
    assert written == expected | others, "in one only:\n" + "\n".join(sorted(written ^ expected))


def row(family: Metric) -> str:
    labels = sorted(set().union(*(sample.labels for sample in family.samples)) - {"le"})
    shown = ", ".join(f"`{label}`" for label in labels)
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
