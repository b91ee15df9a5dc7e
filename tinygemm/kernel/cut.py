"""Cut and join packed weights along their tiles, without unpacking them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tinygemm.kernel.quant import TILE_K, TILE_N, PackedInt4


def rows(w: PackedInt4, first: int, last: int) -> PackedInt4:
    """Output features first .. last - 1 of a packed weight [N, K]; the codes share its memory.

    first, last: multiples of 16, the rows of a tile; `last` may be N, too
    raises: ValueError naming what divides
    """
    if not 0 <= first < last <= w.N:
        raise ValueError(f"rows {first}..{last} are not within N={w.N}")
    if first % TILE_N or (last % TILE_N and last != w.N):
        raise ValueError(f"rows {first}..{last} of N={w.N} cut a tile: they must be multiples of {TILE_N}")
    part = slice(first, last)
    zeros = None if w.zeros is None else w.zeros[:, part].contiguous()
    words = w.qweight[first // TILE_N : -(-last // TILE_N)]
    return PackedInt4(words, w.scales[:, part].contiguous(), zeros, last - first, w.K, w.group_size)


def columns(w: PackedInt4, first: int, last: int) -> PackedInt4:
    """Inputs first .. last - 1 of a packed weight [N, K]; the scales share its memory.

    first, last: multiples of 128, the columns of a tile, which groups of 32, 64 and 128 fill; `last` may be K, too
    returns: a weight of the same group size; with one group per output feature, its scales are those of the whole K
    raises: ValueError naming what divides
    """
    if not 0 <= first < last <= w.K:
        raise ValueError(f"columns {first}..{last} are not within K={w.K}")
    if first % TILE_K or (last % TILE_K and last != w.K):
        raise ValueError(f"columns {first}..{last} of K={w.K} cut a tile: they must be multiples of {TILE_K}")
    groups = slice(None) if w.group_size == -1 else slice(first // w.group_size, last // w.group_size)
    zeros = None if w.zeros is None else w.zeros[groups]
    words = w.qweight[:, first // TILE_K : -(-last // TILE_K)].contiguous()
    return PackedInt4(words, w.scales[groups], zeros, w.N, last - first, w.group_size)


def join(parts: Sequence[PackedInt4]) -> PackedInt4:
    """The weight [sum of N, K] whose output features are those of the parts, one after the other.

    raises: ValueError for parts that differ in K, group size, zeros or device, and for an N but the last that is no
            multiple of 16, the rows of a tile
    """
    first = parts[0]
    for name, kinds in (
        ("K", {part.K for part in parts}),
        ("group_size", {part.group_size for part in parts}),
        ("symmetric", {part.zeros is None for part in parts}),
        ("device", {str(part.device) for part in parts}),
    ):
        if len(kinds) > 1:
            raise ValueError(f"parts must have one {name}, got {', '.join(map(str, sorted(kinds)))}")
    if odd := [part.N for part in parts[:-1] if part.N % TILE_N]:
        raise ValueError(f"N of each part but the last must be a multiple of {TILE_N}, got {odd[0]}")
    zeros = [part.zeros for part in parts if part.zeros is not None]
    words, scales = torch.cat([part.qweight for part in parts]), torch.cat([part.scales for part in parts], 1)
    points = torch.cat(zeros, 1) if zeros else None
    return PackedInt4(words, scales, points, sum(part.N for part in parts), first.K, first.group_size)
