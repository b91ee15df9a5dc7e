"""AWQ in its GEMM order, as AutoAWQ writes it.

qweight [K, N / 8] int32   eight neighbours in N per word, in the order 0 2 4 6 1 3 5 7 from the lowest bits up
qzeros  [K / group, N / 8] int32   in the same order
scales  [K / group, N]
"""

from __future__ import annotations

import torch

from tinygemm.checkpoints.files import StoredLayer
from tinygemm.checkpoints.integers import FLOATS, LayerWeight, layer_weight, nibbles

MARK = "qweight"
PARTS = ("qweight", "qzeros", "scales")
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of the columns 0..7 in a word


def check(settings: dict) -> None:
    """Raise a ValueError for what the config says and this reader does not read."""
    version = str(settings.get("version") or settings.get("checkpoint_format") or "gemm").lower()
    if version != "gemm":
        raise ValueError(f"version must be 'gemm', got {version!r}: another layout of the same numbers")
    bits = settings.get("bits", settings.get("w_bit"))
    if bits != 4:
        raise ValueError(f"bits must be 4, got {bits!r}")


def read(layer: StoredLayer, settings: dict) -> LayerWeight:
    words = layer.tensor("qweight", (torch.int32,), (None, None))
    columns = words.shape[1]
    scales = layer.tensor("scales", FLOATS, (None, 8 * columns))
    zeros = layer.tensor("qzeros", (torch.int32,), (len(scales), columns))
    size = settings.get("group_size", settings.get("q_group_size", -1))
    return layer_weight(layer, _in_order(words).t(), ("scales", scales), _in_order(zeros), {size})


def _in_order(words: torch.Tensor) -> torch.Tensor:
    return nibbles(words).unflatten(-1, (-1, 8))[..., PLACES].flatten(-2)
