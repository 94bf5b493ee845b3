"""Log probabilities: log softmax of the logits over the vocabulary, before penalties and truncation. Engine thread."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llm_local.engine.backend import Backend, Logits
from llm_local.engine.batch import Part
from llm_local.engine.sequence import Sequence
from llm_local.engine.types import Token, TokenLogprob


def token_logprob(backend: Backend, row: int, token: Token, n_top: int) -> TokenLogprob:
    """Return the log probability of `token` after output row `row`, with the `n_top` likeliest alternatives."""
    logits = backend.logits(row)
    normalizer = log_sum_exp(logits)
    top = tuple(
        (int(other), backend.piece(int(other)), float(logits[other] - normalizer)) for other in _largest(logits, n_top)
    )
    return TokenLogprob(token, backend.piece(token), float(logits[token] - normalizer), top)


def prompt_logprobs(sequence: Sequence, part: Part, backend: Backend) -> None:
    """Record the log probability of each prompt token that the part's rows predict."""
    n_top = sequence.request.params.logprobs or 0
    first_position = part.start
    if first_position == 0:
        token = int(sequence.tokens[0])
        sequence.prompt_logprobs[0] = TokenLogprob(token, backend.prompt_piece(token), None)
    for row in range(part.first, part.first + part.n_rows):
        position = first_position + row - part.first + 1
        if position < sequence.n_prompt:
            token = int(sequence.tokens[position])
            entry = token_logprob(backend, row, token, n_top)
            sequence.prompt_logprobs[position] = replace(entry, piece=backend.prompt_piece(token))


def log_sum_exp(logits: Logits) -> float:
    """Return log(sum(exp(logits))) without overflow."""
    largest = float(logits.max())
    return largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def _largest(logits: Logits, n: int) -> list[int]:
    if n == 0:
        return []
    candidates = np.argpartition(logits, -n)[-n:]
    return [int(token) for token in candidates[np.argsort(-logits[candidates], kind="stable")]]
