"""From findings to a verdict, tables, JSON and a page."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from llm_local.bench.document import document, write
from llm_local.bench.measure import Spread
from llm_local.bench.options import Load, Options, parse_servers
from llm_local.bench.progress import Bar, Lines
from llm_local.bench.result import Round, Run
from llm_local.bench.run import Findings
from llm_local.bench.table import as_text, of_checks, tables
from llm_local.bench.verdict import PROFILES, Check, find_profile, verdict
from llm_local.bench.workloads import WORKLOADS
from llm_local.errors import StartupError


def sample(e2e_s: float, *, n: int = 64, group: str = "", error: str = "") -> dict[str, Any]:
    return {"group": group, "e2e_s": e2e_s, "output_tokens": n, "prompt_tokens": 40, "error": error}


def result(e2e_s: list[float], *, group: str = "", error: str = "", mb: float = math.nan, **figures: float) -> Round:
    samples = [sample(one, group=group) for one in e2e_s] + ([sample(0.1, group=group, error=error)] if error else [])
    errors = {error: 1} if error else {}
    return Round(10.0, {group: figures}, errors, {}, len(samples), 0, mb, 0, samples)


def findings(rounds: list[dict[str, Round]], workload: str = "chat", clients: int = 4, **about: Any) -> Findings:
    servers = tuple(rounds[0])
    run = Run(WORKLOADS[workload], Load(clients=clients), servers, 0, rounds)
    return Findings([run], {name: {"about": about} for name in servers})


def check_of(found: Findings, word: str, profile: str | None = None) -> Check:
    return next(check for check in verdict(found, find_profile(profile)) if word in check.level)


@pytest.mark.parametrize(
    ("times", "error", "passed"),
    [
        ([4.0] * 10, "", True),
        ([4.0] * 8 + [6.0] * 2, "", False),
        ([4.0] * 10, "timeout", False),
        ([], "timeout", False),
    ],
)
def test_four_replies_at_once_have_five_seconds_and_may_not_fail(times: list[float], error: str, passed: bool) -> None:
    found = findings([{"ours": result(times, error=error)}])
    assert check_of(found, "4 at once").passed is passed
    assert check_of(found, "alone").passed is None


def test_only_replies_of_fifty_to_eighty_tokens_count() -> None:
    short = result([4.0])
    short.samples.append(sample(60.0, n=500))
    assert check_of(findings([{"ours": short}]), "4 at once").passed is True


@pytest.mark.parametrize(("times", "passed"), [([1.9], True), ([2.1], False)])
def test_a_backchannel_has_two_seconds(times: list[float], passed: bool) -> None:
    urgent = result(times, group="with priority")
    urgent.samples.append(sample(9.0, group="without"))
    assert check_of(findings([{"ours": urgent}], "backchannel"), "backchannel").passed is passed


@pytest.mark.parametrize(
    ("about", "passed"),
    [({"context_window": 8192}, True), ({"meta": {"n_ctx": 4096}}, False), ({"max_model_len": 9000}, True), ({}, None)],
)
def test_the_window_is_what_the_server_says(about: dict[str, Any], passed: bool | None) -> None:
    assert check_of(findings([{"ours": result([1.0])}], **about), "window").passed is passed


def test_a_window_that_was_used_is_there() -> None:
    used = result([1.0])
    used.samples.append(sample(60.0) | {"prompt_tokens": 8000})
    assert check_of(findings([{"ours": used}]), "window").passed is True


def test_a_profile_holds_its_figures_against_one_client() -> None:
    fast = result([1.0], mb=5000, answer_tok_s_p50=19.2, ttft_p50_ms=330)
    found = findings([{"ours": fast}], clients=1)
    assert [check_of(found, word, "cpu-16").passed for word in ("tok/s", "first token", "GB")] == [True, False, True]
    assert check_of(found, "tok/s", "cpu-16").found == "19.2 tok/s of an unnamed model"
    found.servers["ours"]["model"] = "smollm2"
    assert check_of(found, "tok/s", "cpu-16").found == "19.2 tok/s of smollm2"
    # Device memory does not show in the resident one.
    assert check_of(found, "GB", "rtx-3060").passed is None
    found.servers["ours"]["device_mb"] = 7000.0
    assert check_of(found, "GB", "rtx-3060").passed is False


def test_the_profiles_are_those_of_the_service() -> None:
    assert list(PROFILES) == ["rtx-4090", "rtx-3080", "rtx-3060", "rtx-4060-ti", "cpu-16", "cpu-8"]
    with pytest.raises(StartupError, match="rtx-4090, rtx-3080"):
        find_profile("rtx-9000")


def two_servers(*drifts: float) -> Findings:
    rounds = [
        {"ours": result([1.0], tok_s=20.0 * drift, ttft_p50_ms=10), "<peer>": result([1.0], tok_s=10.0 * drift)}
        for drift in drifts or (1, 5, 3)
    ]
    return findings(rounds)


def test_tables_show_medians_extremes_and_ratios_within_rounds() -> None:
    figures, ratios = tables(two_servers(1, *[3] * 20, 5).runs[0])
    assert figures.head == ("", "tok/s", "TTFT p50, ms")
    # The bootstrap interval would be [60, 60].
    assert figures.rows[0] == ("ours", "60.0 [20.0, 100.0]", "10 [10, 10]")
    assert ratios.rows[0][:2] == ("ours / <peer>", "2.00 [2.00, 2.00] 2.00..2.00")
    assert "4 clients" in as_text(figures).splitlines()[0]


def test_failures_stand_under_the_table() -> None:
    found = findings([{"ours": result([1.0], error="http 429 queue_full", tok_s=1)}])
    found.runs[0].rounds[0]["ours"].n_left = 3
    failed, left = tables(found.runs[0])[0].notes
    assert failed == "ours: 1 of 2 failed: 1 http 429 queue_full"
    assert left.startswith("ours: 3 of 5 were left by their clients")


def whole(found: Findings) -> dict[str, Any]:
    options = Options(servers=parse_servers(["ours=http://x:1", "peer=http://x:2"]), api_key="secret")
    return document(found, options, verdict(found), complete=True)


def test_the_json_has_everything_that_tables_show_and_no_key(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write(path, whole(two_servers()))
    text = path.read_text()
    assert "secret" not in text
    assert "NaN" not in text
    read = json.loads(text)
    assert {"date", "machine", "versions", "arguments", "servers", "verdict", "runs"} <= set(read)
    run = read["runs"][0]
    speed = next(one for one in run["summary"] if (one["server"], one["metric"]) == ("ours", "tok_s"))
    assert (speed["values"], speed["median"]) == ([20, 100, 60], 60)
    ratio = next(one for one in run["ratios"] if one["metric"] == "tok_s")
    assert (ratio["median"], ratio["low"], ratio["high"], ratio["values"]) == (2, 2, 2, [2, 2, 2])
    assert len(run["rounds"]) == 3
    assert run["rounds"][0]["ours"]["samples"][0]["e2e_s"] == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(StartupError, match="cannot write /no/such/folder"):
        write(Path("/no/such/folder/out.json"), {})


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_escapes_what_servers_say(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from llm_local.bench import report

    found = two_servers()
    page = report.write(tmp_path / "report", found, whole(found), verdict(found))
    text = page.read_text()
    links = re.findall(r"(?:src|href|url)\s*[=(]\s*['\"]?([^'\" >)]{1,30})", text)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in text
    assert "<peer>" not in text
    assert "&lt;peer&gt;" in text
    assert "4 at once" in text
    assert (tmp_path / "report" / "chat.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", [Lines, Bar])
def test_progress_says_each_round_and_what_failed(kind: type[Lines]) -> None:
    out = io.StringIO()
    progress = kind(out)
    progress.begin("chat", "4 clients", 2)
    progress.answer()
    progress.round(0, {"ours": result([1.0], tok_s=20.0), "peer": result([], error="timeout")})
    progress.close()
    assert "chat, 4 clients, round 1/2: ours 20.0 tok/s, peer no answer (1 failed)" in out.getvalue()
    assert ("50%" in out.getvalue()) is (kind is Bar)


def test_the_bar_is_drawn_between_rounds_too() -> None:
    out = io.StringIO()
    bar = Bar(out)
    bar.begin("chat", "1 client", 3)
    bar._bar.last_print_t -= 1
    bar.round(0, {"ours": result([1.0])})
    drawn = out.tell()
    bar.answer()
    assert out.tell() == drawn, "twice a second is enough"
    bar._bar.last_print_t -= 1
    bar.answer()
    assert "2 answers" in out.getvalue()[drawn:]
    bar.close()


@pytest.mark.parametrize(("workload", "counts"), [("chat", True), ("embeddings", False)])
def test_only_tokens_of_answers_are_counted_by_chunks(workload: str, counts: bool) -> None:
    silent = result([1.0])
    silent.without_usage = 1
    notes = tables(findings([{"ours": silent}], workload).runs[0])[0].notes
    assert any("gives no usage" in note and ("by chunks" in note) is counts for note in notes)


def test_a_verdict_is_a_table_of_words() -> None:
    text = as_text(of_checks([Check("ours", "a level", "5 s", True), Check("peer", "a level", "6 s", False)]))
    assert "ours  pass" in text
    assert "peer  FAIL" in text


def test_a_run_of_one_round_has_no_interval() -> None:
    run = findings([{"ours": result([1.0], tok_s=20.0), "peer": result([1.0], tok_s=10.0)}]).runs[0]
    assert run.ratio("tok_s", ("ours", ""), ("peer", "")) == Spread(2, 2, 2, 2, 2, (2.0,))
    assert tables(run)[1].rows[0][1] == "2.00"
