"""From token bytes to text that may be shown: UTF-8 assembly and stop strings. Engine thread, one per sequence."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from llm_local.engine.types import TokenLogprob


class TextStream:
    """Releases text as soon as no later token can take it back.

    A character is released when all its bytes are there; a piece of text is held while it may be the beginning of
    a stop string. `n_released` counts the bytes of the tokens that the released text stands for.

    Attributes:
        stopped_by: the stop string that ended the text.
    """

    def __init__(self, stops: SequenceOf[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self._n_bytes = 0
        self.stopped_by: str | None = None

    @property
    def n_released(self) -> int:
        """Bytes of all pushed pieces that are out, neither held nor waiting for the rest of a character."""
        return self._n_bytes - len(self._decoder.getstate()[0]) - len(self._held.encode())

    def push(self, piece: bytes) -> str:
        """Add a token's bytes and return the text that may be shown now. After a stop nothing comes any more."""
        self._n_bytes += len(piece)
        text = self._decoder.decode(piece)
        return self._release(self._held + text) if self._stops else text

    def flush(self) -> str:
        """Return what was held, at the end of an answer. The bytes of an unfinished character are dropped."""
        if self.stopped_by is not None:
            return ""
        text, self._held = self._held, ""
        return text

    def _release(self, text: str) -> str:
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            # The one that is complete first, so that the answer does not depend on how the text is cut into tokens.
            _, at, self.stopped_by = min(found)
            self._held = text[at:]
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


class LogprobQueue:
    """Holds back the log probabilities of tokens whose text is held back, so that both are released together.

    The bytes of all released tokens join to the UTF-8 of the released text.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._n_bytes = 0

    def push(self, token: TokenLogprob) -> None:
        """Add the token that was given to the text stream just now."""
        self._n_bytes += len(token.piece)
        self._waiting.append((self._n_bytes, token))

    def release(self, n_released: int, *, last: bool = False) -> tuple[TokenLogprob, ...]:
        """Return the tokens that lie wholly in the first `n_released` bytes; the last time also the part of one."""
        out: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][0] <= n_released:
            out.append(self._waiting.popleft()[1])
        if last and self._waiting:
            end, token = self._waiting[0]
            kept = n_released - (end - len(token.piece))
            if kept > 0:
                out.append(replace(token, piece=token.piece[:kept]))
        return tuple(out)
