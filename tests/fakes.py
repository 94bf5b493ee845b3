"""A backend whose next token is a hash of its KV contents, so that any mistake with the cache changes an answer.

It checks the contract of `engine.backend.Backend` as it goes: positions contiguous per slot, rows <= n_batch,
outputs <= n_outputs, cells <= n_ctx, slots in range, nothing computed twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from functools import lru_cache

import llguidance
import numpy as np

from llm_local.engine.backend import NoRoom
from llm_local.engine.batch import Batch
from llm_local.engine.step_costs import RowCosts
from llm_local.engine.types import SamplingParams
from llm_local.errors import DecodeFailed
from llm_local.structured.grammars import Grammars
from llm_local.structured.guidance import Guidance
from llm_local.structured.native import NativeEngine
from tests.structured.native import FakeNative

END = 256
N_VOCAB = 257


LOGITS = np.random.default_rng(0).normal(size=(4096, N_VOCAB)).astype(np.float32) * 3
LOGITS[:, END] -= 2
LOGITS.setflags(write=False)


def next_logits(history: tuple[int, ...]) -> np.ndarray:
    """Logits that depend on every token of the history."""
    return LOGITS[hash(history) % len(LOGITS)]


def draw(logits: np.ndarray, params: SamplingParams, random: np.random.Generator) -> int:
    """Choose a token: the likeliest at temperature 0, else by chance."""
    logits = logits.astype(np.float64)
    if params.ignore_eos:
        logits[END] = -np.inf
    if params.temperature == 0:
        return int(logits.argmax())
    sums = np.exp(logits - logits.max()).cumsum()
    return int(sums.searchsorted(random.random() * sums[-1], "right"))


class FakeSampler:
    def __init__(self, backend: FakeBackend, params: SamplingParams) -> None:
        self._backend = backend
        self._params = params
        self._random = np.random.default_rng((params.seed or 0) % 2**64)
        self.open = True
        self.slot: int | None = None
        self.freely = False
        backend.samplers.append(self)

    def sample(self, row: int, allowed: np.ndarray | None = None) -> int:
        assert self.open
        logits = self._backend.logits(row)
        if allowed is not None:
            assert allowed.any()
            logits = np.where(allowed, logits, -np.inf)
        return draw(logits, self._params, self._random)

    def enter(self, slot: int, *, freely: bool) -> None:
        assert self.open
        assert self.slot is None, "it left the slot before"
        assert 0 <= slot < self._backend.n_slots
        self.slot, self.freely = slot, freely

    def leave(self) -> None:
        assert self.slot is not None
        self.slot = None

    def accept(self, token: int) -> None:
        assert self.open
        assert 0 <= token < N_VOCAB

    def close(self) -> None:
        self.open = False


class _FakeTokens:
    """The vocabulary as llguidance's own wrapper wants it."""

    eos_token_id = END
    bos_token_id = None
    tokens = [chr(token).encode() for token in range(END)] + [b"\xff<end>"]
    special_token_ids = (END,)

    def __call__(self, text: bytes) -> list[int]:
        return [ord(char) for char in text.decode("utf-8", "replace") if ord(char) < END]


@lru_cache(1)
def _fake_tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_FakeTokens()), slices=[])


def fake_grammars(*, compact: bool = True, close_json: bool = False, engine: str = "llguidance") -> Grammars:
    """Grammars over the fake vocabulary."""
    guidance: Future[Guidance] = Future()
    guidance.set_result(made := Guidance(_fake_tokenizer(), N_VOCAB, compact=compact))
    native = None if engine == "llguidance" else NativeEngine(FakeNative(made), compact=compact)
    return Grammars(
        guidance, lambda token: b"" if token == END else chr(token).encode(), native, engine, close_json=close_json
    )


