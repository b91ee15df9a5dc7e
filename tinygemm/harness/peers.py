"""Other people's INT4 kernels: what each needs, how its weight is stored, and how it is called."""

from __future__ import annotations

from importlib.util import find_spec

from tinygemm.harness import verify
from tinygemm.harness.variant import Variant

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
    return [Variant(f"gemlite {kind}", "gemlite", gemlite_build, gemlite_bind(kind)) for kind in kinds]


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
