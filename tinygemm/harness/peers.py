"""Other people's INT4 kernels: what each needs, how its weight is stored, and how it is called."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tinygemm.hardware import GPUS
from tinygemm.harness import verify
from tinygemm.harness.variant import Variant

if TYPE_CHECKING:
    import torch

ATEN_INNER_K_TILES = (2, 4, 8)
NF4_BLOCKSIZE = 128
MARLIN_TILES = ((-1, -1), (64, 256))


# --- aten::_weight_int4pack_mm, the kernel inside torch -------------------------------------------------------------


def aten_unsupported(problem, symmetric) -> str | None:
    if problem.group_size == -1:
        return "aten-int4mm takes group sizes 32, 64 and 128, not -1"
    if problem.N % 8 or problem.K % 128:
        return f"aten-int4mm needs N divisible by 8 and K by 128, got N={problem.N} K={problem.K}"
    return None


def aten_variants(problem, gpu, symmetric=True) -> list[Variant]:
    bind = aten_bind(problem.group_size)
    return [
        Variant(f"inner_k_tiles={tiles}", f"aten-{tiles}", aten_build(tiles), bind)
        for tiles in ATEN_INNER_K_TILES
        if problem.K % (16 * tiles) == 0
    ]


def aten_bits(problem, symmetric) -> float:
    return 4 + 32 / problem.group_length  # a BF16 scale and a BF16 zero per group


def aten_build(inner_k_tiles: int):
    """A function PackedInt4 -> (packed int32, scales and zeros [K // group_size, N, 2] bfloat16)."""

    def build(packed):
        import torch

        from tinygemm.kernel import quant

        codes = quant.unpack(packed)
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
        # the kernel computes (code - 8) * scale + zero
        scales = packed.scales
        zeros = torch.zeros_like(scales) if packed.zeros is None else (8 - packed.zeros.to(scales.dtype)) * scales
        scales_and_zeros = torch.stack([scales, zeros], 2).bfloat16().contiguous()
        return torch.ops.aten._convert_weight_to_int4pack(pairs, inner_k_tiles), scales_and_zeros

    return build


def aten_bind(group_size: int):
    def bind(x, weight):
        import torch

        words, scales_and_zeros = weight
        return lambda: torch.ops.aten._weight_int4pack_mm(x, words, group_size, scales_and_zeros)

    return bind


# --- GemLite --------------------------------------------------------------------------------------------------------


def gemlite_unsupported(problem, symmetric) -> str | None:
    if not find_spec("gemlite"):
        return "gemlite is not installed (pip install gemlite==0.6.0.post2)"
    return None


def gemlite_variants(problem, gpu, symmetric=True) -> list[Variant]:
    """Its kernels for few tokens: the one that it would take itself (up to 4 tokens a GEMV), and GEMM_SPLITK.

    Its authors ship configs from a full search for some GPUs (an H100, say), and these are used. Elsewhere the first
    call of each kernel searches the shorter list, which is its default.
    """
    kinds = ("GEMV_REVSPLITK", "GEMM_SPLITK") if problem.M <= 4 else ("GEMM_SPLITK",)
    # it tunes itself by compiling every config that it has for a problem
    return [
        Variant(f"gemlite {kind}", "gemlite", gemlite_build, gemlite_bind(kind), kernel=(kind, problem))
        for kind in kinds
    ]


def gemlite_build(packed):
    from gemlite import DType, GemLiteLinear, set_kernel_caching

    from tinygemm.kernel import quant

    set_kernel_caching(True)  # keep the compiled kernels at hand: less host time in its eager calls
    layer = GemLiteLinear(
        4, group_size=packed.group_length, in_features=packed.K, out_features=packed.N,
        input_dtype=DType.FP16, output_dtype=DType.FP16,
    )  # fmt: skip
    scales = packed.scales.t().reshape(-1, 1).contiguous()
    zeros = 8 if packed.zeros is None else packed.zeros.t().reshape(-1, 1).to(scales.dtype).contiguous()
    layer.pack(quant.unpack(packed), scales, zeros, None)
    return layer


def gemlite_bind(kind: str):
    """kind: one of GemLite's matmul types."""

    def bind(x, layer):
        return lambda: layer.forward_manual(x, matmul_type=kind)

    return bind


# --- bitsandbytes NF4: another 4-bit code, shown for context --------------------------------------------------------


def nf4_unsupported(problem, symmetric) -> str | None:
    if not find_spec("bitsandbytes"):
        return "bitsandbytes is not installed (pip install bitsandbytes==0.50.2)"
    if problem.K % NF4_BLOCKSIZE:
        return f"bitsandbytes-nf4 needs K divisible by its block of {NF4_BLOCKSIZE}, got K={problem.K}"
    return None


def nf4_variants(problem, gpu, symmetric=True) -> list[Variant]:
    return [Variant("", "nf4", nf4_build, nf4_bind((problem.N, problem.K)))]


def nf4_bits(problem, symmetric) -> float:
    return 4 + 32 / NF4_BLOCKSIZE  # an FP32 absmax per block


def nf4_build(packed):
    """(codes, absmax, code book): the FP16 weight quantised once more, since NF4 cannot hold INT4 values exactly."""
    import bitsandbytes

    from tinygemm.kernel import quant

    codes, state = bitsandbytes.functional.quantize_4bit(
        quant.dequantize(packed).contiguous(), blocksize=NF4_BLOCKSIZE, quant_type="nf4", compress_statistics=False
    )
    return codes, state.absmax, state.code


def nf4_bind(shape: tuple[int, int]):
    def bind(x, weight):
        import bitsandbytes
        import torch

        codes, state = weight[0], _nf4_state(weight, shape)

        def call():
            with torch.no_grad():
                return bitsandbytes.matmul_4bit(x, codes, quant_state=state)

        return call

    return bind


def check_nf4(bind, x, weight, packed, reference, tolerance) -> verify.Errors:
    """Compare with the float64 product of the weight that NF4 stands for: quantising anew is no error of the kernel."""
    import bitsandbytes

    stored = bitsandbytes.functional.dequantize_4bit(weight[0], _nf4_state(weight, packed.shape))
    return verify.check_product(bind, x, weight, packed, x.double() @ stored.double().t(), tolerance)


def _nf4_state(weight, shape):
    import torch
    from bitsandbytes.functional import QuantState

    _, absmax, code = weight
    described = {"shape": torch.Size(shape), "blocksize": NF4_BLOCKSIZE, "quant_type": "nf4", "dtype": torch.float16}
    return QuantState(absmax=absmax, code=code, **described)


# --- Marlin ---------------------------------------------------------------------------------------------------------


def marlin_unsupported(problem, symmetric) -> str | None:
    if not find_spec("marlin"):
        return "marlin is not installed (build it from github.com/IST-DASLab/marlin; it is not on PyPI)"
    if not symmetric or problem.group_size not in (128, -1) or problem.K % 128 or problem.N % 256:
        return f"marlin needs symmetric weights in groups of 128 or -1, K divisible by 128 and N by 256, got {problem}"
    return None


def marlin_variants(problem, gpu, symmetric=True) -> list[Variant]:
    """The tile that it chooses itself, and the other one that it has for few tokens."""
    return [Variant(f"thread_k={k} thread_n={n}", "marlin", marlin_build, marlin_bind(k, n)) for k, n in MARLIN_TILES]


def marlin_build(packed):
    """(words, scales, workspace) as marlin.Layer packs them."""
    import marlin
    import torch

    from tinygemm.kernel import quant

    linear = torch.nn.Linear(packed.K, packed.N, bias=False, dtype=torch.float16, device=packed.device)
    linear.weight.data = quant.dequantize(packed).contiguous()
    layer = marlin.Layer(packed.K, packed.N, groupsize=packed.group_size).to(packed.device)
    layer.pack(linear, packed.scales.t().contiguous())
    return tuple(part.to(packed.device) for part in (layer.B, layer.s, layer.workspace))


def marlin_bind(thread_k: int, thread_n: int):
    """thread_k, thread_n: tile of one thread block, -1 for its own choice."""

    def bind(x, weight):
        import marlin
        import torch

        words, scales, workspace = weight
        out = torch.full((x.shape[0], scales.shape[1]), float("nan"), dtype=x.dtype, device=x.device)

        def call():
            marlin.mul(x, words, out, scales, workspace, thread_k, thread_n)
            return out

        return call

    return bind


# --- Humming --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HummingTuning:
    """One launch of Humming's kernel for few tokens, on the tensor cores, with weights loaded by cp.async.

    block:        n and k of the tile of one thread block
    warp:         n and k of the tile of one warp
    ctas_per_sm:  thread blocks of an SM; the grid is as large as fits at once
    stream_k:     share the walks along K evenly between the thread blocks
    """

    block: tuple[int, int]
    warp: tuple[int, int]
    ctas_per_sm: int
    stream_k: bool = True

    def source(self, block_m: int) -> str:
        """The tuning in words, as config_source."""
        block, warp = ("x".join(map(str, sides)) for sides in (self.block, self.warp))
        how = f"ctas_per_sm={self.ctas_per_sm} stream_k={self.stream_k:d}"
        return f"tile={block_m}x{block} warp={block_m}x{warp} {how}"

    def parameters(self, block_m: int) -> dict:
        """The tuning under Humming's names; block_m: tokens of a tile, 8 or a multiple of 16."""
        return {
            "mma_type": "mma", "block_shape": [block_m, *self.block], "warp_shape": [block_m, *self.warp],
            "num_stages": 4, "num_ctas_per_sm": self.ctas_per_sm, "use_stream_k": self.stream_k, "use_tma": False,
            "use_warp_spec": False, "raster_group_m": 1,
        }  # fmt: skip


HUMMING_TILES = (((128, 128), (64, 32)), ((128, 128), (32, 64)), ((64, 128), (64, 32)), ((64, 256), (64, 32)))
# The budget of its search, beside its own choice: the tiles that won a longer search on an H200, with one and two
# thread blocks an SM, and two of them without stream-K.
HUMMING_TUNINGS = (
    *(HummingTuning(*tile, ctas) for tile in HUMMING_TILES for ctas in (1, 2)),
    *(HummingTuning(*tile, 2, stream_k=False) for tile in (HUMMING_TILES[0], HUMMING_TILES[3])),
)
HUMMING_MOST_TOKENS = 16  # the tilings above are for few tokens; beyond, its own choice stands alone
# FP32 accumulation. Adding up in FP16 is an option of the package; it is faster, and its errors are larger.
HUMMING_COMPUTE = json.dumps({"gemm_type": "dense"})
RESERVED_SMEM = 1024  # bytes of shared memory that a thread block takes beyond its own
LEAST_SMEM_PER_SM = min(gpu.smem_per_sm for gpu in GPUS.values())


@dataclass(frozen=True)
class HummingWeight:
    """A weight in Humming's layout.

    words, scales: as its transform leaves them
    locks:         int32 zeros, by which the thread blocks of stream-K wait for each other; a call leaves zeros behind
    layer:         Humming's LayerConfig: N, K, groups and types
    """

    words: torch.Tensor
    scales: torch.Tensor
    locks: torch.Tensor
    layer: Any


def humming_unsupported(problem, symmetric) -> str | None:
    if not find_spec("humming"):
        return "humming is not installed (pip install humming-kernels==0.1.19)"
    if not symmetric:
        return "humming is given symmetric weights only"
    if problem.N % 128 or problem.K % 64:
        return f"humming needs N divisible by 128 and K by 64, got N={problem.N} K={problem.K}"
    try:
        _choose_compiler()
    except (ImportError, RuntimeError) as error:
        return f"humming compiles its kernels with nvcc or NVRTC, and cannot: {error}"
    return None


def humming_variants(overlap: bool):
    """Its own choice for the very M, and HUMMING_TUNINGS; overlap: by programmatic dependent launch."""

    def variants(problem, gpu, symmetric=True) -> list[Variant]:
        block_m = 8 if problem.M <= 8 else 16
        smem_per_sm = GPUS[gpu].smem_per_sm if gpu in GPUS else LEAST_SMEM_PER_SM
        tunings = HUMMING_TUNINGS if problem.M <= HUMMING_MOST_TOKENS else ()
        own = Variant("its own choice", "humming", humming_build, _humming_own_bind(overlap), kernel=("own", problem))
        # N and K are constants of its kernels, M is not
        compiled = (problem.N, problem.K, problem.group_size, block_m)
        return [own] + [
            Variant(
                tuning.source(block_m),
                "humming",
                humming_build,
                humming_bind(tuning, block_m, overlap, smem_per_sm),
                kernel=(tuning, *compiled),
            )
            for tuning in tunings
        ]

    return variants


def humming_build(packed) -> HummingWeight:
    """The codes and scales of a packed weight, through a layer of the package.

    Codes 0 to 15 stand for -8 to 7 there, too; one scale for a whole row is group_size 0.
    """
    import torch

    _choose_compiler()
    from humming.layer import HummingLayer
    from humming.ops import pack_weight

    from tinygemm.kernel import quant

    format = {"dtype": "int4", "group_size": max(packed.group_size, 0)}
    layer = HummingLayer(
        shape_n=packed.N, shape_k=packed.K, weight_config=format, torch_dtype=torch.float16
    ).to(packed.device)  # fmt: skip
    codes = quant.unpack(packed).to(torch.int32)
    layer.load_from_tensors({"weight": pack_weight(codes, 4), "weight_scale": packed.scales.t().contiguous()})
    layer.transform()
    return HummingWeight(layer.weight.data, layer.weight_scale.data, layer.locks, layer.humming_config)


def humming_bind(tuning: HummingTuning, block_m: int, overlap: bool, smem_per_sm: int):
    """smem_per_sm: bytes, for thread blocks that wait for each other and must all run at once"""

    def bind(x, weight):
        (block_n, block_k), layer = tuning.block, weight.layer
        if layer.shape_n % block_n or layer.shape_k % block_k:
            shape = f"N={layer.shape_n} K={layer.shape_k}"
            raise ValueError(f"its tile of {block_n} by {block_k} does not divide the weight, {shape}")
        parameters = tuning.parameters(block_m)
        smem = _humming_smem(x, weight, parameters | {"use_pdl": _overlaps(overlap, x)})
        if tuning.ctas_per_sm * (smem + RESERVED_SMEM) > smem_per_sm:
            raise ValueError(f"{tuning.ctas_per_sm} thread blocks of {smem} bytes do not fit into an SM at once")
        return _humming_call(x, weight, parameters, overlap)

    return bind


def _humming_own_bind(overlap: bool):
    def bind(x, weight):
        from humming.tune import get_heuristics_config

        own = get_heuristics_config(weight.layer, shape_m=x.shape[0], gemm_type="dense", device=x.device)
        return _humming_call(x, weight, own, overlap)

    return bind


def _humming_call(x, weight: HummingWeight, parameters: dict, overlap: bool):
    import torch
    from humming.forward import humming_forward

    rows = weight.layer.shape_n
    out = torch.full((x.shape[0], rows), float("nan"), dtype=x.dtype, device=x.device)
    tuning = _as_json(parameters | {"use_pdl": _overlaps(overlap, x)})

    def call():
        return humming_forward(
            weight.layer, inputs=x, weight=weight.words, weight_scale=weight.scales, outputs=out, locks=weight.locks,
            compute_config=HUMMING_COMPUTE, tuning_config=tuning,
        )  # fmt: skip

    return call


def _humming_smem(x, weight: HummingWeight, parameters: dict) -> int:
    """Bytes of shared memory that one thread block of a kernel takes; compiles it."""
    from humming.kernel.humming import HummingKernel
    from humming.ops import get_kernel_smem_size

    _, _, kernel, _ = HummingKernel.prepare_kernels(
        weight.layer.to_str(), HUMMING_COMPUTE, _as_json(parameters), x.device
    ).tolist()
    return get_kernel_smem_size(kernel)


def _overlaps(wanted: bool, x) -> bool:
    from tinygemm.kernel.launches import dependent_launch

    return wanted and dependent_launch(x.device)


def _as_json(parameters: dict) -> str:
    """The package takes a tuning as a string, by which it remembers its kernel; NumPy's numbers become Python's."""
    return json.dumps(parameters, default=lambda value: value.item())


def _choose_compiler() -> None:
    """Have the package compile by nvcc, as when its tiles were searched; where there is none, by NVRTC.

    raises: ImportError, RuntimeError where there is neither
    """
    # importing it would start two processes that build in the background, while something is timed
    os.environ.setdefault("HUMMING_DISABLE_PARALLEL_BUILD", "1")
    from humming.utils.cuda import filter_cuda_paths

    if "HUMMING_COMPILER" not in os.environ:
        try:
            filter_cuda_paths(required_binaries=["nvcc"])
            os.environ["HUMMING_COMPILER"] = "nvcc"
        except RuntimeError:
            filter_cuda_paths(required_headers=["nvrtc.h"])
