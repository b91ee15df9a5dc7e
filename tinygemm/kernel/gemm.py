"""The product `x @ weight.T` with a packed weight: check, select a launch config, launch."""

from __future__ import annotations

import functools
import operator
import os

import torch
import triton

from tinygemm.hardware import gpu_key
from tinygemm.kernel import triton_kernels as kernels
from tinygemm.kernel.configs import LaunchConfig, select
from tinygemm.kernel.quant import TILE_K, TILE_N, PackedInt4
from tinygemm.problem import GemmProblem

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def gemm(
    x: torch.Tensor, w: PackedInt4, config: LaunchConfig | None = None, dependent_launch: bool = True
) -> torch.Tensor:
    """Multiply FP16 activations by a packed INT4 weight.

    x:       [..., K]  float16, contiguous in K, on the device of `w`
    w:       PackedInt4 of logical shape [N, K]
    config:  a launch config to force; None takes the static table of this GPU
    dependent_launch: start while the kernel before still runs, on GPUs that can. The kernel waits for x, but requests
             its first weights before that: `w` must have been complete when the kernel before this one began
    returns: [..., N]  float16, accumulated in float32
    raises:  TypeError or ValueError naming the argument and the constraint it breaks
    """
    _check(x, w)
    rows = x if x.dim() == 2 else x.reshape(-1, w.K)
    if config is None:
        config = _selected(rows.shape[0], w.N, w.K, w.group_size, _gpu_key(x.device))
    if config.form not in _LAUNCH:
        raise ValueError(
            f"config must be of a form that computes the product ({', '.join(_LAUNCH)}), got {config.form}"
        )
    out = torch.empty((rows.shape[0], w.N), dtype=x.dtype, device=x.device)
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            _LAUNCH[config.form](rows, w, out, config, dependent_launch)
    else:
        _LAUNCH[config.form](rows, w, out, config, dependent_launch)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], w.N)


def dequantize_fp16(w: PackedInt4) -> torch.Tensor:
    """The weight as float16 [N, K], by a Triton kernel: the first half of the naive route."""
    weight = torch.empty(w.shape, dtype=torch.float16, device=w.device)
    KB = w.qweight.shape[1]
    block_n = 32
    kernels.kernel_dequantize_int4[(triton.cdiv(w.N, block_n), KB)](
        w.qweight, w.scales, w.zeros, weight, w.N, w.K, KB, **_format(w), BLOCK_N=block_n, num_warps=4
    )
    return weight


def fused_gemm(x: torch.Tensor, w: PackedInt4) -> torch.Tensor:
    """As `gemm`, but never dequantised first, however many rows x has."""
    return gemm(x, w)


