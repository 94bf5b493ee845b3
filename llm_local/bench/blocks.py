"""Blocks of random weights in ggml's quantized types (layouts: `ggml-common.h`), with scales that keep logits sane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIGMA = 0.02
"""Standard deviation of a weight, as models are commonly initialized: logits then have one of about 1."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A block: how many weights and bytes it has, and where its 16-bit scales are.

    Everything else in it is uniformly random: quants, and the 6-bit or 8-bit scales within a super-block.
    """

    n_weights: int
    n_bytes: int
    scale_at: int
    sigma: float
    """Standard deviation of a weight whose scale is 1."""
    minimum_at: int | None = None
    minimum: float = 0.0
    """What the minimum has to be for a mean of 0, in units of the scale."""


# A quant of b bits is uniform on 0 to 2^b - 1: mean (2^b - 1) / 2, variance (4^b - 1) / 12.
# Q4_K, Q5_K:  weight = scale * s * q - minimum * m, with s and m of 6 bits: minimum = mean(q) * scale gives mean 0.
# Q6_K:        weight = scale * s * (q - 32), with s of 8 bits and a sign.
LAYOUTS = {
    "Q4_K": Layout(256, 144, 0, 258.3, minimum_at=2, minimum=7.5),
    "Q5_K": Layout(256, 176, 0, 530.4, minimum_at=2, minimum=15.5),
    "Q6_K": Layout(256, 210, 208, 1365.7),
    "Q8_0": Layout(32, 34, 0, 73.9),
    "Q5_0": Layout(32, 22, 0, 9.2),
    "Q5_1": Layout(32, 24, 0, 9.2, minimum_at=2, minimum=-15.5),
}


def random_blocks(random: np.random.Generator, kind: str, n_blocks: int) -> npt.NDArray[np.uint8]:
    """Return blocks of weights with mean 0 and deviation SIGMA, as bytes of shape (n_blocks, bytes of a block)."""
    import numpy as np

    layout = LAYOUTS[kind]
    blocks = np.frombuffer(bytearray(random.bytes(n_blocks * layout.n_bytes)), np.uint8)
    blocks = blocks.reshape(n_blocks, layout.n_bytes)
    scale = SIGMA / layout.sigma
    blocks[:, layout.scale_at : layout.scale_at + 2] = _half(scale)
    if layout.minimum_at is not None:
        blocks[:, layout.minimum_at : layout.minimum_at + 2] = _half(scale * layout.minimum)
    return blocks


def _half(value: float) -> npt.NDArray[np.uint8]:
    """Return the two bytes of a 16-bit float, little-endian as in the file."""
    import numpy as np

    return np.frombuffer(np.array([value], "<f2").tobytes(), np.uint8)
