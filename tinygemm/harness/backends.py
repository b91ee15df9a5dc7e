"""Every way to compute the product: a name, what it needs, how it stores the weight, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinygemm.harness import peers, verify
from tinygemm.harness.verify import FP16_TOLERANCE, Tolerance
from tinygemm.problem import GemmProblem

COPY_BYTES = 2**30


@dataclass(frozen=True)
class Variant:
    """One way to run a backend on one problem.

    source: recorded as config_source: where the launch config, or the choice between variants, comes from
    form:   name of the stored form of the weight; equal names share copies
    build:  PackedInt4 -> the weight in that form
    bind:   (x, weight) -> a function of no arguments that computes the product; what a user would set up once
            (workspace, quantisation state) is set up here, outside the timed call
    config: LaunchConfig of our own kernels, None for others
    """

    source: str
    form: str
    build: Callable
    bind: Callable
    config: object | None = None


@dataclass(frozen=True)
class Backend:
    """An entry of the registry.

    unsupported_reason: (problem, symmetric) -> None, or one sentence that says what is missing
    variants:           (problem, gpu key) -> list of Variant; of several, the fastest with a cold L2 is measured;
                        raises ValueError where no launch config fits
    bits_per_weight:    (problem, symmetric) -> stored bits, scales and zeros included
    dtype:              type of x and out
    tolerance:          bounds of the error against the float64 reference
    check:              (bind, x, weight, packed, reference, tolerance) -> verify.Errors; raises verify.MismatchError
    quantised:          False: group_size is recorded as 0
    flops, bytes_min:   of a problem, where they are not those of the product
    """

    name: str
    unsupported_reason: Callable[[GemmProblem, bool], str | None]
    variants: Callable[[GemmProblem, str], list[Variant]]
    bits_per_weight: Callable[[GemmProblem, bool], float]
    dtype: str = "float16"
    tolerance: Tolerance = FP16_TOLERANCE
    check: Callable = verify.check_product
    quantised: bool = True
    flops: Callable[[GemmProblem], int] = lambda problem: problem.flops
    bytes_min: Callable[[GemmProblem, float], int] = lambda problem, bits: problem.bytes_min(bits)


@dataclass(frozen=True)
class Ceiling:
    """Something timed that is no product: what the memory or the launch alone costs.

    word:      stands in the case id where a problem would
    make:      () -> a function of no arguments
    check:     raises verify.MismatchError
    bytes_min: bytes read and written by one call
    min_calls: calls in one sample
    """

    name: str
    word: str
    make: Callable[[], Callable]
    check: Callable[[Callable], None]
    bytes_min: int
    min_calls: int


def operands(problem: GemmProblem, symmetric: bool, device: str, seed: int):
    """The random weight of a problem, the same for every M: PackedInt4 [N, K] on `device`."""
    from tinygemm.kernel import quant

    return quant.random_packed(problem.N, problem.K, problem.group_size, symmetric=symmetric, device=device, seed=seed)


def activations(problem: GemmProblem, device: str, seed: int):
    """Random x [M, K] float16 of order one; the weights are scaled so that the output is of order one, too."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(problem.M, problem.K, dtype=torch.float16, device=device, generator=generator)


# --- fp16 -----------------------------------------------------------------------------------------------------------


def fp16_nk(packed):
    """The weight as FP16 [N, K], so that every backend computes the same product."""
    from tinygemm.kernel import quant

    return quant.dequantize(packed).contiguous()


def fp16_kn(packed):
    """The weight as FP16 [K, N]."""
    return fp16_nk(packed).t().contiguous()


def _bind_mm(x, weight):
    import torch

    return lambda: torch.mm(x, weight)


def _bind_linear(x, weight):
    import torch

    return lambda: torch.nn.functional.linear(x, weight)


def _cublas_variants(problem, gpu):
    return [
        Variant("layout=kn", "fp16-kn", fp16_kn, _bind_mm),
        Variant("layout=nk", "fp16-nk", fp16_nk, _bind_linear),
    ]


def _fp16_triton_variants(problem, gpu):
    from tinygemm.kernel import configs, twins

    config, source = configs.select(problem, gpu, form="fp16")
    return [Variant(source, "fp16-nk", fp16_nk, lambda x, w: lambda: twins.fp16_gemm(x, w, config), config)]


# --- int4 -----------------------------------------------------------------------------------------------------------


def packed_form(packed):
    return packed


def _selected_variants(problem, gpu):
    """What a model gets: gemm selects, and its selection is on the clock when it is called from Python."""
    from tinygemm.kernel import configs, gemm

    config, source = configs.select(problem, gpu)
    return [Variant(source, "packed", packed_form, lambda x, w: lambda: gemm.gemm(x, w), config)]


def _serial_variants(problem, gpu):
    """The same kernel as `int4`, started only when the one before has finished, as every peer is."""
    from tinygemm.kernel import configs, gemm

    config, source = configs.select(problem, gpu)
    bind = lambda x, w: lambda: gemm.gemm(x, w, config, dependent_launch=False)  # noqa: E731
    return [Variant(source, "packed", packed_form, bind, config)]


def _form_variants(form: str):
    """One of our kernels with its config from the table."""

    def variants(problem, gpu):
        from tinygemm.kernel import configs, gemm

        config, source = configs.select(problem, gpu, form=form)
        return [Variant(source, "packed", packed_form, lambda x, w: lambda: gemm.gemm(x, w, config), config)]

    return variants


