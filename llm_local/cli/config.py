"""`llm-local config`: every setting with its value and source, or as the page `docs/configuration.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_local import address
from llm_local.config import SECTIONS, Loaded, Section, Settings, flag_name, variable_name

HEAD = """\
# Configuration

<!-- Made from llm_local/config/sections.py by `make docs`; change it there. -->

Defaults < a TOML file (`--config FILE` or `LLM_CONFIG`) < environment < flags. `llm-local config` prints the value of
each setting and where it came from. `configs/` has files for some machines, and `env.example` for the environment.

- An empty variable is the same as none. Spaces and one pair of quotes around a value, which `docker run --env-file`
  keeps, are not part of it. A comment needs a line of its own.
- true, yes, on and 1 are the same, and so are false, no, off and 0. Words such as `auto` may be in capitals.
- An unknown name is refused, in the environment (`LLM_*`), in a file and as a flag, and the nearest one is named.
- `LLM_BASE_URL` and `LLM_PROVIDER` belong to the client (`llm_local.client`) and are left alone, as is what Kubernetes
  sets for services whose names begin with `llm`.
- With `engine = "openai_compatible"` the settings under {local} change nothing; the start warns of each that is set.
"""


def show_config(loaded: Loaded) -> int:
    """Print every setting, its value, and where the value came from."""
    head = ("setting", "value", "from", "variable", "meaning")
    rows = {section: [_row(name, loaded) for name in section.model_fields] for section in SECTIONS}
    everything = [head, *(row for of_section in rows.values() for row in of_section)]
    widths = [max(len(row[column]) for row in everything) for column in range(4)]
    _print_row(head, widths)
    for section, of_section in rows.items():
        print(f"\n{section.title}")
        for row in of_section:
            _print_row(row, widths)
    return 0


def show_markdown() -> int:
    """Print the page."""
    print(markdown(), end="")
    return 0


def markdown() -> str:
    """Return the page that documents all settings, section by section."""
    *titles, last = [section.title for section in SECTIONS if section.without_upstream]
    head = HEAD.replace("{local}", f"{', '.join(titles)} and {last}")
    return "\n".join([head, *(line for section in SECTIONS for line in _section(section))])


def shown(value: object) -> str:
    """Return a value as one would write it."""
    if value is None:
        return "(unset)"
    if isinstance(value, tuple):
        return ",".join(value) or "(unset)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(name: str, loaded: Loaded) -> tuple[str, ...]:
    field, value = Settings.model_fields[name], getattr(loaded.settings, name)
    text = "(hidden)" if not field.repr and value else shown(value)
    text = address.shown(text) if "://" in text else text
    return name, text, loaded.sources[name], variable_name(name), field.description or ""


def _print_row(row: tuple[str, ...], widths: list[int]) -> None:
    cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
    print("  ".join([*cells, row[4]]))


def _section(section: type[Section]) -> Iterator[str]:
    yield f"## {section.title}"
    yield ""
    yield (section.__doc__ or "").strip()
    yield ""
    yield "| variable | flag | in TOML | default | allowed | meaning |"
    yield "|---|---|---|---|---|---|"
    schemas = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        default = f"`{shown(field.default)}`" if field.default not in (None, ()) else "unset"
        meaning = (field.description or "").replace("|", "\\|") + ("" if field.repr else "; never shown")
        names = f"`{variable_name(name)}` | `{flag_name(name)}` | `{name}`"
        yield f"| {names} | {default} | {_allowed(schemas[name])} | {meaning} |"
    yield ""


def _allowed(schema: dict[str, Any]) -> str:
    """Return the values that a JSON schema of pydantic's allows, in words."""
    if "anyOf" in schema:
        return ", ".join(_allowed(branch) for branch in schema["anyOf"] if branch != {"type": "null"})
    words = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if words:
        return ", ".join(f"`{word}`" for word in words)
    kind = schema["type"]
    if kind in ("integer", "number"):
        return _range(schema)
    return {"boolean": "`true`, `false`", "array": "names, by commas"}.get(
        kind, "a path" if schema.get("format") == "path" else "text"
    )


def _range(schema: dict[str, Any]) -> str:
    least, most, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    if above is not None:
        return f"{kind} above {above:g}" + (f", at most {most:g}" if most is not None else "")
    if least is not None and most is not None:
        return f"{kind}, {least:g} to {most:g}"
    return f"{kind} from {least:g}" if least is not None else kind
