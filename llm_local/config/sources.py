"""Sources of settings: reads a TOML file and the environment, merges them with the flags, and says what is wrong."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_local.address import shown
from llm_local.config.environment import ENV_PREFIX, clean, settings_in
from llm_local.config.settings import Settings
from llm_local.errors import StartupError

OPENAI_VARIABLES = {"upstream_url": "OPENAI_BASE_URL", "upstream_api_key": "OPENAI_API_KEY"}
"""Where the settings of an upstream are looked for when nothing else gives them: what OpenAI's own client reads."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and, for each of them, where the value came from."""

    settings: Settings
    sources: Mapping[str, str]


def load(flags: Mapping[str, str | None], environment: Mapping[str, str], config_file: Path | None = None) -> Loaded:
    """Merge all sources.

    Args:
        flags: values from the command line by field name; None was not given.
        environment: usually `os.environ`.
        config_file: TOML; also named by LLM_CONFIG.

    Raises:
        StartupError: an unknown name, a wrong value or an unreadable file, said in one line.
    """
    values: dict[str, Any] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    if config_file is None and (named := clean(environment.get("LLM_CONFIG", ""))):
        config_file = Path(named)
    layers = [
        *([(str(config_file), _from_toml(config_file))] if config_file is not None else []),
        ("environment", _from_environment(environment)),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ]
    for source, layer in layers:
        for name, value in layer.items():
            values[name], sources[name] = value, source
    if str(values.get("engine", "")).lower() == "openai_compatible":
        for name, variable in OPENAI_VARIABLES.items():
            if not values.get(name) and (value := clean(environment.get(variable, ""))):
                values[name], sources[name] = value, variable
    try:
        return Loaded(Settings.model_validate(values), sources)
    except ValidationError as error:
        raise StartupError(_explain(error, values, sources)) from None


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise StartupError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{path} is not valid TOML: {error}") from None
    for name in values:
        _check_known(name, str(path), name)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, value in settings_in(environment):
        name = variable.removeprefix(ENV_PREFIX).lower()
        _check_known(name, "environment", variable)
        if value:
            found[name] = value
    return found


def _check_known(name: str, source: str, shown: str) -> None:
    if name in Settings.model_fields:
        return
    near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.0)[0]
    if source == "environment":
        near = variable_name(near)
    raise StartupError(f"unknown setting {shown} ({source}); the nearest is {near}. See `llm-local config`.")


def _explain(error: ValidationError, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    first, *others = error.errors()
    reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    # A field of several kinds, such as `auto` or a number, has an error for each of them.
    kinds = [other["msg"].removeprefix("Input should be ") for other in others if other["loc"][:1] == first["loc"][:1]]
    reason = " or ".join(dict.fromkeys([reason, *kinds]))
    if not first["loc"]:
        return f"bad configuration: {reason}"
    name = str(first["loc"][0])
    given = values.get(name)
    text = repr(shown(given) if isinstance(given, str) and "://" in given else given)
    value = text if Settings.model_fields[name].repr else "(hidden)"
    source = sources.get(name, "default")
    hint = ""
    if source == "environment" and " #" in value:
        hint = "; a comment needs a line of its own in an environment file"
    typed = {"environment": variable_name, "flag": flag_name}.get(source, str)(name)
    return f"bad value for {typed} ({source}): {value}: {reason}{hint}"


def variable_name(name: str) -> str:
    """Return the environment variable of a field."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")