class FakeBackend:
    """Cells are shared and freed as llama.cpp's unified cache does it: a cell lives as long as a slot owns it."""

    def __init__(self, *, n_ctx: int = 256, n_batch: int = 32, n_slots: int = 8, n_outputs: int = 16) -> None:
        self.n_ctx, self.n_batch, self.n_slots, self.n_outputs = n_ctx, n_batch, n_slots, n_outputs
        self.can_share = True
        self.row_costs = RowCosts()
        self.cell_bytes = 4
        self.cells: list[list[int]] = [[] for _ in range(n_slots)]
        self.owners = Counter[int]()
        self._n_taken = 0
        self.tokens: list[list[int]] = [[] for _ in range(n_slots)]
        self.samplers: list[FakeSampler] = []
        self.rows_computed = 0
        self.batches: list[list[tuple[int, int]]] = []
        self.fail_with: Exception | None = None
        self.fail_after_rows: int | None = None
        self.delay_s = 0.0
        self.fail_load = False
        self.closed = False
        self._logits: dict[int, np.ndarray] = {}
        self.window: int | None = None
        """Sliding window: what slots have left behind by more is forgotten now and then."""
        self.first = [0] * n_slots
        self._random = np.random.default_rng(5)

    @property
    def n_used(self) -> int:
        return len(self.owners)

    def take(self, slot: int, n: int) -> None:
        """Give a slot so many more cells, which nobody has."""
        cells = range(self._n_taken, self._n_taken + n)
        self._n_taken += n
        self._own(slot, cells)

    def _own(self, slot: int, cells: Iterable[int]) -> None:
        self.cells[slot] += cells
        self.owners.update(cells)

    def decode(self, batch: Batch) -> None:
        assert 0 < batch.n_rows <= self.n_batch
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.fail_with is not None:
            error, self.fail_with = self.fail_with, None
            raise error
        if self.n_used + batch.n_rows > self.n_ctx:
            raise NoRoom("full")
        assert int(batch.outputs[: batch.n_rows].sum()) <= self.n_outputs
        self._logits = {}
        for row in range(batch.n_rows):
            if row == self.fail_after_rows:
                # As llama_decode below -1: what was processed so far stays in the native cache.
                self.fail_after_rows = None
                raise DecodeFailed("boom")
            slot, position = int(batch.slots[row]), int(batch.positions[row])
            assert 0 <= slot < self.n_slots
            if position != len(self.tokens[slot]):
                raise AssertionError(f"slot {slot} has {len(self.tokens[slot])} tokens, row is for {position}")
            assert self.holds(slot, position), f"slot {slot} lacks what position {position} looks at"
            self.tokens[slot].append(int(batch.tokens[row]))
            self.take(slot, 1)
            if batch.outputs[row]:
                self._logits[row] = self.next_logits(tuple(self.tokens[slot]))
        self._slide()
        self.rows_computed += batch.n_rows
        self.batches.append([(part.sequence.index, part.n_rows) for part in batch.parts])

    def next_logits(self, history: tuple[int, ...]) -> np.ndarray:
        return next_logits(history)

    def _slide(self) -> None:
        for slot, tokens in enumerate(self.tokens):
            # Guesses may be cut off again.
            behind = len(tokens) - 30 - self.window if self.window else 0
            if behind > self.first[slot] and self._random.random() < 0.3:
                self.first[slot] = behind

    def holds(self, slot: int, length: int) -> bool:
        return self.window is None or not length or self.first[slot] <= max(length - self.window + 1, 0)

    def logits(self, row: int) -> np.ndarray:
        return self._logits[row]

    def trim(self, slot: int, length: int) -> None:
        self.first[slot] = min(self.first[slot], length)
        del self.tokens[slot][length:]
        for cell in self.cells[slot][length:]:
            self.owners[cell] -= 1
            if not self.owners[cell]:
                del self.owners[cell]
        del self.cells[slot][length:]

    def share(self, source: int, target: int, length: int) -> None:
        assert not self.tokens[target], "share needs an empty target"
        assert length <= len(self.tokens[source])
        assert self.holds(source, length), "a sliding window went over what is shared"
        self.first[target] = self.first[source]
        self.tokens[target] = self.tokens[source][:length]
        self._own(target, self.cells[source][:length])

    def save(self, slot: int) -> bytearray:
        whole = self.first[slot] == 0
        return bytearray(np.array(self.tokens[slot], np.int32).tobytes()) if whole else bytearray()

    def load(self, slot: int, data: bytearray) -> bool:
        assert not self.tokens[slot], "load needs an empty slot"
        tokens = np.frombuffer(data, np.int32).tolist()
        assert self.n_used + len(tokens) <= self.n_ctx
        if self.fail_load:
            self.tokens[slot] = [-1]
            self.take(slot, 1)
            return False
        self.tokens[slot] = tokens
        self.take(slot, len(tokens))
        return True

    def new_sampler(self, params: SamplingParams, prompt: tuple[int, ...]) -> FakeSampler:
        return FakeSampler(self, params)

    def piece(self, token: int) -> bytes:
        return b"" if token == END else chr(token).encode()

    def prompt_piece(self, token: int) -> bytes:
        return self.piece(token)

    def is_end(self, token: int) -> bool:
        return token == END

    def close(self) -> None:
        self.closed = True


class FakeDrafter:
    """Guesses what the backend's likeliest next tokens are, and is wrong now and then."""

    def __init__(self, wrong: float = 0.2) -> None:
        self._random = np.random.default_rng(1)
        self._wrong = wrong
        self.closed = False

    def draft(self, wanted: list, n: int) -> list[list[int]]:
        return [self._guess(tuple(int(t) for t in sequence.tokens[: sequence.length]), n) for sequence in wanted]

    def _guess(self, history: tuple[int, ...], n: int) -> list[int]:
        out: list[int] = []
        for _ in range(int(self._random.integers(0, n + 1))):
            token = int(next_logits((*history, *out)).argmax())
            out.append((token + 1) % END if self._random.random() < self._wrong else token)
        return out

    def seconds(self, n_sequences: int) -> float | None:
        return 1e-9

    def close(self) -> None:
        self.closed = True


class ReciteBackend(FakeBackend):
    """Says a text after a prompt, as far as it is let: a constraint that refuses its next token leads it astray."""

    def __init__(self, says: str, after: str = "<|im_start|>assistant\n") -> None:
        super().__init__(n_ctx=8192, n_batch=1024, n_slots=8, n_outputs=40)
        self.says = says
        self._after = after

    def next_logits(self, history: tuple[int, ...]) -> np.ndarray:
        text = "".join(map(chr, history))
        done = len(text) - text.rindex(self._after) - len(self._after)
        logits = np.zeros(N_VOCAB, np.float32)
        logits[ord(self.says[done]) if done < len(self.says) else END] = 50
        return logits


def expected_tokens(prompt: tuple[int, ...], params: SamplingParams, max_tokens: int) -> list[int]:
    """What a sequence must yield, computed without any engine or cache."""
    random, history, out = np.random.default_rng((params.seed or 0) % 2**64), list(prompt), []
    while len(out) < max_tokens:
        token = draw(next_logits(tuple(history)), params, random)
        out.append(token)
        if token == END:
            break
        history.append(token)
    return out


__all__ = ["END", "DecodeFailed", "FakeBackend", "FakeSampler", "expected_tokens", "next_logits"]
