"""Ablations and references: kernels that the product is measured against, cut into programs as it is."""

from __future__ import annotations

import torch
import triton

from tinygemm.kernel import launches
from tinygemm.kernel.configs import LaunchConfig
from tinygemm.kernel.gemm import check
from tinygemm.kernel.launch import Launch, Work, call
from tinygemm.kernel.quant import TILE_K, TILE_N, PackedInt4
from tinygemm.kernel.triton import reference as kernels


def load_only(w: PackedInt4, config: LaunchConfig, dependent_launch: bool = True) -> torch.Tensor:
    """Read the packed weight as the splitk kernel does and compute nothing: the ceiling of every INT4 kernel.

    dependent_launch: as in gemm; without it, each call reads only once the one before has finished
    returns: [split_k, N] int32: XOR of the words and scale bits that a share of a row read (see `load_only_reference`)
    raises:  ValueError for asymmetric weights and for shapes that do not fill the tiles
    """
    key = ("load-only", w.qweight.get_device(), w.N, w.K, w.group_size, w.zeros is None, config, dependent_launch)
    return call(key, (w.qweight, w.scales), _load_only, w, config, dependent_launch)


def load_only_reference(w: PackedInt4) -> torch.Tensor:
    """The XOR of the K slices of `load_only`: [N] int32, every word and scale of a row."""
    rows = w.qweight.permute(0, 2, 1, 3).reshape(-1, w.qweight.shape[1] * 16)[: w.N]
    scales = w.scales.view(torch.int16).int().t() if w.group_size != -1 else rows[:, :0]
    values = torch.cat([rows, scales], 1)
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        tail = values[:, 2 * half :]
        values = torch.cat([values[:, :half] ^ values[:, half : 2 * half], tail], 1)
    return values[:, 0]


def ablated_gemm(
    x: torch.Tensor,
    w: PackedInt4,
    config: LaunchConfig,
    dequant: str = "fast",
    dependent_launch: bool = True,
    add_warps: bool = True,
) -> torch.Tensor:
    """The tuned kernel with one thing done otherwise: what that thing costs is what the ablation saves or loses.

    x:         [M, K]  float16
    config:    of splitk or of pipelined (form ring)
    dequant:   "fast"; "naive": shift, mask and convert; "none": the words' own bits stand in for the weight
    dependent_launch: as for `gemm`
    add_warps: False: add the warps' shares with tl.sum (splitk)
    returns:   [M, N]  float16: the product with w, or with `raw_weight(w)` where dequant is "none"
    raises:    ValueError for a step that the kernel does not have, and for x that pipelined cannot read where it lies
    """
    if dequant not in ("fast", "naive", "none"):
        raise ValueError(f"dequant must be fast, naive or none, got {dequant!r}")
    otherwise = (dequant, dependent_launch, add_warps)
    weight = (w.N, w.K, w.group_size, w.zeros is None)
    key = ("twin", x.shape, x.stride(), x.dtype, x.get_device(), weight, config, otherwise)
    return call(key, (x, *launches.stored(w)), _ablated, x, w, config, *otherwise)


def raw_weight(w: PackedInt4) -> torch.Tensor:
    """The weight [N, K] float64 that `ablated_gemm` multiplies with when it does not dequantise.

    k = 32 p + 2 j + h is half h of word j, its exponent cut.
    """
    n_tiles, k_tiles = w.qweight.shape[:2]
    halves = (w.qweight & 0x3FFF3FFF).view(torch.int16).view(torch.float16)  # [n, k, row, (j, h)]
    blocks = halves.reshape(n_tiles, k_tiles, TILE_N, 1, 32).expand(-1, -1, -1, 4, -1)
    codes = blocks.permute(0, 2, 1, 3, 4).reshape(n_tiles * TILE_N, k_tiles * TILE_K)[: w.N, : w.K]
    return codes.double() * w.scales.double().repeat_interleave(w.group_length, 0).t()