def _raw_variants(problem, gpu):
    """The tuned kernel with its dequantisation left out, in the launch config of `int4`."""
    from tinygemm.kernel import configs, twins

    config, source = configs.select(problem, gpu, form="splitk")
    return [Variant(source, "packed", packed_form, lambda x, w: lambda: twins.twin_gemm(x, w, config, "none"), config)]


def _load_only_variants(problem, gpu):
    from tinygemm.kernel import configs, twins

    config, source = configs.select(problem, gpu, form="load-only")
    if problem.N % config.block_n or problem.K % config.block_k:
        raise ValueError(
            f"int4-load-only reads whole tiles of N={config.block_n} and K={config.block_k}, not {problem}"
        )
    return [Variant(source, "packed", packed_form, lambda x, w: lambda: twins.load_only(w, config), config)]


def _dequant_variants(problem, gpu):
    from tinygemm.kernel import gemm

    return [Variant("", "packed", packed_form, lambda x, w: lambda: gemm.dequantize_fp16(w))]


def _dequant_fp16_variants(problem, gpu):
    import torch

    from tinygemm.kernel import gemm

    def bind(x, w):
        return lambda: torch.nn.functional.linear(x, gemm.dequantize_fp16(w))

    return [Variant("", "packed", packed_form, bind)]


def _any_problem(problem, symmetric):
    return None


def _single_token(problem, symmetric):
    return None if problem.M == 1 else f"the GEMV form serves M=1 only, this is M={problem.M}"


def _symmetric_only(problem, symmetric):
    return None if symmetric else "int4-load-only reads symmetric weights only"


def _int4_bits(problem, symmetric):
    return problem.int4_bits_per_weight(symmetric)


def _dequant_bytes(problem, bits):
    return round(problem.N * problem.K * bits / 8) + 2 * problem.N * problem.K


# --- peers ----------------------------------------------------------------------------------------------------------


def _aten_variants(problem, gpu):
    bind = peers.aten_bind(problem.group_size)
    return [
        Variant(f"inner_k_tiles={tiles}", f"aten-{tiles}", peers.aten_build(tiles), bind)
        for tiles in peers.ATEN_INNER_K_TILES
        if problem.K % (16 * tiles) == 0
    ]


def _gemlite_variants(problem, gpu):
    return [Variant("gemlite autotune=fast", "gemlite", peers.gemlite_build, peers.gemlite_bind)]


def _nf4_variants(problem, gpu):
    return [Variant("", "nf4", peers.nf4_build, peers.nf4_bind((problem.N, problem.K)))]


def _marlin_variants(problem, gpu):
    return [Variant("", "marlin", peers.marlin_build, peers.marlin_bind)]


def _fp16_bits(problem, symmetric):
    return 16.0


def _no_flops(problem):
    return 0


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("fp16-cublas", _any_problem, _cublas_variants, _fp16_bits, quantised=False),
        Backend("fp16-triton", _any_problem, _fp16_triton_variants, _fp16_bits, quantised=False),
        Backend("dequant-fp16", _any_problem, _dequant_fp16_variants, _int4_bits),
        Backend("int4-static", _any_problem, _form_variants("static"), _int4_bits),
        Backend("int4-splitk", _any_problem, _form_variants("splitk"), _int4_bits),
        Backend("int4-gemv", _single_token, _form_variants("gemv"), _int4_bits),
        Backend("int4", _any_problem, _selected_variants, _int4_bits),
        Backend("int4-serial", _any_problem, _serial_variants, _int4_bits),
        Backend("int4-no-dequant", _any_problem, _raw_variants, _int4_bits, check=verify.check_raw),
        Backend("int4-load-only", _symmetric_only, _load_only_variants, _int4_bits, check=verify.check_reads),
        Backend(
            "dequant-only",
            _any_problem,
            _dequant_variants,
            _int4_bits,
            tolerance=verify.DEQUANT_TOLERANCE,
            check=verify.check_dequantised,
            flops=_no_flops,
            bytes_min=_dequant_bytes,
        ),
        Backend(
            "aten-int4mm",
            peers.aten_unsupported,
            _aten_variants,
            peers.aten_bits,
            dtype="bfloat16",
            tolerance=verify.BF16_TOLERANCE,
        ),
        Backend("gemlite", peers.gemlite_unsupported, _gemlite_variants, _int4_bits),
        Backend("bitsandbytes-nf4", peers.nf4_unsupported, _nf4_variants, peers.nf4_bits, check=peers.check_nf4),
        Backend("marlin", peers.marlin_unsupported, _marlin_variants, _int4_bits),
    )
}


# --- what is no product ---------------------------------------------------------------------------------------------


def _make_copy():
    """A kernel that reads and writes every byte; a plain copy in a graph runs on the copy engine, which is slower."""
    import torch

    source = torch.randint(-(2**31), 2**31 - 1, (COPY_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.zeros_like(source)

    def call():
        return torch.bitwise_not(source, out=target), source

    return call


def _make_empty_node():
    from tinygemm.kernel import twins

    return twins.empty_kernel


CEILINGS = {
    ceiling.name: ceiling
    for ceiling in (
        Ceiling("copy", "1GiB", _make_copy, verify.check_copy, 2 * COPY_BYTES, 10),
        Ceiling("empty-node", "empty", _make_empty_node, lambda call: call(), 0, 200),
    )
}


def known_names() -> list[str]:
    return [*BACKENDS, *CEILINGS]


def forget_graphs() -> None:
    """Tell our kernels that no CUDA graph captured so far will be replayed again.

    A captured split-K call keeps its arrival counters for good, out of a pool that a whole sweep would use up; calls
    captured after that would carry a node that zeroes theirs, and be timed with it.
    """
    from tinygemm.kernel import launch

    launch.forget_captured_counters()
