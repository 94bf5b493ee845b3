"""OpenAI's API over HTTP. The only importer of fastapi; knows the engine's types, and nothing of llama.cpp."""
