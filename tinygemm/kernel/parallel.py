"""Tensor parallelism for packed weights: styles for PyTorch's `parallelize_module`, and a plan for decoder models.

Every rank starts from the whole layer, on any device, and keeps its own tiles. Nothing is unpacked. Collectives are
those of `torch.distributed`, so a CUDA graph can hold them, and a compiler sees them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from tinygemm.kernel import cut, fastpath
from tinygemm.kernel.gemm import gemm
from tinygemm.kernel.join import JOINTS
from tinygemm.kernel.linear import Int4Linear, autocast
from tinygemm.kernel.quant import TILE_K, TILE_N, PackedInt4

ROWWISE = ("o_proj", "down_proj")
COLWISE = (*JOINTS, *(name for names in JOINTS.values() for name in names))
HEAD = "lm_head"


def shard(
    w: PackedInt4, dim: int, rank: int, world: int, parts: Sequence[int] | None = None, head_dim: int = 1
) -> PackedInt4:
    """The tiles of one rank, in memory of their own, of a packed weight [N, K].

    dim:      0 cuts the output features N, 1 the inputs K
    rank, world: the number of the rank, and of ranks
    parts:    the output features of joined projections, each of which is cut by itself; without effect on K
    head_dim: output features that stay together; without effect on K
    returns:  [N / world, K] or [N, K / world], of the same group size. One group per output feature stays whole
              where K is cut: each rank has its scale
    raises:   ValueError naming the size, and what divides it: a rank's output features are multiples of 16 and of
              head_dim, its inputs of 128, so that no tile and no group is cut
    """
    if dim not in (0, 1):
        raise ValueError(f"dim must be 0 (output features) or 1 (inputs), got {dim!r}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in 0..{world - 1}, got {rank}")
    if dim == 1:
        return cut.columns(w, *_share("inputs K", w.K, TILE_K, rank, world)).clone()
    parts = (w.N,) if parts is None else tuple(parts)
    if sum(parts) != w.N:
        raise ValueError(f"parts must add up to N={w.N}, got {parts}")
    pieces, start = [], 0
    for part in parts:
        first, last = _share("output features N", part, math.lcm(TILE_N, head_dim), rank, world)
        pieces.append(cut.rows(w, start + first, start + last))
        start += part
    return cut.join(pieces) if len(pieces) > 1 else pieces[0].clone()


def _share(what: str, size: int, unit: int, rank: int, world: int) -> tuple[int, int]:
    """The first index of a rank's share of `size`, and the one behind its last."""
    if size % (world * unit):
        raise ValueError(f"{what}={size} cannot be cut over {world} ranks: they must be a multiple of {world} x {unit}")
    return rank * size // world, (rank + 1) * size // world


