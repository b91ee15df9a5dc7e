"""The product `x @ weight.T` with a packed weight: check, select how, launch; and the same as an operator of torch."""

from __future__ import annotations

import contextlib
import functools
import itertools

import torch

from tinygemm.hardware import device_key
from tinygemm.kernel import fastpath
from tinygemm.kernel.configs import LaunchConfig, select
from tinygemm.kernel.cut import rows
from tinygemm.kernel.quant import TILE_N, PackedInt4, dequantize
from tinygemm.problem import GemmProblem

try:
    from triton.runtime.errors import InterpreterError

    from tinygemm.kernel import launch, launches
except ModuleNotFoundError:  # macOS and Windows have no Triton
    if fastpath.triton is not None:
        raise
    launch = launches = None

DTYPES = (torch.float16, torch.bfloat16)  # of x: what the kernels multiply
DEQUANTISED_AT_ONCE = 2**22  # weights, where no kernel runs: 16 MiB in float32


def gemm(
    x: torch.Tensor, w: PackedInt4, config: LaunchConfig | None = None, dependent_launch: bool = True
) -> torch.Tensor:
    """Multiply 16-bit activations by a packed INT4 weight.

    x:       [..., K]  float16 or bfloat16, contiguous in K, on the device of `w`; may have no rows
    w:       PackedInt4 of logical shape [N, K]
    config:  a launch config to force; None takes the static table of this GPU, by which many rows of x are multiplied
             with the dequantised weight
    dependent_launch: start while the kernel before still runs, on GPUs that can. The kernel waits for x, but requests
             its first weights before that: `w` must have been complete when the kernel before this one began
    returns: [..., N]  dtype of x, accumulated in float32
    raises:  TypeError or ValueError naming the argument and the constraint it breaks; RuntimeError where a derivative
             by x is asked for: there is none

    Without a CUDA GPU, or without Triton, no kernel runs: each call dequantises the weight in float32, some rows at a
    time, which is slow, and the product in float32 is rounded to the dtype of x. What a GPU refuses is refused there,
    too, x in float32 for one: a model that runs on a laptop runs on a GPU.
    """
    if type(w) is not PackedInt4 or type(x) not in _REAL_TENSORS:
        _check_types(x, w)
    if _differentiates(x):
        raise RuntimeError("gemm has no backward: call it under torch.inference_mode() or with x.detach()")
    if torch.compiler.is_compiling() or fastpath.traced(x):
        if config is not None:
            raise ValueError("config cannot be forced while torch traces the call; leave it to the static table")
        return torch.ops.tinygemm.gemm(x, w.qweight, w.scales, w.zeros, w.N, w.K, w.group_size, dependent_launch)
    return _gemm(x, w, config, dependent_launch)


def fused_gemm(x: torch.Tensor, w: PackedInt4) -> torch.Tensor:
    """`gemm` by the fused kernel, however many rows x has: what dequantising first is compared with."""
    _check_operands(x, w)
    if x.numel() == 0 or not _has_kernels(x.device):
        return gemm(x, w)
    return gemm(x, w, _config(x, w, "fused"))


