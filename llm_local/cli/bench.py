"""`llm-local bench`: load OpenAI servers side by side, print tables, write JSON and a report."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llm_local.bench.extra import need
from llm_local.bench.options import Options, parse_servers
from llm_local.bench.run import Findings
from llm_local.bench.verdict import PROFILES, Profile, find_profile, verdict
from llm_local.errors import StartupError

T = TypeVar("T")

EXIT_INTERRUPTED = 130
EXAMPLES = """examples:
  llm-local bench http://127.0.0.1:8080
  llm-local bench ours=http://127.0.0.1:8080@PID peer=http://127.0.0.1:8081@PID --clients 1,4,8 --json out.json
  llm-local bench ours=http://127.0.0.1:8080 peer=http://127.0.0.1:8081 --workload cold-system,schema,interrupt
  llm-local bench --synthetic qwen2.5-7b-q5_k_m --vocabulary qwen2.5-0.5b.gguf --out 7b.gguf
  llm-local bench ours=http://127.0.0.1:8080 --rate 0.5,1,2 --seconds 60 --report report/ --profile rtx-3060
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `bench`."""
    from llm_local.bench.workloads import WORKLOADS

    known = "\n".join(f"  {workload.name:14} {workload.about}" for workload in WORKLOADS.values())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"workloads:\n{known}\n\n{EXAMPLES}"
    _add_load(parser.add_argument)
    _add_requests(parser.add_argument)
    _add_results(parser.add_argument)


def _add_load(add: Callable[..., Any]) -> None:
    add("servers", nargs="*", metavar="NAME=URL[@PID]", help="base URLs; the first is compared with the others")
    add("--workload", type=_words, default=("chat",), metavar="NAME,...", help="what is asked for [chat]")
    add("--clients", type=_list_of(_count), default=(), metavar="N,...", help="closed loop: clients at once")
    add("--rate", type=_list_of(_positive), default=(), metavar="R,...", help="open loop: arrivals a second (Poisson)")
    add("--rounds", type=_count, default=5, metavar="N", help="rounds of each server [5]")
    add("--requests", type=_count, metavar="N", help="requests a client and round; with --rate: arrivals a round [20]")
    add(
        "--seconds",
        type=_positive,
        metavar="S",
        help="instead of --requests: how long a round sends new requests (not where requests meet)",
    )
    add("--leave", type=_share, default=0.0, metavar="SHARE", help="of clients that leave in mid-answer, 0 to 1 [0]")
    add("--timeout", type=_positive, default=300.0, metavar="S", help="the longest wait for one answer [300]")
    add("--seed", type=_whole, default=0, metavar="N", help="of texts, arrivals and intervals [0]")


def _add_requests(add: Callable[..., Any]) -> None:
    add("--max-tokens", type=_count, default=64, metavar="N", help="tokens of an answer, about [64]")
    add("--prompt-tokens", type=_count, metavar="N", help="length of the long part of a prompt [by workload]")
    add("--temperature", type=float, metavar="T", help="0 is greedy [0.7; rewrite 0]")
    add("--turns", type=_count, default=4, metavar="N", help="of a conversation in multi-turn [4]")
    add("--batch", type=_count, default=32, metavar="N", help="texts in a request of embeddings [32]")
    add("--prediction", action="store_true", help="rewrite: send the expected answer as OpenAI's 'prediction'")
    add("--plain-openai", action="store_true", help="send only OpenAI's own fields")
    add(
        "--extra",
        type=_extra,
        action="append",
        default=[],
        metavar="[NAME:]JSON",
        help="fields added to the requests of a server, or of all",
    )
    add("--model", metavar="ID", help="what requests ask for [the first that the server lists]")
    add("--api-key", metavar="KEY", help="sent to every server")


def _add_results(add: Callable[..., Any]) -> None:
    add("--json", type=Path, metavar="FILE", help="write everything, down to single answers")
    add("--report", type=Path, metavar="DIR", help="write an HTML page with plots, and the plots as PNG")
    add(
        "--synthetic", metavar="SHAPE", help="write a GGUF of that shape with random weights, such as qwen2.5-7b-q5_k_m"
    )
    add("--vocabulary", type=Path, metavar="GGUF", help="--synthetic: whose tokens and chat template it gets")
    add("--out", type=Path, metavar="GGUF", help="--synthetic: the file to be written")
    add("--profile", metavar="NAME", help=f"hardware whose targets are to be met: {', '.join(PROFILES)}")


def bench(options: argparse.Namespace) -> int:
    """Run what the command line asks for; return the exit code.

    Raises:
        StartupError: it asks for something that does not exist.
    """
    if options.synthetic:
        return _synthesize(options)
    if not options.servers:
        raise StartupError("name at least one server, such as ours=http://127.0.0.1:8080 (see llm-local bench --help)")
    return _load(options)


def _synthesize(given: argparse.Namespace) -> int:
    from llm_local.bench.progress import byte_bar
    from llm_local.bench.shapes import find_shape
    from llm_local.bench.synthetic import synthesize

    shape, mix = find_shape(given.synthetic)
    if not given.vocabulary or not given.out:
        raise StartupError("--synthetic needs --vocabulary GGUF and --out GGUF")
    with byte_bar() as on_bytes:
        size = synthesize(shape, mix, given.vocabulary, given.out, seed=given.seed, on_bytes=on_bytes)
    print(f"{given.out}: {size / 1e9:.2f} GB")
    return 0


def _load(given: argparse.Namespace) -> int:
    from llm_local.bench import document, run

    options = _options(given)
    profile = find_profile(given.profile)
    run.check_workloads(options)
    if given.report:
        need("matplotlib", "--report")
    for folder in filter(None, (given.report, given.json and given.json.parent)):
        _make(folder)
    if given.json:
        document.check(given.json)
    findings = run.Findings()
    progress = _progress()
    complete = interrupted = False
    try:
        asyncio.run(run.run(options, findings, progress))
        complete = True
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.close()
        # Also behind an error: what was found may have taken hours.
        _show(given, options, findings, profile, complete=complete)
    if interrupted:
        print("\ninterrupted: these are the rounds that were complete", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _show(
    given: argparse.Namespace, options: Options, findings: Findings, profile: Profile | None, *, complete: bool
) -> None:
    """Print the tables and the verdict; write the files that were asked for."""
    from llm_local.bench import document
    from llm_local.bench.table import as_text, of_checks, tables

    checks = verdict(findings, profile)
    whole = document.document(findings, options, checks, complete=complete)
    try:
        # An earlier file is worth more than one without any round.
        if given.json and (complete or any(found.rounds for found in findings.runs)):
            document.write(given.json, whole)
    finally:
        for found in findings.runs:
            if found.rounds:
                print("\n" + "\n\n".join(as_text(table) for table in tables(found)))
        if given.report or profile:
            print("\n" + as_text(of_checks(checks)))
    if given.report:
        from llm_local.bench import report

        print(f"\nreport: {report.write(given.report, findings, whole, checks)}")


def _make(folder: Path) -> None:
    """Make a folder for results before the run: an hour later would be too late to find that it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"cannot make the folder {folder}: {error.strerror}") from None


