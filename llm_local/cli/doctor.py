"""`llm-local doctor`: what the machine, the build and the model are, what the plan is, and what to change.

It reads headers only: no weights are loaded, and no port stays taken.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_local import __version__
from llm_local.address import shown
from llm_local.cli.advice import Advice
from llm_local.cli.native import check_native
from llm_local.cli.report import LEAST_WIDTH, WIDTH, Report, Section
from llm_local.config import Loaded, Settings
from llm_local.errors import StartupError

EXIT_WOULD_NOT_START = 1

PACKAGES = ("llama-cpp-python", "llguidance", "fastapi", "uvicorn", "pydantic", "huggingface-hub", "numpy")


def doctor(load_settings: Callable[[], Loaded], *, as_json: bool) -> int:
    """Print the report; return 0 when `serve` with the same settings would start, else 1."""
    report = Report()
    try:
        settings = load_settings().settings
    except StartupError as error:
        report.refuse(str(error))
    else:
        examine(settings, report)
    to_people = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if to_people else WIDTH
    text = report.as_text(colour=to_people, width=min(max(columns, LEAST_WIDTH), WIDTH))
    print(json.dumps(report.as_json(), indent=2) if as_json else text)
    return EXIT_WOULD_NOT_START if report.reasons else 0


def examine(settings: Settings, report: Report) -> None:
    """Fill the report. What cannot be found out is said in its place, and the rest goes on."""
    from llm_local.llama import host

    advice = Advice(settings, report)
    _cpu_and_memory(settings, report, advice)
    computes = settings.engine == "llama.cpp"
    files = _files(settings, report, advice) if computes else {}
    try:
        check_native()
    except StartupError as error:
        report.add(Section("build", "Build", [("llama_cpp", "cannot be imported", {"importable": False})]))
        report.refuse(str(error))
    else:
        from llm_local.cli import fit

        machine = fit.read_machine()
        _gpus(report, machine.devices)
        _build(report, advice)
        if files:
            _model_and_plan(settings, files, machine, report, advice)
    if not computes:
        where = shown(settings.upstream_url or "")
        report.add(Section("upstream", "Upstream", [("", f"{where}, which computes", {"url": where})]))
    _server(settings, report, advice)
    _what_is_read(settings, report)
    _disk(settings, report, advice)
    _packages(report)
    advice.about_memory(host.memory())


def _cpu_and_memory(settings: Settings, report: Report, advice: Advice) -> None:
    from llm_local.llama import host

    cpus, memory = host.cpus(), host.memory()
    threads = settings.threads or cpus.usable
    quota = f"a quota of {cpus.quota:.3g}" if cpus.quota is not None else "no quota"
    facts = {"machine": cpus.machine, "affinity": cpus.affinity, "quota": cpus.quota, "usable": cpus.usable}
    limits = f"affinity {cpus.affinity}, {quota}"
    report.add(
        Section(
            "cpu",
            "CPU",
            [
                ("cores", f"{cpus.machine}, of which this process may use {cpus.usable} ({limits})", facts),
                ("threads", f"{threads}", {"threads": threads}),
            ],
        )
    )
    advice.about_cpus(cpus)
    if memory is None:
        report.add(Section("memory", "Memory", [("", "not known on this system", {})]))
        return
    from llm_local.llama.plan import size

    swap = f"{size(memory.swap)} of swap free" if memory.swap else "no swap"
    numbers = {"total_bytes": memory.total, "available_bytes": memory.available, "swap_free_bytes": memory.swap}
    text = f"{size(memory.total)}, {size(memory.available)} free, {swap}"
    report.add(Section("memory", "Memory", [("", text, numbers)]))


def _gpus(report: Report, devices: tuple[Any, ...]) -> None:
    from llm_local.llama.plan import size

    rows = [
        (
            device.name,
            f"{device.description} ({device.backend}), {size(device.total_bytes)}, {size(device.free_bytes)} free"
            + (", shared with the CPU" if device.shares_host else ""),
            {
                device.name: {
                    "description": device.description,
                    "backend": device.backend,
                    "total_bytes": device.total_bytes,
                    "free_bytes": device.free_bytes,
                    "shares_host": device.shares_host,
                }
            },
        )
        for device in devices
    ]
    report.add(Section("gpus", "GPUs", rows or [("", "none that this build can use", {})]))


def _build(report: Report, advice: Advice) -> None:
    from llm_local.llama import build

    sets = build.instruction_sets()
    report.sections["cpu"].rows[:0] = [
        ("model", build.cpu_model(), {"model": build.cpu_model()}),
        ("has", " ".join(sets) or "not known", {"instruction_sets": sets}),
    ]
    backends = build.backends()
    report.add(
        Section(
            "build",
            "Build",
            [
                ("version", f"llama-cpp-python {build.version()}", {"version": build.version()}),
                ("backends", " ".join(backends), {"backends": backends}),
                ("uses", " ".join(sorted(build.built_with())), {"system_info": build.system_info()}),
            ],
        )
    )
    advice.about_build(backends, sets, build.built_with())


def _files(settings: Settings, report: Report, advice: Advice) -> dict[str, Path]:
    """Return the files of the models, or none: one cannot be had, or `serve` has to fetch it first."""
    from llm_local.models.find import find_model

    wanted = {
        "LLM_MODEL": (settings.model if "model" in settings.model_fields_set or not settings.model_url else ""),
        "LLM_EMBEDDING_MODEL": settings.embedding_model if settings.embedding else None,
        "LLM_DRAFT_MODEL": settings.draft_model,
    }
    found: dict[str, Path] = {}
    for setting, name in wanted.items():
        url = settings.model_url if setting == "LLM_MODEL" else None
        if not name and not url:
            continue
        try:
            checksum = settings.model_checksum if setting == "LLM_MODEL" else "sha256:auto"
            file = find_model(name or "", url, settings.models_dir, checksum=checksum, setting=setting)
        except StartupError as error:
            report.refuse(str(error))
            return {}
        if not isinstance(file, Path):
            facts = {"file": None, "fetched_from": str(file)}
            report.add(Section("model", "Model", [("", f"{file} is not here; `serve` fetches it first", facts)]))
            _about_fetching(file, shown(name or str(url)), settings, report, advice)
            return {}
        found[setting] = file
    return found


def _about_fetching(source: Any, name: str, settings: Settings, report: Report, advice: Advice) -> None:
    from llm_local.models.obstacle import obstacle

    why_not = obstacle(source, settings.models_dir)
    if why_not is not None:
        report.refuse(why_not)
    else:
        advice.about_missing(source, name)


def _model_and_plan(settings: Settings, files: dict[str, Path], machine: Any, report: Report, advice: Advice) -> None:
    from llm_local.cli import fit
    from llm_local.cli.doctor_plan import add_model, add_plan

    path = files["LLM_MODEL"]
    try:
        params = fit.context_params(settings, n_pinned=_n_warm_prefixes(settings))
        demand = fit.read_demand(
            fit.Weights(path, files.get("LLM_EMBEDDING_MODEL"), files.get("LLM_DRAFT_MODEL")), settings, params
        )
    except StartupError as error:
        report.refuse(str(error))
        return
    add_model(report, path, demand.models[0].shape, settings)
    add_plan(report, demand, machine, params.n_threads, advice)
    try:
        fit.check(demand, machine)
    except StartupError as error:
        report.refuse(str(error))


def _n_warm_prefixes(settings: Settings) -> int:
    from llm_local.server.warm_prefixes import read_warm_prompts

    return len(read_warm_prompts(settings.warm_prefixes.expanduser())) if settings.warm_prefixes is not None else 0


def _server(settings: Settings, report: Report, advice: Advice) -> None:
    address = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(1)
        free = True
    except (OSError, UnicodeError) as error:
        free = False
        reason = getattr(error, "strerror", None) or error
        report.refuse(f"cannot listen on {address}: {reason}; choose another with --host and --port")
    facts = {"host": settings.host, "port": settings.port, "port_free": free, "keys": len(settings.api_keys)}
    keys = f"{len(settings.api_keys)} keys" if settings.api_keys else "no keys"
    if settings.api_keys_file is not None:
        keys = f"keys in {settings.api_keys_file}"
    report.add(Section("server", "Server", [("", f"{address}, {'free' if free else 'taken'}, {keys}", facts)]))
    advice.about_server()


def _what_is_read(settings: Settings, report: Report) -> None:
    """Look at the files beside the model that `serve` would end at."""
    from llm_local.chat.template import ChatTemplate
    from llm_local.cli.tls import Tls
    from llm_local.server.keys import Keys

    reads: list[Callable[[], object]] = [lambda: Tls.of(settings), lambda: Keys.of(settings)]
    if settings.engine == "llama.cpp" and settings.chat_template is not None:
        reads.append(lambda: ChatTemplate.load(settings.chat_template, None, {}))
    if settings.engine == "llama.cpp" and (cache := settings.disk_cache_dir) is not None:
        reads.append(lambda: _check_cache(cache.expanduser()))
    for read in reads:
        try:
            read()
        except StartupError as error:
            report.refuse(str(error))


def _disk(settings: Settings, report: Report, advice: Advice) -> None:
    from llm_local.llama.plan import size

    folder = settings.models_dir.absolute()
    there = next((f for f in (folder, *folder.parents) if f.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    missing = "" if there == folder else " (does not exist yet)"
    facts = {"models_dir": str(folder), "exists": there == folder, "free_bytes": free}
    report.add(Section("disk", "Disk", [("", f"{folder}{missing}, {size(free)} free", facts)]))
    advice.about_disk(folder, free)


def _check_cache(folder: Path) -> None:
    there = next(f for f in (folder.absolute(), *folder.absolute().parents) if os.path.exists(f))
    if not there.is_dir() or not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise StartupError(f"disk_cache_dir is {folder}, which cannot be read and written")


def _packages(report: Report) -> None:
    versions = {"llm-local": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    report.add(Section("packages", "Packages", [("", text, versions)]))