class ColwiseInt4(ParallelStyle):
    """Cut the output features of an Int4Linear, and its bias, over the ranks of a one-dimensional mesh.

    parts:    the out_features of joined projections, each cut by itself; None: those of the layer, in its `parts`
    head_dim: output features of one head, which no rank cuts
    gather:   put the outputs of all ranks together, for an lm_head; else a rank's own go on to a row-wise layer
    input:    [..., in_features], the same on every rank
    raises:   TypeError for another layer; ValueError naming the layer and what divides (see `shard`)
    """

    def __init__(self, parts: Sequence[int] | None = None, head_dim: int = 1, gather: bool = False):
        super().__init__()
        self.parts, self.head_dim, self.gather = parts, head_dim, gather

    def check(self, layer: nn.Module, world: int) -> None:
        """Raise what applying the style to a layer would; nothing is changed."""
        parts = self.parts or _int4(layer).parts
        if self.gather and len(parts) > 1:
            raise ValueError("gather puts the outputs of one projection together, and the layer has several parts")
        shard(_shape_of(layer), 0, 0, world, parts, self.head_dim)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        rank, world = device_mesh.get_local_rank(), device_mesh.size()
        _named(module, lambda: self.check(module, world))
        parts = tuple(self.parts or module.parts)
        bias = module.bias
        if bias is not None:
            bias = torch.cat([part.chunk(world)[rank] for part in bias.split(parts)])
        _keep(module, shard(module.weight, 0, rank, world, parts, self.head_dim), bias)
        module.parts = tuple(part // world for part in parts)
        if self.gather:
            _become(module, GatheredInt4Linear, device_mesh)
        return module


class RowwiseInt4(ParallelStyle):
    """Cut the inputs of an Int4Linear over the ranks of a one-dimensional mesh, and add up what they compute.

    input:  [..., in_features / ranks], a rank's own, from a column-wise layer
    output: [..., out_features], the same on every rank; summed in the dtype of the input, then the bias is added
    raises: TypeError for another layer; ValueError naming the layer and what divides (see `shard`)
    """

    def check(self, layer: nn.Module, world: int) -> None:
        """Raise what applying the style to a layer would; nothing is changed."""
        shard(_shape_of(_int4(layer)), 1, 0, world)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        rank, world = device_mesh.get_local_rank(), device_mesh.size()
        _named(module, lambda: self.check(module, world))
        _keep(module, shard(module.weight, 1, rank, world), module.bias)
        _become(module, SummedInt4Linear, device_mesh)
        return module


def parallelize(model: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
    """Cut the INT4 layers of a decoder over the ranks of a one-dimensional mesh, in place.

    Layers are known by their names in transformers: q_proj, k_proj and v_proj, joined or not, are cut by heads,
    gate_proj and up_proj column-wise, o_proj and down_proj row-wise. The outputs of an lm_head in INT4 are gathered.
    All else stays whole on every rank. A state dict of the model then holds the rank's share.

    returns: the model
    raises:  ValueError naming the layer that cannot be cut, with its size and what divides, or that is not in INT4,
             or of which the joined parts are not known (Phi-3); nothing is changed then
    """
    plan: dict[str, ParallelStyle] = {}
    for path, layer in model.named_modules():
        owner, _, name = path.rpartition(".")
        if name in ROWWISE:
            plan[path] = RowwiseInt4()
        elif name in COLWISE:
            plan[path] = ColwiseInt4(head_dim=getattr(model.get_submodule(owner), "head_dim", 1))
        elif name == HEAD and isinstance(layer, Int4Linear):
            plan[path] = ColwiseInt4(gather=True)
        if name in JOINTS and isinstance(layer, Int4Linear) and len(layer.parts) == 1:
            raise ValueError(f"{path}: the sizes of its parts are not known: only joined projections can be cut")
    if not plan:
        raise ValueError(f"model has none of the layers that are cut: {', '.join((*COLWISE, *ROWWISE))}")
    for path, style in plan.items():
        try:
            style.check(model.get_submodule(path), device_mesh.size())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    return parallelize_module(model, device_mesh, plan)


def _int4(layer: nn.Module) -> Int4Linear:
    if type(layer) is not Int4Linear:
        raise TypeError(f"an Int4Linear that is whole is wanted, got {type(layer).__name__}: quantise it first")
    return layer


def _shape_of(layer: nn.Module) -> PackedInt4:
    """The weight of a layer without its values."""
    return _int4(layer).weight.to("meta")


def _named(layer: nn.Module, check) -> None:
    """Say which layer a style is refused for; a style is not told its path."""
    try:
        check()
    except ValueError as error:
        raise ValueError(f"{layer}: {error}") from error


def _keep(layer: Int4Linear, w: PackedInt4, bias: torch.Tensor | None) -> None:
    """Make a layer that of a share of its weight."""
    layer.qweight, layer.scales, layer.zeros, layer.bias = w.qweight, w.scales, w.zeros, bias
    layer.out_features, layer.in_features = w.shape


def _become(layer: Int4Linear, kind: type[Int4Linear], mesh: DeviceMesh) -> None:
    layer.__class__ = kind
    layer.mesh = mesh


class SummedInt4Linear(Int4Linear):
    """A layer whose inputs are spread over the ranks of `mesh`."""

    mesh: DeviceMesh

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if fastpath.any_autocast():
            x = autocast(x)
        y, bias = gemm(x, self.weight), self.bias
        dist.all_reduce(y, group=self.mesh.get_group())
        return y if bias is None else y.add_(bias)


class GatheredInt4Linear(Int4Linear):
    """A layer whose output features are spread over the ranks of `mesh`."""

    mesh: DeviceMesh

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        shares = y.new_empty(self.mesh.size() * len(y), *y.shape[1:])
        dist.all_gather_into_tensor(shares, y, group=self.mesh.get_group())
        return torch.cat(shares.chunk(self.mesh.size()), -1)
