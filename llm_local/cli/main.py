"""`llm-local serve | config | bench`. Exit codes: 0 fine, 1 the server broke, 2 it could not start, 130 interrupted."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence as SequenceOf
from pathlib import Path

from llm_local import __version__, config
from llm_local.cli.bench import add_arguments, bench
from llm_local.errors import StartupError

EXIT_STARTUP = 2
EXIT_INTERRUPTED = 130


def main(arguments: SequenceOf[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(_with_command(sys.argv[1:] if arguments is None else arguments))
    try:
        if options.command == "bench":
            return bench(options)
        flags = {name: getattr(options, name) for name in config.Settings.model_fields}
        loaded = config.load(flags, os.environ, options.config)
        if options.command == "config":
            return show_config(loaded)
        from llm_local.cli.serve import serve

        return serve(loaded.settings)
    except StartupError as error:
        print(f"llm-local: error: {error}", file=sys.stderr)
        return EXIT_STARTUP
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _with_command(arguments: SequenceOf[str]) -> list[str]:
    """Flags without a command are for `serve`: `docker run IMAGE --model X` appends no more than flags."""
    first = arguments[0] if arguments else ""
    is_flag_of_serve = first.startswith("-") and first not in ("-h", "--help", "--version")
    return ["serve", *arguments] if is_flag_of_serve else list(arguments)


def show_config(loaded: config.Loaded) -> int:
    """Print every setting, its value, and where the value came from."""
    rows = []
    for name, field in config.Settings.model_fields.items():
        value = getattr(loaded.settings, name)
        shown = "(hidden)" if not field.repr and value else _shown(value)
        rows.append((name, shown, loaded.sources[name], config.variable_name(name), field.description or ""))
    head = ("setting", "value", "from", "variable", "meaning")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        print("  ".join([*cells, row[4]]))
    return 0


def _shown(value: object) -> str:
    if value is None:
        return "(unset)"
    if isinstance(value, tuple):
        return ",".join(value) or "(unset)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-local", description="Serve a GGUF model over the OpenAI API from one Python process."
    )
    parser.add_argument("--version", action="version", version=f"llm-local {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "serve", "load a model and serve it")
    _add(commands, "config", "print every setting, its value and where it came from")
    text = "load OpenAI servers side by side and compare them"
    add_arguments(
        commands.add_parser(
            "bench", help=text, description="Load OpenAI servers side by side and compare them.", allow_abbrev=False
        )
    )
    return parser


def _add(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str) -> None:
    command = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. A flag beats LLM_* in the environment, that beats the TOML file.",
        allow_abbrev=False,
    )
    command.add_argument("--config", type=Path, metavar="TOML", help="configuration file, such as configs/cpu.toml")
    for field_name, field in config.Settings.model_fields.items():
        default = _shown(field.default)
        command.add_argument(
            config.flag_name(field_name),
            metavar="X",
            dest=field_name,
            help=f"{field.description} [{default}]".replace("%", "%%"),
        )
