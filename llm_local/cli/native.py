"""Whether llama-cpp-python can be used at all: its libraries may be missing, or want a driver that is not there."""

from __future__ import annotations

from llm_local.errors import StartupError


def check_native() -> None:
    """Load the libraries, which takes half a second the first time.

    Raises:
        StartupError: they cannot be loaded.
    """
    try:
        import llm_local.llama.ggml  # noqa: F401
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise StartupError(f"llama-cpp-python does not work here: {error}. Run `make install`") from None
