"""Our own kernels and the FP16 products as backends: the launch config that each takes, and its call.

All `..._variants` take the problem, the key of the GPU and whether the weight is symmetric, which decides the config.
"""

from __future__ import annotations

import dataclasses

from tinygemm.harness.variant import Variant
from tinygemm.kernel.configs import FORMS, select
from tinygemm.problem import GemmProblem

# tuning candidates that `int4-searched` races; the model that ranks them is rough, so far more than one
SEARCHED = 16
ASYMMETRIC_SEED = 2
FUSED_KERNELS = tuple(kernel for kernel in FORMS if kernel != "static")
ONE_WARP_TILES = (16, 32, 64)  # block_n that `int4-no-split` races
UNSPILLED = 168  # registers with which `int4-no-dequant` spills nothing in any config of up to 8 warps that is searched
REGISTERS = 65536  # of an SM, on every GPU since Volta

# --- fp16 -----------------------------------------------------------------------------------------------------------


def fp16_nk(packed):
    """The weight as FP16 [N, K], so that every backend computes the same product."""
    from tinygemm.kernel import quant

    return quant.dequantize(packed).contiguous()


def fp16_kn(packed):
    """The weight as FP16 [K, N]."""
    return fp16_nk(packed).t().contiguous()


def cublas_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    return [
        Variant("layout=kn", "fp16-kn", fp16_kn, _bind_mm),
        Variant("layout=nk", "fp16-nk", fp16_nk, _bind_linear),
    ]


def fp16_triton_variants(dependent_launch: bool):
    """Our FP16 kernel; without dependent launch, no call overlaps the one before."""

    def variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
        from tinygemm.kernel import reference

        config, source = select(problem, gpu, form="fp16")
        bind = lambda x, w: lambda: reference.fp16_gemm(x, w, config, dependent_launch)  # noqa: E731
        return [Variant(source, "fp16-nk", fp16_nk, bind, config)]

    return variants


# --- int4 -----------------------------------------------------------------------------------------------------------


def packed_weight(packed):
    return packed


def asymmetric_weight(packed):
    """The same codes and scales with a random zero per group: another weight, stored as asymmetric ones are."""
    import torch

    from tinygemm.kernel import quant

    if packed.zeros is not None:
        return packed
    generator = torch.Generator(packed.device).manual_seed(ASYMMETRIC_SEED)
    shape, device = packed.scales.shape, packed.device
    zeros = torch.randint(0, 16, shape, dtype=torch.uint8, device=device, generator=generator)
    return quant.pack(quant.unpack(packed), packed.scales, zeros, packed.group_size)


def selected_variants(problem: GemmProblem, gpu: str, symmetric: bool = True, half: bool = True) -> list[Variant]:
    """The call of a model: gemm selects the config, and in eager mode the selection is on the clock."""
    from tinygemm.kernel import gemm

    config, source = select(problem, gpu, symmetric=symmetric, half=half)
    return [Variant(source, "packed", packed_weight, lambda x, w: lambda: gemm.gemm(x, w), config)]


def one_row_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    """`int4` on as many rows of x, all of them the first: the same instructions, for the traffic of one row."""
    from tinygemm.kernel import gemm

    (selected,) = selected_variants(problem, gpu, symmetric)

    def bind(x, w):
        row = x[:1].expand_as(x)
        return lambda: gemm.gemm(row, w)

    return [dataclasses.replace(selected, bind=bind)]


def bf16_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    return selected_variants(problem, gpu, symmetric, half=False)


def asymmetric_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    """`int4` with zeros, whatever the other backends store."""
    (selected,) = selected_variants(problem, gpu, symmetric=False)
    return [dataclasses.replace(selected, layout="packed-asymmetric", build=asymmetric_weight)]


def fused_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    """The fused kernel at any number of tokens, also where gemm would dequantise first."""
    from tinygemm.kernel import gemm

    config, source = select(problem, gpu, form="fused", symmetric=symmetric)
    return [Variant(source, "packed", packed_weight, lambda x, w: lambda: gemm.fused_gemm(x, w), config)]


def serial_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    """The same kernel as `int4`, started only when the one before has finished, as every peer is.

    The config of `int4` was searched with overlap. Without it another may be the fastest: the best config of each fused
    kernel that serves the problem is timed.
    """
    selected, source = select(problem, gpu, symmetric=symmetric)
    sources = {selected: source}
    for kernel in FUSED_KERNELS:
        try:
            config, source = select(problem, gpu, kernel, symmetric)
        except ValueError:  # the pipelined kernel does not serve every problem
            continue
        sources.setdefault(config, f"{source}, {kernel}")
    return [_with_config(config, source, dependent_launch=False) for config, source in sources.items()]


