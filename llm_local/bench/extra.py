"""The packages of the optional `bench` extra: what is missing is said in one line, before anything is measured."""

from __future__ import annotations

from importlib.util import find_spec

from llm_local.errors import StartupError


def need(package: str, what: str) -> None:
    """Make sure that a package is installed.

    Raises:
        StartupError: it is not; the text says how to get it.
    """
    if find_spec(package) is None:
        raise StartupError(f"{what} needs {package}: pip install 'llm-local[bench]'")
