"""A smaller model of the same vocabulary that writes guesses for a larger one (`LLM_DRAFT_MODEL`). Engine thread.

It follows the large model's slots: what it has of a sequence in slot n is in its own slot n, and catches up by the same
rule, computed with tokens. A prompt is read in pieces, one each time it is asked; until then it guesses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf

import llama_cpp
import numpy as np

from llm_local.engine.backend import NoRoom
from llm_local.engine.batch import Rows
from llm_local.engine.radix_tree import Tokens, common_prefix
from llm_local.engine.sequence import Sequence
from llm_local.engine.step_costs import StepCosts
from llm_local.engine.step_time import StepTime
from llm_local.engine.types import Token
from llm_local.errors import DecodeFailed, StartupError
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.model import LlamaModel

PIECE_ROWS = 64
"""Rows of a sequence that are read before it is guessed for, in one step."""

FIRST_TEXT = 5
"""Tokens before this one may have other texts (llama.cpp allows it): they are control tokens in all vocabularies."""


class LlamaDrafter:
    """`engine.drafts.Drafter` on a second model.

    Args:
        model: the small model; closed with the drafter.
        params: of its context; as many slots and cells as the large model's.
        window: most tokens of one sequence.

    Raises:
        StartupError: there is no memory for the context.
    """

    def __init__(self, model: LlamaModel, params: ContextParams, window: int) -> None:
        self._model = model
        self._backend = LlamaBackend(model, params)
        self._tokens: list[Tokens] = [np.zeros(window, np.int32) for _ in range(params.n_slots)]
        self._lengths = [0] * params.n_slots
        self._rows = Rows(params.n_batch, self._backend.row_costs.tile)
        self._piece = min(PIECE_ROWS, params.n_batch)
        self._window = window
        self._costs = StepCosts(self._backend.row_costs, StepTime())
        for work, seconds in self._backend.warm_up():
            self._costs.step_time.note(work, seconds)

    def seconds(self, positions: SequenceOf[int]) -> float | None:
        """Return the seconds of one drafted token for each sequence; see `Drafter.seconds`."""
        return self._costs.seconds(sum(self._costs.row_work(position) for position in positions))

    def draft(self, wanted: SequenceOf[Sequence], n: int) -> list[list[Token]]:
        """Draft greedily; see `Drafter.draft`."""
        try:
            behind = {sequence.slot: self._align(sequence) for sequence in wanted}
            ready = [sequence for sequence in wanted if behind[sequence.slot] <= self._piece]
            self._read([sequence for sequence in wanted if behind[sequence.slot] > self._piece])
            drafted = self._write(ready, n)
        except (NoRoom, DecodeFailed):
            self._forget_all()
            drafted = {}
        return [drafted.get(sequence.slot, []) for sequence in wanted]

    def _align(self, sequence: Sequence) -> int:
        """Cut the slot to what it has in common with the sequence; return how many tokens it is behind."""
        slot, tokens = sequence.slot, sequence.tokens[: sequence.length]
        common = common_prefix(self._tokens[slot][: self._lengths[slot]], tokens[:-1])
        common = common if self._backend.holds(slot, common) else 0
        self._trim(slot, common)
        if len(tokens) - common > self._piece:
            common = self._share(slot, tokens[:-1], common)
        return len(tokens) - common

    def _share(self, slot: int, tokens: Tokens, common: int) -> int:
        """Take a longer prefix from another slot, if one has it."""
        lengths = [
            common_prefix(have[:length], tokens) for have, length in zip(self._tokens, self._lengths, strict=True)
        ]
        best = int(np.argmax(lengths))
        if best == slot or lengths[best] <= common or not self._backend.holds(best, lengths[best]):
            return common
        self._trim(slot, 0)
        self._backend.share(best, slot, lengths[best])
        self._tokens[slot][: lengths[best]] = tokens[: lengths[best]]
        self._lengths[slot] = lengths[best]
        return lengths[best]

    def _read(self, sequences: list[Sequence]) -> None:
        """Read a piece of the first sequence that has much to catch up."""
        for sequence in sequences[:1]:
            start = self._lengths[sequence.slot]
            self._rows.clear()
            self._add(sequence.slot, sequence.tokens[start : start + self._piece])
            self._decode()

    def _write(self, sequences: list[Sequence], n: int) -> dict[int, list[Token]]:
        """Read what is left of the sequences, and then draft `n` tokens for each, one a decode."""
        drafted: dict[int, list[Token]] = {sequence.slot: [] for sequence in sequences}
        pending = {s.slot: s.tokens[self._lengths[s.slot] : s.length] for s in sequences}
        for _ in range(n):
            last = {}
            self._rows.clear()
            for slot, tokens in pending.items():
                if self._lengths[slot] + len(tokens) >= self._window or self._rows.room < len(tokens):
                    continue
                self._add(slot, tokens)
                last[slot] = self._rows.n_rows - 1
            if not last:
                break
            self._decode()
            pending = {}
            for slot, row in last.items():
                token = int(self._backend.logits(row).argmax())
                drafted[slot].append(token)
                if not self._backend.is_end(token):
                    pending[slot] = np.array([token], np.int32)
        return drafted

    def _add(self, slot: int, tokens: Tokens) -> None:
        start = self._lengths[slot]
        self._rows.extend(tokens, start, slot, first_output=len(tokens) - 1)
        self._tokens[slot][start : start + len(tokens)] = tokens
        self._lengths[slot] = start + len(tokens)

    def _decode(self) -> None:
        began = time.perf_counter()
        self._backend.decode(self._rows)
        self._costs.note(self._rows, time.perf_counter() - began)

    def _trim(self, slot: int, length: int) -> None:
        if length < self._lengths[slot]:
            self._lengths[slot] = length
            self._backend.trim(slot, length)

    def _forget_all(self) -> None:
        """Empty all slots: there is no room, or their contents are not known. They are read again when wanted."""
        for slot in range(len(self._lengths)):
            self._lengths[slot] = 0
            self._backend.trim(slot, 0)

    def close(self) -> None:
        """Free the context and the weights."""
        self._backend.close()
        self._model.close()


def check_same_vocabulary(model: LlamaModel, draft: LlamaModel) -> None:
    """Refuse a draft model whose token ids mean something else.

    Raises:
        StartupError: says where they differ.
    """
    if model.n_vocab != draft.n_vocab:
        raise StartupError(
            f"LLM_DRAFT_MODEL: {draft.path.name} has {draft.n_vocab} tokens and {model.path.name} {model.n_vocab}; a "
            "draft model needs the same vocabulary, as the smaller models of a family have it"
        )
    text = llama_cpp.llama_vocab_get_text
    for token in range(FIRST_TEXT, model.n_vocab):
        if text(model.vocab, token) != text(draft.vocab, token):
            raise StartupError(
                f"LLM_DRAFT_MODEL: token {token} is {text(draft.vocab, token)!r} in {draft.path.name} and "
                f"{text(model.vocab, token)!r} in {model.path.name}; a draft model needs the same vocabulary"
            )
