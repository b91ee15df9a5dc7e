"""The backends of a decode step: how each stores the weight of a product, and the module that multiplies by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tinygemm.harness import peers
from tinygemm.kernel import reference
from tinygemm.kernel.configs import select
from tinygemm.kernel.gemm import gemm
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.quant import PackedInt4
from tinygemm.problem import GemmProblem
from tinygemm.step.packed import dense

MAX_TOKENS = 16  # sequences that our FP16 kernel serves


class Dense(nn.Module):
    """The library's product: a weight [N, K] in 16 or 32 bits, and a bias [N] or None."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class Dequantised(nn.Module):
    """The reference: each call dequantises the weight and multiplies by it, so that no model is held in FP16."""

    def __init__(self, packed: PackedInt4, bias: torch.Tensor | None = None):
        super().__init__()
        self.packed, self.bias = packed, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, dense(self.packed, x.dtype), self.bias)


class Fp16Kernel(Dense):
    """Our FP16 kernel: cut as the INT4 kernel is, with the weight in FP16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.ops.tinygemm.fp16_gemm(x, self.weight)
        return y if self.bias is None else y + self.bias


class SerialInt4Linear(Int4Linear):
    """`Int4Linear` whose product starts when the kernel before it has finished."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = gemm(x, self.weight, dependent_launch=False)
        return y if self.bias is None else y + self.bias


class AtenInt4(nn.Module):
    """PyTorch's own INT4 product; x is bfloat16 [B, K]."""

    def __init__(self, weight: tuple[torch.Tensor, torch.Tensor], group_size: int, bias: torch.Tensor | None):
        super().__init__()
        self.group_size = group_size
        for name, tensor in zip(("words", "scales_and_zeros", "bias"), (*weight, bias), strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.ops.aten._weight_int4pack_mm(x, self.words, self.group_size, self.scales_and_zeros)
        return y if self.bias is None else y + self.bias


@torch.library.custom_op("tinygemm::fp16_gemm", mutates_args=())
def fp16_gemm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K] @ weight [N, K].T by our FP16 kernel, in the launch config of this GPU's table."""
    from tinygemm.hardware import device_key

    (M, K), N = x.shape, weight.shape[0]
    config, _ = select(GemmProblem(M, N, K), device_key(x.device), form="fp16")
    return reference.fp16_gemm(x, weight, config)


@fp16_gemm.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


@dataclass(frozen=True)
class StepBackend:
    """An entry of the registry.

    form:    name of the stored form of a weight; backends that share a name share the weights
    build:   PackedInt4 -> the weight in that form
    module:  (weight, bias or None) -> the module that multiplies by it
    dtype:   of the whole model
    int4_lm_head: lm_head is multiplied as the other weights are; else by the library, in `dtype`
    unsupported:  batch -> None, or one sentence that says what is missing
    """

    form: str
    build: Callable
    module: Callable
    dtype: torch.dtype = torch.float16
    int4_lm_head: bool = False
    unsupported: Callable[[int], str | None] = lambda batch: None


def _packed(packed: PackedInt4) -> PackedInt4:
    return packed


def _dense(packed: PackedInt4) -> torch.Tensor:
    return dense(packed, torch.float16)


def _few_sequences(batch: int) -> str | None:
    return None if batch <= MAX_TOKENS else f"our FP16 kernel serves up to {MAX_TOKENS} sequences, not {batch}"


def _gemlite_missing(batch: int) -> str | None:
    return None if find_spec("gemlite") else "gemlite is not installed (pip install gemlite==0.6.0.post2)"


def _gemlite_module(layer, bias):
    return layer if bias is None else _Biased(layer, bias)


class _Biased(nn.Module):
    def __init__(self, product: nn.Module, bias: torch.Tensor):
        super().__init__()
        self.product = product
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x) + self.bias


ATEN_TILES = 8
ATEN_GROUP = 128

BACKENDS = {
    "fp16-cublas": StepBackend("fp16", _dense, Dense),
    "int4": StepBackend("packed", _packed, Int4Linear.from_packed),
    "int4-serial": StepBackend("packed", _packed, SerialInt4Linear.from_packed),
    "int4-lm-head": StepBackend("packed", _packed, Int4Linear.from_packed, int4_lm_head=True),
    "fp16-triton": StepBackend("fp16", _dense, Fp16Kernel, unsupported=_few_sequences),
    "aten-int4mm": StepBackend(
        "aten",
        peers.aten_build(ATEN_TILES),
        lambda weight, bias: AtenInt4(weight, ATEN_GROUP, bias),
        torch.bfloat16,
    ),
    "gemlite": StepBackend("gemlite", peers.gemlite_build, _gemlite_module, unsupported=_gemlite_missing),
}
