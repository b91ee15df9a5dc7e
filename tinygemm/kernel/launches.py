"""The arguments of each kernel: the launches that a config and a problem come to."""

from __future__ import annotations

import functools
import os

import torch
import triton

from tinygemm.kernel.configs import DEQUANTISE, LaunchConfig
from tinygemm.kernel.launch import Launch
from tinygemm.kernel.quant import PackedInt4
from tinygemm.kernel.triton import pipelined, simple, splitk

SHARED_BYTES = 48 * 1024  # of a program, declared in the kernel: the most that every GPU gives without being asked
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def product(
    config: LaunchConfig,
    M: int,
    w: PackedInt4,
    stride_xm: int,
    pdl: bool,
    dequant: str = "fast",
    add_warps: bool = True,
) -> tuple[Launch, ...]:
    """The launches that multiply M rows, `stride_xm` elements apart, by a packed weight: inputs x, *stored(w).

    pdl:     dependent launch, where the kernel knows how and every program of it waits
    dequant: fast, or naive or none: ablations of the dequantisation, which the simple kernel does not have
    add_warps: False: an ablation that adds up the warps with tl.sum; splitk only
    raises:  ValueError for a config that does not compute this product
    """
    if config.form not in PRODUCTS:
        raise ValueError(
            f"config must be of a form that computes the product ({', '.join(PRODUCTS)}), got {config.form}"
        )
    if dequant != "fast" and config.form == "static":
        raise ValueError(f"config must be of form splitk or ring, got {config.form}")
    if not add_warps and config.form != "splitk":
        raise ValueError(f"config must be of form splitk, got {config.form}")
    return PRODUCTS[config.form](config, M, w, stride_xm, pdl, dequant, add_warps)


def stored(w: PackedInt4) -> tuple[torch.Tensor | None, ...]:
    """The tensors of a packed weight, in the order in which kernels take them."""
    return w.qweight, w.scales, w.zeros


def _splitk(config, M, w, stride_xm, pdl, dequant, add_warps) -> tuple[Launch, ...]:
    pdl = pdl and every_share_waits(config.split_k, w.qweight.shape[1], config.num_warps)
    constants = {
        **layout(w), "DEQUANT": dequant, "FULL_TILES": fills_tiles(w.N, w.K, config),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "WARPS_K": config.num_warps, "SPLIT_K": config.split_k,
        "BLOCKS_IN_FLIGHT": steps(config), "ADD_WARPS": add_warps, "PDL": pdl,
    }  # fmt: skip
    return _tiles_of_rows(splitk.kernel_gemm_packed_int4_splitk, config, M, w, stride_xm, constants, pdl)


def _ring(config, M, w, stride_xm, pdl, dequant, add_warps) -> tuple[Launch, ...]:
    if w.N % config.block_n or w.K % 128:
        raise ValueError(f"ring needs N divisible by block_n={config.block_n} and K by 128, got N={w.N} K={w.K}")
    stages = min(config.num_stages, SHARED_BYTES // (config.num_warps * stage_bytes(config, w)))
    if not stages:
        raise ValueError(f"not one stage of {config} fits into {SHARED_BYTES} bytes of shared memory")
    constants = {
        **layout(w), "DEQUANT": dequant,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "WARPS_K": config.num_warps, "SPLIT_K": config.split_k,
        "STAGES": stages, "PDL": pdl,
    }  # fmt: skip
    return _tiles_of_rows(pipelined.kernel_gemm_packed_int4_pipelined, config, M, w, stride_xm, constants, pdl)


def _tiles_of_rows(kernel, config, M, w, stride_xm, constants, pdl) -> tuple[Launch, ...]:
    """One launch for each block_m rows of x."""
    grid = (triton.cdiv(w.N, config.block_n), config.split_k, 1)

    def rows(first: int) -> Launch:
        count = min(M - first, config.block_m)
        numbers, space = (count, w.N, w.K, w.qweight.shape[1], stride_xm), shares(config, count, w.N)
        return Launch(kernel, grid, numbers, constants, options(config, pdl), space, first, count)

    return tuple(rows(first) for first in range(0, M, config.block_m))


def _static(config, M, w, stride_xm, pdl, dequant, add_warps) -> tuple[Launch, ...]:
    kernel = simple.kernel_gemm_packed_int4_static
    grid = (triton.cdiv(w.N, config.block_n), triton.cdiv(M, config.block_m), 1)
    numbers = (M, w.N, w.K, w.qweight.shape[1], stride_xm)
    constants = {**layout(w), "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    return (Launch(kernel, grid, numbers, constants, options(config, False) | {"num_stages": config.num_stages}),)


PRODUCTS = {"splitk": _splitk, "ring": _ring, "static": _static}


def dequantise(w: PackedInt4) -> Launch:
    """The launch that writes the weight [N, K] out as what `out` holds: inputs stored(w)."""
    KB = w.qweight.shape[1]
    grid = (triton.cdiv(w.N, DEQUANTISE.block_n), KB, 1)
    constants = {**layout(w), "BLOCK_N": DEQUANTISE.block_n}
    return Launch(simple.kernel_dequantize_int4, grid, (w.N, w.K, KB), constants, options(DEQUANTISE, False))


# --- what the kernels share -------------------------------------------------------------------------------------------


def layout(w: PackedInt4) -> dict:
    """The constants of a kernel that describe the packed weight."""
    return {
        "GROUP": 128 if w.group_size == -1 else w.group_size,
        "PER_CHANNEL": w.group_size == -1,
        "HAS_ZEROS": w.zeros is not None,
    }


def options(config: LaunchConfig, pdl: bool) -> dict:
    """The compile options of a kernel. A product and a sum are one instruction, whatever Triton's default becomes."""
    chosen = {"launch_pdl": True} if pdl else {}
    if config.max_registers:
        chosen["maxnreg"] = config.max_registers
    return {"num_warps": config.num_warps, "enable_fp_fusion": True} | chosen


def stage_bytes(config: LaunchConfig, w: PackedInt4) -> int:
    """The bytes of one stage of a warp: words, scales and zeros of a tile's block of 128 k, and its x."""
    groups = 128 // min(w.group_length, 128) if w.group_size != -1 else 1
    return config.block_n * (64 + groups * (2 if w.zeros is None else 3)) + 256 * config.block_m


def steps(config: LaunchConfig) -> int:
    """Blocks of 128 k that one warp requests at once."""
    return config.block_k // (128 * config.num_warps)


def fills_tiles(N: int, K: int, config: LaunchConfig) -> bool:
    """Tell whether loads need no mask but the end of a share of K, which is counted in steps of one block per warp."""
    return N % config.block_n == 0 and K % (128 * config.num_warps) == 0


def takes_x_as_it_lies(config: LaunchConfig, address: int, stride_xm: int) -> bool:
    """Tell whether x may start there, its rows that many elements apart: cp.async copies 16 bytes at a time."""
    return config.form != "ring" or (address % 16 == 0 and stride_xm % 8 == 0)


def shares(config: LaunchConfig, M: int, N: int) -> tuple[int, int]:
    """The workspace of a split K: [split_k, M, N] partial sums, and a counter for each tile along N."""
    return (config.split_k * M * N, triton.cdiv(N, config.block_n)) if config.split_k > 1 else (0, 0)


def every_share_waits(split_k: int, KB: int, step: int) -> bool:
    """Tell whether each program has a block of K: only then does it wait for the kernel before it.

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