def load_only(w: PackedInt4, config: LaunchConfig, dependent_launch: bool = True) -> torch.Tensor:
    """Read the packed weight as the splitk form does and compute nothing: the ceiling of every INT4 kernel.

    dependent_launch: as for `gemm`; calls that do may overlap
    returns: [split_k, N] int32: XOR of the words and scale bits that a share of a row read (see `load_only_reference`)
    raises:  ValueError for asymmetric weights and for shapes that do not fill the tiles
    """
    KB = w.qweight.shape[1]
    if w.zeros is not None or not _fills_tiles(w, config):
        raise ValueError(f"load_only reads symmetric weights whose N and K fill the tiles of {config}")
    checksum = torch.empty((config.split_k, w.N), dtype=torch.int32, device=w.device)
    pdl = dependent_launch and _dependent_launch(w.device)
    kernels.kernel_load_only_int4[(w.N // config.block_n, config.split_k)](
        w.qweight, w.scales, checksum, w.N, KB,
        SCALE_ROWS=0 if w.group_size == -1 else 128 // w.group_length, BLOCK_N=config.block_n,
        WARPS_K=config.num_warps, SPLIT_K=config.split_k, STEPS=_steps(config), PDL=pdl,
        num_warps=config.num_warps, **_pdl_option(pdl),
    )  # fmt: skip
    return checksum


def load_only_reference(w: PackedInt4) -> torch.Tensor:
    """What the shares of `load_only` XOR to: [N] int32, every word and scale of a row."""
    rows = w.qweight.permute(0, 2, 1, 3).reshape(-1, w.qweight.shape[1] * 16)[: w.N]
    scales = w.scales.view(torch.int16).int().t() if w.group_size != -1 else rows[:, :0]
    values = torch.cat([rows, scales], 1)
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        tail = values[:, 2 * half :]
        values = torch.cat([values[:, :half] ^ values[:, half : 2 * half], tail], 1)
    return values[:, 0]


def twin_gemm(x: torch.Tensor, w: PackedInt4, config: LaunchConfig, dequant: str = "lop3") -> torch.Tensor:
    """The splitk form with another dequantisation: "lop3" is `gemm`, "none" is `raw_gemm`."""
    if dequant not in ("lop3", "none"):
        raise ValueError(f"dequant must be lop3 or none, got {dequant!r}")
    return gemm(x, w, config) if dequant == "lop3" else raw_gemm(x, w, config)


def raw_gemm(x: torch.Tensor, w: PackedInt4, config: LaunchConfig) -> torch.Tensor:
    """The splitk form with its dequantisation left out: what `gemm` would cost if unpacking were free.

    x:       [M, K]  float16
    config:  of form splitk
    returns: [M, N]  float16, the product with `raw_weight(w)`
    """
    _check(x, w)
    if config.form != "splitk":
        raise ValueError(f"config must be of form splitk, got {config.form}")
    out = torch.empty((x.shape[0], w.N), dtype=x.dtype, device=x.device)
    _launch_splitk(x, w, out, config, raw=True)
    return out


def raw_weight(w: PackedInt4) -> torch.Tensor:
    """What `raw_gemm` takes for the weight, [N, K] float64: k = 32 p + 2 j + h is half h of word j, exponent cut."""
    n_tiles, k_tiles = w.qweight.shape[:2]
    halves = (w.qweight & 0x3FFF3FFF).view(torch.int16).view(torch.float16)  # [n, k, row, (j, h)]
    blocks = halves.reshape(n_tiles, k_tiles, TILE_N, 1, 32).expand(-1, -1, -1, 4, -1)
    codes = blocks.permute(0, 2, 1, 3, 4).reshape(n_tiles * TILE_N, k_tiles * TILE_K)[: w.N, : w.K]
    return codes.double() * w.scales.double().repeat_interleave(w.group_length, 0).t()


def fp16_gemm(x: torch.Tensor, weight: torch.Tensor, config: LaunchConfig) -> torch.Tensor:
    """The FP16 twin of the splitk form: x [M, K] float16, weight [N, K] float16 contiguous, returns [M, N] float16."""
    M, K = x.shape
    N = weight.shape[0]
    if M > config.block_m:
        raise ValueError(f"x must have at most block_m={config.block_m} rows, got M={M}")
    out = torch.empty((M, N), dtype=x.dtype, device=x.device)
    KB = triton.cdiv(K, 128)
    partial, counter = _workspace(M, N, config, x.device)
    even = N % config.block_n == 0 and K % config.block_k == 0
    pdl = _dependent_launch(x.device)
    kernels.kernel_gemm_fp16_splitk[(triton.cdiv(N, config.block_n), config.split_k)](
        x, weight, out, partial, counter, M, N, K, KB, x.stride(0), EVEN=even,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, WARPS_K=config.num_warps, SPLIT_K=config.split_k,
        STEPS=_steps(config), PDL=pdl, num_warps=config.num_warps, **_pdl_option(pdl),
    )  # fmt: skip
    return out


def empty_kernel() -> None:
    """Launch a kernel that does nothing: what one launch costs."""
    kernels.kernel_empty[(1,)](num_warps=1)


# --- one launcher per form --------------------------------------------------------------------------------------------


def _launch_splitk(x, w, out, config, dependent_launch=True, raw=False) -> None:
    M, N, K, pdl = x.shape[0], w.N, w.K, dependent_launch and _dependent_launch(x.device)
    grid, constants, options = _splitk_setting(config, N, K, w.group_size, w.zeros is not None, raw, pdl)
    for start in range(0, M, config.block_m):
        rows, target, count = x, out, M
        if M > config.block_m:
            rows, target = x[start : start + config.block_m], out[start : start + config.block_m]
            count = rows.shape[0]
        partial, counter = _workspace(count, N, config, x.device)
        pointers = (rows, w.qweight, w.scales, w.zeros, target, partial, counter)
        numbers = (count, N, K, w.qweight.shape[1], rows.stride(0))
        _run(kernels.kernel_gemm_packed_int4_splitk, grid, pointers, numbers, constants, options)


@functools.cache
def _splitk_setting(config: LaunchConfig, N: int, K: int, group_size: int, has_zeros: bool, raw: bool, pdl: bool):
    """Grid, compile-time constants (in the order of the signature) and compiler options of the splitk kernel."""
    constants = {
        "GROUP": 128 if group_size == -1 else group_size, "WHOLE_K": group_size == -1, "HAS_ZEROS": has_zeros,
        "RAW": raw, "EVEN": N % config.block_n == 0 and K % config.block_k == 0,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "WARPS_K": config.num_warps, "SPLIT_K": config.split_k,
        "STEPS": _steps(config), "PDL": pdl,
    }  # fmt: skip
    grid = (triton.cdiv(N, config.block_n), config.split_k, 1)
    return grid, constants, {"num_warps": config.num_warps, **_pdl_option(pdl)}


_compiled: dict[tuple, object] = {}


def _run(kernel, grid, pointers, numbers, constants, options) -> None:
    """kernel[grid](*pointers, *numbers, **constants, **options), without most of Triton's own cost per call.

    Triton looks at every argument of every call to find the binary that fits. That binary is remembered here by all it
    depends on: the constants (one dict per setting, kept for good, so its identity stands for them), the numbers but
    M, and the alignment of the pointers.
    """
    aligned = not functools.reduce(operator.or_, (p.data_ptr() for p in pointers if p is not None)) % 16
    key = (id(constants), numbers[1:], pointers[0].device.index)
    if aligned and (binary := _compiled.get(key)) is not None:
        binary[grid](*pointers, *numbers, *constants.values())
        return
    binary = kernel[grid](*pointers, *numbers, **constants, **options)
    if aligned and binary is not None and pointers[0].device.type == "cuda":
        _compiled[key] = binary


def _launch_gemv(x, w, out, config, dependent_launch=True) -> None:
    if x.shape[0] != 1 or w.group_length < 128 or w.K % 2:
        raise ValueError(
            f"gemv serves one token, even K and groups of 128 or the whole K, not M={x.shape[0]}, {w.group_size=}"
        )
    if x.data_ptr() % 4:  # the kernel reads pairs of x as one word
        x = x.clone()
    KB = w.qweight.shape[1]
    partial, counter = _workspace(1, w.N, config, x.device)
    layout = _format(w)
    pdl = dependent_launch and _dependent_launch(x.device)
    kernels.kernel_gemv_packed_int4[(triton.cdiv(w.N, config.block_n), config.split_k)](
        x, w.qweight, w.scales, w.zeros, out, partial, counter, w.N, w.K, KB,
        WHOLE_K=layout["WHOLE_K"], HAS_ZEROS=layout["HAS_ZEROS"], EVEN=_fills_tiles(w, config),
        BLOCK_N=config.block_n, BLOCKS_K=config.block_k // 128, SPLIT_K=config.split_k,
        NUM_STAGES=config.num_stages, PDL=pdl, num_warps=config.num_warps, **_pdl_option(pdl),
    )  # fmt: skip


def _launch_static(x, w, out, config, dependent_launch=False) -> None:
    M = x.shape[0]
    grid = (triton.cdiv(w.N, config.block_n), triton.cdiv(M, config.block_m))
    kernels.kernel_gemm_packed_int4_static[grid](
        x, w.qweight, w.scales, w.zeros, out, M, w.N, w.K, w.qweight.shape[1], x.stride(0), **_format(w),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


_LAUNCH = {"splitk": _launch_splitk, "gemv": _launch_gemv, "static": _launch_static}


# --- what the launchers share -----------------------------------------------------------------------------------------


def _format(w: PackedInt4) -> dict:
    """The constants of a kernel that describe the packed weight."""
    return {
        "GROUP": 128 if w.group_size == -1 else w.group_size,
        "WHOLE_K": w.group_size == -1,
        "HAS_ZEROS": w.zeros is not None,
    }


def _steps(config: LaunchConfig) -> int:
    """Blocks of 128 k that one warp requests at once."""
    return config.block_k // (128 * config.num_warps)


def _fills_tiles(w: PackedInt4, config: LaunchConfig) -> bool:
    return w.N % config.block_n == 0 and w.K % config.block_k == 0


def _workspace(M: int, N: int, config: LaunchConfig, device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Partial sums and arrival counters of one call; nothing where one program walks the whole K."""
    if config.split_k == 1:
        return None, None
    partial = torch.empty((config.split_k, M, N), dtype=torch.float32, device=device)
    return partial, _counters(triton.cdiv(N, config.block_n), device)


CAPTURED_COUNTERS = 1 << 20  # 4 MB per GPU: thousands of captured calls
_stream_counters: dict[tuple[int, int], torch.Tensor] = {}
_captured_counters: dict[int, list[torch.Tensor]] = {}  # device -> what is left of its pool


def _counters(count: int, device: torch.device) -> torch.Tensor:
    """Arrival counters that are zero now and that the kernel leaves at zero, never shared by calls that may overlap.

    Eager calls on one stream run one after the other and share a set per stream. A captured call takes a set of its own
    out of a pool and never gives it back, for its graph may be replayed at any time beside anything else; when the pool
    is used up (or the first call of all is a captured one), the graph zeroes its counters itself, one node more.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    count += -count % 4  # every set starts 16-byte aligned: another alignment would be another compiled kernel
    if torch.cuda.is_current_stream_capturing():
        pool = _captured_counters.get(device.index, [torch.empty(0)])
        if pool[0].numel() < count:
            return torch.zeros(count, dtype=torch.int32, device=device)
        taken, pool[0] = pool[0][:count], pool[0][count:]
        return taken
    if device.index not in _captured_counters:
        _captured_counters[device.index] = [torch.zeros(CAPTURED_COUNTERS, dtype=torch.int32, device=device)]
        torch.cuda.synchronize(device)  # once per process: every stream must see the zeros
    key = (device.index, torch._C._cuda_getCurrentRawStream(device.index))  # what torch.cuda.current_stream wraps
    counters = _stream_counters.get(key)
    if counters is None or counters.numel() < count:
        counters = _stream_counters[key] = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
    return counters[:count]


def forget_captured_counters() -> None:
    """Start new pools of counters: for a caller who knows that no graph captured so far will be replayed again."""
    _captured_counters.clear()


def _dependent_launch(device: torch.device) -> bool:
    """Programmatic dependent launch needs Hopper or newer; elsewhere its instructions do not exist."""
    return device.type == "cuda" and not INTERPRETED and _capability(device.index) >= (9, 0)


def _pdl_option(pdl: bool) -> dict:
    return {"launch_pdl": True} if pdl else {}


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _gpu_key(device: torch.device) -> str:
    """The key of the GPU of a tensor; the interpreter on a CPU tunes for nobody and takes the H200's table."""
    return gpu_key(torch.cuda.get_device_name(device)) if device.type == "cuda" else "h200"


@functools.lru_cache(maxsize=4096)
def _selected(M: int, N: int, K: int, group_size: int, gpu: str) -> LaunchConfig:
    return select(GemmProblem(M, N, K, group_size), gpu)[0]


def _check(x: torch.Tensor, w: PackedInt4) -> None:
    if x.dtype != torch.float16:
        raise TypeError(f"x must be float16, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != w.K:
        raise ValueError(f"x must be [..., K] with K={w.K}, got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must have at least one row, got shape {tuple(x.shape)}")
    if x.stride(-1) != 1 and w.K > 1:
        raise ValueError(f"x must be contiguous in K, got strides {x.stride()}; call x.contiguous()")
    if x.device != w.device:
        raise ValueError(f"x is on {x.device} and w on {w.device}; they must be on one device")
    if x.device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"x is on {x.device}; the kernels run on a CUDA GPU, or anywhere with TRITON_INTERPRET=1")
