"""The command line: thin, one-line errors, exit codes. Nothing heavy is imported before a command needs it."""

from llm_local.cli.main import main

__all__ = ["main"]
