"""From the integers and scales of any format to a packed weight, bit for bit or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tinygemm.checkpoints.files import StoredLayer
from tinygemm.kernel.quant import SYMMETRIC_ZERO, PackedInt4, check_group, pack
from tinygemm.problem import GROUP_SIZES

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class LayerWeight:
    """The weight of a linear layer as it was stored.

    packed: its columns in the order of their groups
    order:  [K] int64: column j of `packed` multiplies x[..., order[j]]; None where they are in their own order
    """

    packed: PackedInt4
    order: torch.Tensor | None = None


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """Words [rows, columns] int32 -> their 4-bit numbers [rows, 8 columns] uint8, the lowest bits first."""
    packed = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)  # one column may keep odd strides
    return torch.stack((packed & 0xF, packed >> 4), -1).flatten(-2)


def layer_weight(
    layer: StoredLayer,
    codes: torch.Tensor,
    scales: tuple[str, torch.Tensor],
    zeros: torch.Tensor | None,
    group_sizes: set[int],
    g_idx: str | None = None,
) -> LayerWeight:
    """Pack what a format stores; zeros that are all 8 become a symmetric weight.

    codes:       [N, K] uint8
    scales:      the name of the tensor, and [groups, N] float16, bfloat16 or float32
    zeros:       [groups, N] uint8, or None: every zero is 8
    group_sizes: those of the checkpoint's config, -1 for the whole K
    g_idx:       the name of the tensor [K] that says which group a column belongs to, where there may be one
    raises:      ValueError naming the tensor and the file
    """
    part, steps = scales
    K = codes.shape[1]
    group_size = _group_size(layer, part, K, len(steps), group_sizes)
    order = None if g_idx is None or g_idx not in layer else _order(layer, g_idx, K, len(steps))
    if order is not None:
        codes = codes[:, order]
    if zeros is not None and bool((zeros == SYMMETRIC_ZERO).all()):
        zeros = None
    exact = _as_float16(layer, part, steps)
    try:
        return LayerWeight(pack(codes, exact, zeros, group_size), order)
    except ValueError as error:
        raise layer.error(part, f"cannot be packed: {error}") from None


def _group_size(layer: StoredLayer, part: str, K: int, groups: int, allowed: set[int]) -> int:
    if K % groups or (K // groups) not in {K if size == -1 else size for size in allowed}:
        wanted = " or ".join(map(str, sorted(allowed)))
        raise layer.error(
            part, f"has {groups} groups along K={K}, and the config says group_size={wanted}, which must divide K"
        )
    size = K // groups if groups > 1 or K in GROUP_SIZES else -1
    try:
        check_group(K, size)
    except ValueError as error:
        raise layer.error(part, f"cannot be used: {error}") from None
    return size


def _as_float16(layer: StoredLayer, part: str, scales: torch.Tensor) -> torch.Tensor:
    exact = scales.half()
    wrong = exact.to(scales.dtype) != scales
    if wrong.any():
        count, value = int(wrong.sum()), scales[wrong][0].item()
        raise layer.error(
            part, f"cannot be converted exactly: {count} of {scales.numel()} scales, such as {value:g}, are not float16"
        )
    return exact


def _order(layer: StoredLayer, part: str, K: int, groups: int) -> torch.Tensor | None:
    """The columns sorted by their group; None where they lie so already."""
    g_idx = layer.tensor(part, INTEGERS, (K,))
    sequential = torch.arange(K, device=g_idx.device) // (K // groups)
    if torch.equal(g_idx, sequential.to(g_idx.dtype)):
        return None
    order = torch.argsort(g_idx, stable=True)
    if not torch.equal(g_idx[order], sequential.to(g_idx.dtype)):
        raise layer.error(part, f"must give each of the {groups} groups {K // groups} of the {K} columns")
    return order
