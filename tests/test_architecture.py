"""The rules of the design that a machine can check: import directions, docstrings, sizes."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # It parses all files; `make check` runs it.

PACKAGE = Path(__file__).parent.parent / "llm_local"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of the others. `cli` plugs everything together.
ALLOWED = {
    "errors": set(),
    "address": set(),
    "config": {"address", "errors"},
    "engine": {"errors"},
    "llama": {"engine", "errors"},
    "models": {"address", "errors"},
    "chat": {"errors"},
    "structured": {"engine", "errors"},
    "server": {"chat", "structured", "engine", "config", "address", "errors"},
    "client": {"address"},
    "bench": {"errors", "client"},
    "cli": {"bench", "server", "chat", "structured", "engine", "llama", "models", "config", "address", "errors"},
    "__main__": {"cli"},
    "__init__": set(),
}
ONLY_IN = {
    "llama_cpp": "llama",
    "fastapi": "server",
    "starlette": "server",
    "prometheus_client": "server",
    "opentelemetry": "server",
    "huggingface_hub": "models",
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 40


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@cache
def nodes_of(path: Path) -> list[ast.stmt]:
    """Return all statements of a file, without what is in their expressions: that takes as long again."""
    found: list[ast.stmt] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, [])
            if isinstance(inner, list):
                waiting += inner
        if isinstance(node, ast.stmt):
            found.append(node)
    return found


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_go_one_way() -> None:
    wrong = [fault for path in FILES for fault in wrong_imports(path)]
    assert not wrong, "\n".join(wrong)


def wrong_imports(path: Path) -> Iterator[str]:
    part = part_of(path)
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "llm_local" and rest and not rest.startswith("__version__"):
            other = rest.split(".")[0]
            if other != part and other not in ALLOWED[part]:
                yield f"{path.relative_to(PACKAGE)}: {part} must not import {name}"
        if part != ONLY_IN.get(top, part):
            yield f"{path.relative_to(PACKAGE)}: only {ONLY_IN[top]} may import {top}"


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for path in FILES:
        for node in nodes_of(path):
            named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if (
                named
                and not node.name.startswith("_")
                and ast.get_docstring(node) is None
                and node in top_level(path, node)
            ):
                missing.append(f"{path.name}: {node.name}")
    assert not missing


def top_level(path: Path, node: ast.AST) -> list[ast.AST]:
    return [node] if getattr(node, "col_offset", 1) == 0 else []


def test_sizes_are_reported() -> None:
    """Not a limit, but a look: each file is one noun, and what is over says so in the test's output."""
    over = [
        f"{p.relative_to(PACKAGE)}: {n} lines" for p in FILES if (n := len(p.read_text().splitlines())) > MAX_FILE_LINES
    ]
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    over.append(f"{path.relative_to(PACKAGE)}: {node.name} has {lines} lines")
    print("\n".join(["over the aim:", *over]))
    if len(over) > 20:
        warnings.warn("many files and functions are over their size", stacklevel=1)
