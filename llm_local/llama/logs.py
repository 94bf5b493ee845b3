"""Takes llama.cpp's log: to Python's logging, and the last errors kept for the message of a failed start."""

from __future__ import annotations

import ctypes
import logging
from collections import deque

import llama_cpp

log = logging.getLogger("llama.cpp")

_ERROR, _CONTINUE = 4, 5
# ggml's own numbers (ggml.h, enum ggml_log_level)


class NativeLog:
    """Installed once, before anything is loaded; kept alive as long as native code may log."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=20)
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, _user_data: object) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        if level == _ERROR and line:
            self.errors.append(line)
        if level != _CONTINUE and line:
            log.debug("%s", line)

    def why(self, fallback: str) -> str:
        """Return the first of the errors since the last call, as one line."""
        errors, reason = list(self.errors), fallback
        self.errors.clear()
        if errors:
            reason = errors[0].split(": ", 1)[-1]
        return reason


native_log = NativeLog()
