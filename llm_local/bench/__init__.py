"""The load generator: how fast servers of the OpenAI API are, side by side. Knows HTTP, never the engine."""
