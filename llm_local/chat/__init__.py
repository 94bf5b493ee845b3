"""Messages to prompt text. Knows templates, not HTTP and not tokens."""