def _options(given: argparse.Namespace) -> Options:
    if given.rate and given.clients:
        raise StartupError("--clients is the closed loop and --rate the open one: give one of them")
    for option, values in (("--workload", given.workload), ("--clients", given.clients), ("--rate", given.rate)):
        if twice := [value for value, n in Counter(values).items() if n > 1]:
            # The same words would be sent again, to servers that know them by then.
            raise StartupError(f"{option} has {twice[0]} twice: more --rounds tell how much the machine drifts")
    servers = parse_servers(given.servers)
    extra: dict[str, Mapping[str, Any]] = {}
    for name, fields in given.extra:
        if name and name not in [server.name for server in servers]:
            raise StartupError(f"--extra names '{name}', but no server is called that")
        extra[name] = {**extra.get(name, {}), **fields}
    return Options(
        servers=servers,
        workloads=given.workload,
        clients=given.clients,
        rates=given.rate,
        rounds=given.rounds,
        requests=given.requests,
        seconds=given.seconds,
        seed=given.seed,
        nonce=f"{secrets.randbelow(10**6):06d}",
        model=given.model,
        max_tokens=given.max_tokens,
        prompt_tokens=given.prompt_tokens,
        temperature=given.temperature,
        turns=given.turns,
        batch=given.batch,
        prediction=given.prediction,
        plain_openai=given.plain_openai,
        extra=extra,
        leave=given.leave,
        timeout_s=given.timeout,
        api_key=given.api_key,
    )


def _progress() -> Any:
    from llm_local.bench.progress import Bar, Lines

    if not sys.stderr.isatty():
        return Lines()
    try:
        need("tqdm", "the progress bar")
    except StartupError as error:
        print(error, file=sys.stderr)
        return Lines()
    return Bar()


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _list_of(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def read(text: str) -> tuple[T, ...]:
        return tuple(kind(part) for part in _words(text))

    return read


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def _share(text: str) -> float:
    value = 0.0 if text.strip("0.") == "" else _positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return value


def _extra(text: str) -> tuple[str, dict[str, Any]]:
    # A name may have a port in it.
    found = re.fullmatch(r"(?:([^{]*?)\s*:)?\s*(\{.*)", text, re.DOTALL)
    name, fields = (found[1] or "", found[2]) if found else ("", "")
    try:
        value = json.loads(fields)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is not [NAME:]{{JSON fields}}")
    return name, value
