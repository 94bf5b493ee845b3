"""llm_local: one Python process that serves a GGUF model over the OpenAI API."""

__version__ = "0.1.0"