def fp16_gemm(
    x: torch.Tensor, weight: torch.Tensor, config: LaunchConfig, dependent_launch: bool = True
) -> torch.Tensor:
    """The splitk kernel in FP16: x [M, K] float16, weight [N, K] float16 contiguous, returns [M, N] float16.

    dependent_launch: as in gemm
    """
    where = (x.get_device(), weight.shape, weight.get_device())
    key = ("fp16", x.shape, x.stride(), x.dtype, *where, config, dependent_launch)
    return call(key, (x, weight), _fp16, x, weight, config, dependent_launch)


def empty_kernel(dependent_launch: bool = False) -> None:
    """Launch a kernel that does nothing: what one launch costs.

    dependent_launch: with the attribute of dependent launch, on GPUs that know it
    """
    pdl = dependent_launch and launches.dependent_launch(torch.device("cuda", torch.cuda.current_device()))
    kernels.kernel_empty[(1,)](num_warps=1, enable_fp_fusion=True, **({"launch_pdl": True} if pdl else {}))


# --- what they are launched with --------------------------------------------------------------------------------------


def _load_only(w: PackedInt4, config: LaunchConfig, dependent_launch: bool) -> Work:
    KB = w.qweight.shape[1]
    if w.zeros is not None or not launches.fills_tiles(w.N, w.K, config):
        raise ValueError(f"load_only reads symmetric weights whose N and K fill the tiles of {config}")
    pdl = dependent_launch and launches.dependent_launch(w.device)
    pdl = pdl and launches.every_share_waits(config.split_k, KB, config.num_warps)
    constants = {
        "SCALE_ROWS": 0 if w.group_size == -1 else 128 // w.group_length, "BLOCK_N": config.block_n,
        "WARPS_K": config.num_warps, "SPLIT_K": config.split_k, "BLOCKS_IN_FLIGHT": launches.steps(config), "PDL": pdl,
    }  # fmt: skip
    grid = (w.N // config.block_n, config.split_k, 1)
    launch = Launch(kernels.kernel_load_only_int4, grid, (w.N, KB), constants, launches.options(config, pdl))
    return Work((config.split_k, w.N), torch.int32, (launch,))


def _ablated(x: torch.Tensor, w: PackedInt4, config: LaunchConfig, dequant: str, pdl: bool, add_warps: bool) -> Work:
    check(x, w)
    M, pdl = x.shape[0], pdl and launches.dependent_launch(x.device)
    stride_xm = x.stride(0) if M > 1 else 0
    if not launches.takes_x_as_it_lies(config, x.data_ptr(), stride_xm):  # a copy would be timed as well
        raise ValueError(f"every row of x must start at a multiple of 16 bytes for form {config.form}")
    return Work((M, w.N), x.dtype, launches.product(config, M, w, x.stride(0), pdl, dequant, add_warps))


def _fp16(x: torch.Tensor, weight: torch.Tensor, config: LaunchConfig, dependent_launch: bool) -> Work:
    M, K = x.shape
    N, KB = weight.shape[0], triton.cdiv(K, TILE_K)
    if M > config.block_m:
        raise ValueError(f"x must have at most block_m={config.block_m} rows, got M={M}")
    pdl = dependent_launch and launches.dependent_launch(x.device)
    pdl = pdl and launches.every_share_waits(config.split_k, KB, config.num_warps)
    constants = {
        "FULL_TILES": launches.fills_tiles(N, K, config),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "WARPS_K": config.num_warps, "SPLIT_K": config.split_k,
        "BLOCKS_IN_FLIGHT": launches.steps(config), "PDL": pdl,
    }  # fmt: skip
    grid, numbers = (triton.cdiv(N, config.block_n), config.split_k, 1), (M, N, K, KB, x.stride(0))
    options, space = launches.options(config, pdl), launches.shares(config, M, N)
    return Work((M, N), x.dtype, (Launch(kernels.kernel_gemm_fp16_splitk, grid, numbers, constants, options, space),))