def kernel_variants(kernel: str):
    """One of our kernels with its config from the table."""

    def variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
        return [_with_config(*select(problem, gpu, kernel, symmetric))]

    return variants


def ablation_variants(
    dequant: str = "fast", dependent_launch: bool = True, add_warps: bool = True, kernel: str = "fused"
):
    """The tuned kernel with something done otherwise, in the launch config of `int4` or of splitk.

    Without dequantisation other values are alive at once, and the limit of registers may be one that keeps some of them
    in memory: there the kernel races itself under the highest limit worth trying.
    """

    def variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
        from tinygemm.kernel import reference

        config, source = select(problem, gpu, kernel, symmetric)
        configs = {config: source}
        if dequant == "none" and config.max_registers:
            limit = min(UNSPILLED, REGISTERS // (32 * config.num_warps))
            configs.setdefault(dataclasses.replace(config, max_registers=limit), f"{source}, {limit} registers")

        def variant(config, source: str) -> Variant:
            bind = lambda x, w: lambda: reference.ablated_gemm(x, w, config, dequant, dependent_launch, add_warps)  # noqa: E731
            return Variant(source, "packed", packed_weight, bind, config)

        return [variant(config, source) for config, source in configs.items()]

    return variants


def no_split_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    """The tuned kernel with K split over neither warps nor programs: one warp walks all of it, for the same bytes.

    One for each width of its tile that divides N, with as many words requested at once as in the tuned kernel. The best
    tile without a split may be another one than with it, and another tuning would be another experiment.
    """
    config, source = select(problem, gpu, "splitk", symmetric)
    steps = config.block_k // (128 * config.num_warps)
    found = []
    for block_n in [tile for tile in ONE_WARP_TILES if problem.N % tile == 0] or [config.block_n]:
        block_k = 128 * max(1, config.block_n * steps // block_n)
        one_warp = dataclasses.replace(
            config, block_n=block_n, block_k=block_k, split_k=1, num_warps=1, max_registers=0
        )
        found.append(_with_config(one_warp, f"{source}, one warp, block_n={block_n}"))
    return found


def more_split_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    """The tuned kernel with twice the programs: the same bytes, half the walk."""
    config, source = select(problem, gpu, "fused", symmetric)
    more = 2 * config.split_k
    if more > (most := problem.K // (128 * config.num_warps)):
        raise ValueError(f"K={problem.K} has {most} shares of a whole step in the config of int4, not {more}")
    return [_with_config(dataclasses.replace(config, split_k=more), f"{source}, split_k doubled")]


def searched_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    """The config that `int4` takes, and the best tuning candidates for this very problem by the rough model."""
    from tinygemm import hardware
    from tinygemm.harness import candidates

    spec = hardware.gpu_spec(gpu)
    found = [config for kernel in FUSED_KERNELS for config in candidates.candidates_of(kernel, problem, spec.sm_count)]
    found.sort(key=lambda config: (candidates.predicted_us(config, problem, spec), config))
    configs = list(dict.fromkeys([select(problem, gpu, symmetric=symmetric)[0], *found]))[:SEARCHED]
    return [_with_config(config, f"searched {'-'.join(map(str, dataclasses.astuple(config)))}") for config in configs]


def load_only_variants(dependent_launch: bool):
    """The weight-read bound: a kernel that only reads; without dependent launch, no call overlaps the one before."""

    def variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
        from tinygemm.kernel import reference

        config, source = select(problem, gpu, form="load-only")
        bind = lambda x, w: lambda: reference.load_only(w, config, dependent_launch)  # noqa: E731
        return [Variant(source, "packed", packed_weight, bind, config)]

    return variants


def dequant_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    from tinygemm.kernel import gemm

    return [Variant("", "packed", packed_weight, lambda x, w: lambda: gemm.dequantize_fp16(w))]


def dequant_fp16_variants(problem: GemmProblem, gpu: str, symmetric: bool = True) -> list[Variant]:
    import torch

    from tinygemm.kernel import gemm

    def bind(x, w):
        return lambda: torch.nn.functional.linear(x, gemm.dequantize_fp16(w))

    return [Variant("", "packed", packed_weight, bind)]


def _with_config(config, source: str, dependent_launch: bool = True) -> Variant:
    from tinygemm.kernel import gemm

    bind = lambda x, w: lambda: gemm.gemm(x, w, config, dependent_launch)  # noqa: E731
    return Variant(source, "packed", packed_weight, bind, config)


def _bind_mm(x, weight):
    import torch

    return lambda: torch.mm(x, weight)


def _bind_linear(x, weight):
    import torch

    return lambda: torch.nn.functional.linear(x, weight)
