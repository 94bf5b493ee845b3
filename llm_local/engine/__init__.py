"""Tokens in, text out: continuous batching over a `Backend`, on one thread. Imports neither HTTP nor llama_cpp."""
