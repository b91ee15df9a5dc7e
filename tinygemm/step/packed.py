"""Packed weights of a model as they are drawn, cut and dequantised: whole models, piece by piece."""

from __future__ import annotations

import torch

from tinygemm.kernel import cut, quant
from tinygemm.kernel.quant import TILE_K, TILE_N, WORDS, PackedInt4

GROUP_SIZE = 128
DENSE_AT_ONCE = 2**26  # weights: 256 MiB in float32


def random_words(N: int, K: int, device, seed: int, size: float = 1.0) -> PackedInt4:
    """A random packed weight whose words are drawn as they are stored, which takes no memory beside them.

    N, K: multiples of the packed tile
    size: of the outputs for inputs of order one. Scales have random signs, since codes have a mean of -1/2: with
          scales of one sign all outputs would share it, and a deep model would forget what went into it
    """
    generator = torch.Generator(device).manual_seed(seed)
    shape = (N // TILE_N, K // TILE_K, TILE_N, WORDS)
    words = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=device, generator=generator)
    spread = 2 * torch.rand(K // GROUP_SIZE, N, device=device, generator=generator) - 1
    scales = (spread + 0.5 * torch.where(spread < 0, -1, 1)) * (size * K**-0.5 / 4)  # 0.5 to 1.5, or the negative
    return PackedInt4(words, scales.half(), None, N, K, GROUP_SIZE)


def dense(w: PackedInt4, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] of `dtype`, dequantised piece by piece: at once, it would take several times its memory."""
    rows = max(TILE_N, DENSE_AT_ONCE // w.K // TILE_N * TILE_N)
    out = torch.empty(w.N, w.K, dtype=dtype, device=w.device)
    for first in range(0, w.N, rows):
        last = min(first + rows, w.N)
        out[first:last] = quant.dequantize(cut.rows(w, first, last), dtype)
    return out
