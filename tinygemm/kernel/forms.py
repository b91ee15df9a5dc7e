"""What each form of the kernel is launched with: the arguments that a config and a problem come to, in one place."""

from __future__ import annotations

import functools
import os

import torch
import triton

from tinygemm.kernel import triton_kernels as kernels
from tinygemm.kernel.configs import DEQUANTISE, LaunchConfig
from tinygemm.kernel.launch import Launch
from tinygemm.kernel.quant import PackedInt4

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def product(
    config: LaunchConfig, M: int, w: PackedInt4, stride_xm: int, pdl: bool, dequant: str = "lop3"
) -> tuple[Launch, ...]:
    """The launches that multiply M rows, `stride_xm` elements apart, by a packed weight: inputs x, *stored(w).

    pdl:     dependent launch, where the form knows how and every program of it waits
    dequant: how codes become numbers, of the splitk form only: "lop3", or "none": a yardstick that leaves it out
    raises:  ValueError for a config that does not compute this product
    """
    if config.form not in PRODUCTS:
        raise ValueError(
            f"config must be of a form that computes the product ({', '.join(PRODUCTS)}), got {config.form}"
        )
    if config.form == "splitk":
        return _splitk(config, M, w, stride_xm, pdl, dequant)
    if dequant != "lop3":
        raise ValueError(f"config must be of form splitk, got {config.form}")
    return PRODUCTS[config.form](config, M, w, stride_xm, pdl)


def stored(w: PackedInt4) -> tuple[torch.Tensor | None, ...]:
    """The tensors of a packed weight, in the order in which kernels take them."""
    return w.qweight, w.scales, w.zeros


def _splitk(config, M, w, stride_xm, pdl, dequant="lop3") -> tuple[Launch, ...]:
    N, K, KB = w.N, w.K, w.qweight.shape[1]
    pdl = pdl and every_share_waits(config.split_k, KB, config.num_warps)
    constants = {
        **layout(w), "RAW": dequant == "none", "EVEN": fills_tiles(N, K, config),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "WARPS_K": config.num_warps, "SPLIT_K": config.split_k,
        "STEPS": steps(config), "PDL": pdl,
    }  # fmt: skip
    kernel, grid = kernels.kernel_gemm_packed_int4_splitk, (triton.cdiv(N, config.block_n), config.split_k, 1)

    def rows(first: int) -> Launch:
        count = min(M - first, config.block_m)
        numbers, space = (count, N, K, KB, stride_xm), shares(config, count, N)
        return Launch(kernel, grid, numbers, constants, options(config, pdl), space, first, count)

    return tuple(rows(first) for first in range(0, M, config.block_m))


def _gemv(config, M, w, stride_xm, pdl) -> tuple[Launch, ...]:
    if M != 1 or w.group_length < 128 or w.K % 2:
        raise ValueError(f"gemv serves one token, even K and groups of 128 or the whole K, not M={M}, {w.group_size=}")
    N, K, KB, blocks = w.N, w.K, w.qweight.shape[1], config.block_k // 128
    pdl = pdl and every_share_waits(config.split_k, KB, blocks)
    constants = {
        "WHOLE_K": w.group_size == -1, "HAS_ZEROS": w.zeros is not None, "EVEN": fills_tiles(N, K, config),
        "BLOCK_N": config.block_n, "BLOCKS_K": blocks, "SPLIT_K": config.split_k,
        "NUM_STAGES": config.num_stages, "PDL": pdl,
    }  # fmt: skip
    kernel, grid = kernels.kernel_gemv_packed_int4, (triton.cdiv(N, config.block_n), config.split_k, 1)
    # the kernel reads pairs of x as one word
    return (Launch(kernel, grid, (N, K, KB), constants, options(config, pdl), shares(config, 1, N), alignment=4),)


def _static(config, M, w, stride_xm, pdl) -> tuple[Launch, ...]:
    kernel = kernels.kernel_gemm_packed_int4_static
    grid = (triton.cdiv(w.N, config.block_n), triton.cdiv(M, config.block_m), 1)
    numbers = (M, w.N, w.K, w.qweight.shape[1], stride_xm)
    constants = {**layout(w), "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    return (Launch(kernel, grid, numbers, constants, options(config, False) | {"num_stages": config.num_stages}),)


PRODUCTS = {"splitk": _splitk, "gemv": _gemv, "static": _static}


def dequantise(w: PackedInt4) -> Launch:
    """The launch that writes the weight [N, K] out as what `out` holds: inputs stored(w)."""
    KB = w.qweight.shape[1]
    grid = (triton.cdiv(w.N, DEQUANTISE.block_n), KB, 1)
    constants = {**layout(w), "BLOCK_N": DEQUANTISE.block_n}
    return Launch(kernels.kernel_dequantize_int4, grid, (w.N, w.K, KB), constants, options(DEQUANTISE, False))


# --- what the forms share ---------------------------------------------------------------------------------------------


def layout(w: PackedInt4) -> dict:
    """The constants of a kernel that describe the packed weight."""
    return {
        "GROUP": 128 if w.group_size == -1 else w.group_size,
        "WHOLE_K": w.group_size == -1,
        "HAS_ZEROS": w.zeros is not None,
    }


def options(config: LaunchConfig, pdl: bool) -> dict:
    return {"num_warps": config.num_warps} | ({"launch_pdl": True} if pdl else {})


def steps(config: LaunchConfig) -> int:
    """Blocks of 128 k that one warp requests at once."""
    return config.block_k // (128 * config.num_warps)


def fills_tiles(N: int, K: int, config: LaunchConfig) -> bool:
    return N % config.block_n == 0 and K % config.block_k == 0


def shares(config: LaunchConfig, M: int, N: int) -> tuple[int, int]:
    """The workspace of a split K: [split_k, M, N] partial sums, and a counter for each tile along N."""
    return (config.split_k * M * N, triton.cdiv(N, config.block_n)) if config.split_k > 1 else (0, 0)


def every_share_waits(split_k: int, KB: int, step: int) -> bool:
    """Whether each program has a block of K to walk: only there does it wait for the kernel before it.

    Calls on one stream share a workspace and reuse each other's memory, so a program that has nothing to walk and does
    not wait would write into what the kernel before still uses.
    """
    return split_k <= triton.cdiv(KB, step)


def dependent_launch(device: torch.device) -> bool:
    """Programmatic dependent launch needs Hopper or newer; elsewhere its instructions do not exist."""
    return device.type == "cuda" and not INTERPRETED and _capability(device.index) >= (9, 0)


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
