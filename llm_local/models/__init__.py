"""Where is the GGUF, and what is it called."""
