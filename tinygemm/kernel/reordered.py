"""A linear layer whose weight was quantised in the order of activations (act-order)."""

from __future__ import annotations

import torch

from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.quant import PackedInt4


class ReorderedInt4Linear(Int4Linear):
    """An Int4Linear whose columns are sorted by group, so x is gathered in their order first: one more kernel a call.

    order: [in_features] int64, a buffer; column j of the packed weight multiplies x[..., order[j]]
    """

    order: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.index_select(-1, self.order))


def layer_of(w: PackedInt4, bias: torch.Tensor | None, order: torch.Tensor | None) -> Int4Linear:
    """The layer of a packed weight [N, K] and a bias [N]; order: [K] int64, None where the columns are in their own."""
    if order is None:
        return Int4Linear.from_packed(w, bias)
    layer = ReorderedInt4Linear.from_packed(w, bias)
    layer.register_buffer("order", order)
    return layer


def order_of(layer: Int4Linear) -> torch.Tensor | None:
    """The order of a layer's columns [K] int64, None where they are in their own."""
    return layer.order if isinstance(layer, ReorderedInt4Linear) else None
