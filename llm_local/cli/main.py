"""`llm-local serve | pull | models | doctor | config | bench`.

Exit codes: 0 fine, 1 the server broke (doctor: it would not start), 2 it could not start, 128 + the signal's number
when one ended it before it served, or the second one did: 130 is SIGINT, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence as SequenceOf
from pathlib import Path

from llm_local import __version__, config
from llm_local.cli.bench import add_arguments, bench
from llm_local.cli.config import show_config, show_markdown, shown
from llm_local.errors import StartupError

EXIT_STARTUP = 2
EXIT_INTERRUPTED = 130
PULL_SETTINGS = ("models_dir", "model_checksum", "download_timeout", "download_retries")
LIST_SETTINGS = ("models_dir", "ctx", "kv_type")


def main(arguments: SequenceOf[str] | None = None) -> int:
    """Run a command and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # The name of a file may have what an encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(_with_command(sys.argv[1:] if arguments is None else arguments))
    try:
        if options.command == "bench":
            return bench(options)
        if options.command == "config" and options.markdown:
            return show_markdown()
        if options.command == "doctor":
            from llm_local.cli.doctor import doctor

            return doctor(lambda: _settings(options), as_json=options.json)
        loaded = _settings(options)
        if options.command == "config":
            return show_config(loaded)
        if options.command == "pull":
            from llm_local.cli.pull import pull

            return pull(loaded.settings, options.name)
        if options.command == "models":
            from llm_local.models.endpoint import check_endpoint

            check_endpoint()
            from llm_local.cli.models import models

            return models(loaded.settings, as_json=options.json)
        _stop_before_serving(loaded.settings)
        from llm_local.cli.serve import serve

        return serve(loaded.settings)
    except StartupError as error:
        print(f"llm-local: error: {error}", file=sys.stderr)
        return EXIT_STARTUP
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough (`| head`). Nothing of it is left to be written at exit, either.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE


def _settings(options: argparse.Namespace) -> config.Loaded:
    flags = {name: getattr(options, name, None) for name in config.Settings.model_fields}
    return config.load(flags, os.environ, options.config)


def _with_command(arguments: SequenceOf[str]) -> list[str]:
    """Flags without a command are for `serve`: `docker run IMAGE --model X` appends no more than flags."""
    first = arguments[0] if arguments else ""
    is_flag_of_serve = first.startswith("-") and first not in ("-h", "--help", "--version")
    return ["serve", *arguments] if is_flag_of_serve else list(arguments)


def _stop_before_serving(settings: config.Settings) -> None:
    """Let SIGTERM end what comes before the server runs (imports, looking for files) as SIGINT does.

    The first process of a container has no default handlers: there SIGTERM would do nothing.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if settings.api_keys_file is not None or settings.ssl_certfile is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # What it reloads is about to be read.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-local", description="Serve a GGUF model over the OpenAI API from one Python process."
    )
    parser.add_argument("--version", action="version", version=f"llm-local {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "serve", "load a model and serve it")
    config_command = _add(commands, "config", "print every setting, its value and where it came from")
    config_command.add_argument("--markdown", action="store_true", help="print docs/configuration.md instead")
    pulling = _add(commands, "pull", "fetch a model into the models folder", only=PULL_SETTINGS)
    pulling.add_argument("name", metavar="NAME|REPO:FILE|URL", help="what to fetch, such as qwen2.5-7b-instruct-q4_k_m")
    listing = _add(commands, "models", "list the known models, what is on the disk and what fits", only=LIST_SETTINGS)
    listing.add_argument("--json", action="store_true", help="print JSON")
    text = "say whether the server would start here, how the model fits, and what to change"
    _add(commands, "doctor", text).add_argument("--json", action="store_true", help="print everything as JSON")
    text = "load OpenAI servers side by side and compare them"
    add_arguments(
        commands.add_parser(
            "bench", help=text, description="Load OpenAI servers side by side and compare them.", allow_abbrev=False
        )
    )
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    only: SequenceOf[str] | None = None,
) -> argparse.ArgumentParser:
    """Add a command with flags for all settings, or for some."""
    command = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. A flag beats LLM_* in the environment, that beats the TOML file.",
        allow_abbrev=False,
    )
    command.add_argument("--config", type=Path, metavar="TOML", help="configuration file, such as configs/cpu.toml")
    for field_name, field in config.Settings.model_fields.items():
        if only is not None and field_name not in only:
            continue
        default = shown(field.default)
        command.add_argument(
            config.flag_name(field_name),
            metavar="X",
            dest=field_name,
            help=f"{field.description} [{default}]".replace("%", "%%"),
        )
    return command