def dequantize_fp16(w: PackedInt4, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """The weight as [N, K] of `dtype`, float16 or bfloat16, by a Triton kernel: the first half of the naive route."""
    key = ("dequantise", dtype, w.qweight.device, w.N, w.K, w.group_size, w.zeros is None)
    with _interpreter_errors():
        return launch.call(
            key, (w.qweight, w.scales, w.zeros), lambda: launch.Work(w.shape, dtype, (launches.dequantise(w),))
        )


def check(x: torch.Tensor, w: PackedInt4) -> None:
    """Raise a TypeError or ValueError that names what keeps a kernel from multiplying x [..., K] by w."""
    _check_operands(x, w)
    if x.numel() == 0:
        raise ValueError(f"x must have at least one row, got shape {tuple(x.shape)}")
    if not _has_kernels(x.device):
        raise ValueError(f"x is on {x.device}; the kernels run on a CUDA GPU, with Triton")


def _check_types(x, w) -> None:
    """Raise a TypeError that says what to pass; torch.fx puts a proxy in the place of either."""
    if not isinstance(x, (torch.Tensor, torch.fx.Proxy)):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not isinstance(w, (PackedInt4, torch.fx.Proxy)):
        packed = isinstance(getattr(w, "weight", None), PackedInt4)
        advice = "pass layer.weight" if packed else "pack a matrix with tinygemm.quantize(weight)"
        raise TypeError(f"w must be a PackedInt4, got {type(w).__name__}; {advice}")


def _check_operands(x: torch.Tensor, w: PackedInt4) -> None:
    _check_types(x, w)
    if x.dtype not in DTYPES:
        raise TypeError(
            f"x must be {' or '.join(str(t).removeprefix('torch.') for t in DTYPES)}, got {x.dtype}; "
            "cast x, or the whole model with .half() or .bfloat16()"
        )
    if x.dim() == 0 or x.shape[-1] != w.K:
        raise ValueError(f"x must be [..., K] with K={w.K}, got shape {tuple(x.shape)}")
    if x.stride(-1) != 1 and w.K > 1 and x.numel():
        raise ValueError(f"x must be contiguous in K, got strides {x.stride()}; call x.contiguous()")
    if x.device != w.device:
        raise ValueError(f"x is on {x.device} and w on {w.device}; they must be on one device")


def _has_kernels(device: torch.device) -> bool:
    return launches is not None and (device.type == "cuda" or (launches.INTERPRETED and device.type == "cpu"))


def _gemm(x, w, config, dependent_launch) -> torch.Tensor:
    """`gemm` of real tensors. The key is all that the checks, the selection and the launch look at.

    Dtypes, shapes and strides of the packed tensors are not in it: PackedInt4 checked them, and reading them takes a
    microsecond of every call.
    """
    key = (
        "gemm", x.shape, x.is_contiguous() or x.stride(), x.dtype, x.device, w.qweight.device,
        w.N, w.K, w.group_size, w.zeros is None, config, dependent_launch,
    )  # fmt: skip
    inputs = (x, w.qweight, w.scales, w.zeros)
    out = None if launch is None else launch.replay(key, inputs)
    if out is not None:
        return out
    _check_operands(x, w)
    M = x.numel() // w.K
    if M == 0:
        return x.new_empty((*x.shape[:-1], w.N))
    if not _has_kernels(x.device):
        if config is not None:
            raise ValueError(f"config must be None where x is on {x.device}: kernels need a CUDA GPU and Triton")
        return _by_dequantising(x, w)
    if config is None:
        config = _config(x, w)
    if config.form == "dequantise":
        return _linear(x, dequantize_fp16(w, x.dtype))
    stride_xm = _row_stride(x)
    if not launches.takes_x_as_it_lies(config, x.data_ptr(), stride_xm or 0):
        return _gemm(x.clone(memory_format=torch.contiguous_format), w, config, dependent_launch)
    pdl = dependent_launch and launches.dependent_launch(x.device)
    described = launches.product(config, M, w, w.K if stride_xm is None else stride_xm, pdl)
    with _interpreter_errors():
        return launch.start(key, inputs, launch.Work((*x.shape[:-1], w.N), x.dtype, described, copy=stride_xm is None))


def _by_dequantising(x: torch.Tensor, w: PackedInt4) -> torch.Tensor:
    """The product without a kernel, some tiles of rows at once: a whole weight in float32 is eight times as large."""
    step = max(1, DEQUANTISED_AT_ONCE // (w.K * TILE_N)) * TILE_N
    blocks = [rows(w, first, min(first + step, w.N)) for first in range(0, w.N, step)]
    x32 = x.float()
    return torch.cat([_linear(x32, dequantize(block, torch.float32)) for block in blocks], -1).to(x.dtype)


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T in the dtype that both have: autocast would choose another."""
    with torch.autocast(x.device.type, enabled=False) if x.device.type != "meta" else contextlib.nullcontext():
        return torch.nn.functional.linear(x, weight)


@contextlib.contextmanager
def _interpreter_errors():
    """Say in words that Triton's interpreter does not know what the kernels are made of."""
    try:
        yield
    except InterpreterError as error:
        if "inline_asm" not in str(error):
            raise
        raise RuntimeError(
            "Triton's interpreter cannot run these kernels, which contain assembly: unset TRITON_INTERPRET, and a "
            "product of CPU tensors is computed without them"
        ) from None


def _row_stride(x: torch.Tensor) -> int | None:
    """Elements from one row of x [..., K] to the next, or None where rows do not lie at equal distances."""
    K = x.shape[-1]
    axes = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    if not axes:
        return K  # one row: whatever its stride says, nobody walks it, and one value means one compiled kernel
    for (_, outer), (size, inner) in itertools.pairwise(axes):
        if outer != size * inner:
            return None
    return axes[-1][1]


@functools.cache
def _gpu_key(device: torch.device) -> str:
    """The key of the GPU of a tensor; the interpreter on a CPU tunes for nobody and takes the H200's table."""
    return device_key(device) if device.type == "cuda" else "h200"


def _config(x: torch.Tensor, w: PackedInt4, form: str | None = None) -> LaunchConfig:
    problem = GemmProblem(x.numel() // w.K, w.N, w.K, w.group_size)
    return _selected(problem, _gpu_key(x.device), form, w.zeros is None, x.dtype == torch.float16)


@functools.lru_cache(maxsize=4096)
def _selected(problem: GemmProblem, gpu: str, form: str | None, symmetric: bool, half: bool) -> LaunchConfig:
    return select(problem, gpu, form, symmetric, half)[0]


# --- as an operator, for torch.compile, torch.export and other tracers ------------------------------------------------


_REAL_TENSORS = (torch.Tensor, torch.nn.Parameter)


def _differentiates(x: torch.Tensor) -> bool:
    """Tell whether torch follows x for a derivative, backward or forward."""
    if x.requires_grad is True and torch.is_grad_enabled():  # what torch.fx puts in the place of x has no truth value
        return True
    return fastpath.has_tangent(x)


@torch.library.custom_op("tinygemm::gemm", mutates_args=())
def _operator(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group_size: int,
    dependent_launch: bool = True,
) -> torch.Tensor:
    return _gemm(x, PackedInt4(qweight, scales, zeros, N, K, group_size), None, dependent_launch)


@_operator.register_fake
def _(x, qweight, scales, zeros, N, K, group_size, dependent_launch=True):
    return x.new_empty((*x.shape[:-1], N))


@_operator.register_vmap
def _(info, in_dims, x, qweight, scales, zeros, N, K, group_size, dependent_launch=True):
    """A batch of activations is more rows of them."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        raise ValueError("vmap can batch x only: a packed weight is multiplied as a whole")
    rows = x.movedim(in_dims[0], 0).contiguous()
    return torch.ops.tinygemm.gemm(rows, qweight, scales, zeros, N, K, group_size, dependent_launch), 0
