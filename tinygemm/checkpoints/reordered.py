"""A linear layer whose weight was quantised in the order of activations (act-order)."""

from __future__ import annotations

import torch

from tinygemm.kernel.linear import Int4Linear


class ReorderedInt4Linear(Int4Linear):
    """An Int4Linear whose columns are sorted by group, so x is gathered in their order first: one more kernel a call.

    order: [in_features] int64, a buffer; column j of the packed weight multiplies x[..., order[j]]
    """

    order: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.index_select(-1, self.order))
