"""What can be set, and where it is set: defaults < TOML file < environment (`LLM_*`) < flags.

The names in a TOML file are those of the fields, in the environment `LLM_` and the name in capitals, on the command
line `--` and the name with hyphens. Each option is written once, in its section (`sections.py`), of which
`docs/configuration.md` is made (`make docs`).
"""

from llm_local.config.sections import SECTIONS, Section
from llm_local.config.settings import Settings
from llm_local.config.sources import Loaded, flag_name, load, variable_name

__all__ = ["SECTIONS", "Loaded", "Section", "Settings", "flag_name", "load", "variable_name"]
