"""The loaded model: weights through `llama_cpp.Llama`, vocabulary, metadata. Tokenizing is safe on any thread."""

from __future__ import annotations

import contextlib
import ctypes
import io
from functools import cached_property
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from llm_local.errors import StartupError
from llm_local.llama.header import check_gguf
from llm_local.llama.logs import native_log

MAY_TAKE_LONG = 65536
"""Characters below which no text takes long to tokenize."""

SPECIAL_TOKENS = ("bos", "eos", "eot", "nl", "fim_pre", "fim_suf", "fim_mid")


class LlamaModel:
    """Weights and vocabulary of one GGUF.

    Args:
        path: the file, or the first of its shards.
        n_gpu_layers: layers to put on the GPU; -1 is all of them.
        mmap: map the file instead of reading it.
        mlock: keep the weights from being swapped out, as far as the system lets this process.

    Raises:
        StartupError: the file is missing, damaged, or of an architecture that llama.cpp does not know.
    """

    def __init__(self, path: Path, *, n_gpu_layers: int = 0, mmap: bool = True, mlock: bool = False) -> None:
        self.path = path
        self.on_gpu = n_gpu_layers != 0
        check_gguf(path)
        native_log.errors.clear()
        try:
            # `Llama` prints metadata and progress to stderr; its own context stays as small as it can be,
            # because sequences live in the backend's context.
            with contextlib.redirect_stderr(io.StringIO()):
                self._llama = llama_cpp.Llama(
                    str(path),
                    n_ctx=64,
                    n_batch=8,
                    n_gpu_layers=n_gpu_layers,
                    use_mmap=mmap,
                    use_mlock=mlock,
                    verbose=True,
                )
        except Exception as error:
            raise StartupError(f"cannot load {path}: {native_log.why(str(error))}") from error
        self.model = self._llama.model
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.metadata: dict[str, str] = dict(self._llama.metadata)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.n_embd: int = llama_cpp.llama_model_n_embd(self.model)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self.model)
        self._pieces: list[bytes | None] = [None] * self.n_vocab

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's architecture, such as `qwen2`."""
        return self.metadata.get("general.architecture", "")

    @property
    def is_recurrent(self) -> bool:
        """Whether its state cannot be cut at a position (Mamba and the like)."""
        return bool(llama_cpp.llama_model_is_recurrent(self.model) or llama_cpp.llama_model_is_hybrid(self.model))

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it (all generative models; not BERT)."""
        return self.metadata.get(f"{self.architecture}.attention.causal", "true") != "false"

    @property
    def can_generate(self) -> bool:
        """Whether it predicts the next token (encoder-decoder and diffusion models work otherwise)."""
        other = llama_cpp.llama_model_has_encoder(self.model) or llama_cpp.llama_model_is_diffusion(self.model)
        return self.is_causal and not other and bool(llama_cpp.llama_model_has_decoder(self.model))

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(llama_cpp.llama_model_size(self.model))

    @cached_property
    def n_params(self) -> int:
        """Number of weights."""
        return int(llama_cpp.llama_model_n_params(self.model))

    @cached_property
    def description(self) -> str:
        """llama.cpp's summary, such as `qwen2 1B Q4_K - Medium`."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.model, buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids of the special tokens that the vocabulary has, by their short names."""
        ids = {name: int(getattr(llama_cpp, f"llama_vocab_{name}")(self.vocab)) for name in SPECIAL_TOKENS}
        return {name: token for name, token in ids.items() if token >= 0}

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.vocab, t))

    @cached_property
    def suppressed_tokens(self) -> tuple[int, ...]:
        """Tokens that the GGUF says must never be sampled."""
        count = ctypes.c_int32(0)
        tokens = llama_cpp.llama_vocab_get_suppress_tokens(self.vocab, ctypes.byref(count))
        return tuple(int(tokens[i]) for i in range(count.value)) if tokens else ()

    @property
    def adds_bos(self) -> bool:
        """Whether a text starts with the BOS token."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab)) and "bos" in self.special

    def special_text(self, name: str) -> str:
        """Return the text of a special token, empty when the vocabulary has none."""
        token = self.special.get(name)
        return "" if token is None else self.piece(token, special=True).decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the GGUF."""
        template = llama_cpp.llama_model_chat_template(self.model, None)
        return template.decode("utf-8", "replace") if template else None

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: any text; lone surrogates are replaced.
            add_special: add BOS (and EOS or SEP) where the model wants them.
            parse_special: read control tokens such as `<|im_end|>` as such.
        """
        data = text.encode("utf-8", "replace")
        n_max = len(data) + 8
        tokens = (llama_cpp.llama_token * n_max)()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, n_max, add_special, parse_special)
        if n < 0:
            n_max = -n
            tokens = (llama_cpp.llama_token * n_max)()
            n = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, n_max, add_special, parse_special)
        if n < 0:
            raise RuntimeError(f"llama_tokenize returned {n} for {len(data)} bytes")
        return tokens[:n]

    def least_tokens(self, text: str) -> int:
        """Return a number of tokens that the text has at the least, without tokenizing it.

        llama.cpp's time to find special tokens grows with the square of their number (32,000 of them take 15 s), so
        that a text which cannot fit is refused before. A text too short to take long gets 0.
        """
        if len(text) < MAY_TAKE_LONG:
            return 0
        return max(len(text.encode("utf-8", "replace")) // self._longest_piece, self.count_special(text))

    def count_special(self, text: str) -> int:
        """Return how many special tokens the text spells out (0 for one too short to matter)."""
        if len(text) < MAY_TAKE_LONG:
            return 0
        return sum(text.count(special) for special in self._special_texts)

    @cached_property
    def _longest_piece(self) -> int:
        return max(len(self.piece(token, special=True)) for token in range(self.n_vocab))

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        """Texts of the tokens that are looked for before the others; none of them contains another."""
        wanted = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        texts = [
            self.piece(token, special=True).decode("utf-8", "replace")
            for token in range(self.n_vocab)
            if llama_cpp.llama_vocab_get_attr(self.vocab, token) & wanted
        ]
        kept = {text for text in texts if len(text) > 1}
        return tuple(text for text in kept if not any(text != other and text in other for other in kept))

    def tokenize_prompt(self, text: str) -> list[int]:
        """Return the token ids of a prompt whose template may have written BOS already: never two of them."""
        bos = self.special_text("bos")
        return self.tokenize(text, add_special=not (bos and text.startswith(bos)))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of a token; control tokens are empty unless `special`."""
        if special:
            return self._piece(token, special=True)
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._piece(token, special=False)
        return piece

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    @cached_property
    def is_silent(self) -> npt.NDArray[np.bool_]:
        """Which tokens [n_vocab] are no text in an answer (control tokens)."""
        return np.array([not self.piece(token) for token in range(self.n_vocab)], np.bool_)

    @cached_property
    def byte_tokens(self) -> dict[bytes, int]:
        """The token of each byte, where the vocabulary has one."""
        return {piece: token for token in range(self.n_vocab) if len(piece := self.piece(token)) == 1}

    def token_bytes(self) -> list[bytes]:
        """Return the bytes of all tokens; those that no text contains (control tokens, `<tool_call>`) begin with 0xFF.

        The mark is llguidance's: a grammar's text cannot match such a token, only its name can.
        """
        control, user = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL, llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        out = []
        for token in range(self.n_vocab):
            piece = self.piece(token) or self.piece(token, special=True)
            attributes = llama_cpp.llama_vocab_get_attr(self.vocab, token)
            named = piece.startswith(b"<") and piece.endswith(b">")
            special = attributes & control or (attributes & user and named)
            out.append(b"\xff" + piece if special else piece)
        return out

    def native_tokenizer(self) -> tuple[int, int]:
        """Return the addresses of the vocabulary and of `llama_tokenize`, for native code that tokenizes."""
        function = llama_cpp.llama_cpp._lib.llama_tokenize
        return int(self.vocab), int(ctypes.cast(function, ctypes.c_void_p).value or 0)

    def detokenize(self, tokens: list[int]) -> str:
        """Return the text of tokens, control tokens included, as llama.cpp's `/detokenize`."""
        return b"".join(self.piece(token, special=True) for token in tokens).decode("utf-8", "replace")

    def close(self) -> None:
        """Free the weights. Contexts over them must be closed before."""
        self._llama.close()
