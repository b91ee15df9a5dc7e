"""Backends: each computes the one product, says what it cannot do, and a wrong one is caught before it is timed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import FakeClock, fake_backend
from ptx import emulated

from tinygemm.backends import PEER, of_family
from tinygemm.harness import choose, compile, ours, peers, registry, timing, verify
from tinygemm.harness.measure import measure_group
from tinygemm.harness.plan import Group, SweepPlan
from tinygemm.harness.suites import REPORT_BACKENDS
from tinygemm.harness.verify import BF16_TOLERANCE, FP16_TOLERANCE, GEMLITE_TOLERANCE, MismatchError
from tinygemm.harness.weights import Weights, replicate, stored_bytes
from tinygemm.kernel import configs, launches, quant
from tinygemm.kernel.configs import DEQUANTISE, PLAIN, Format, LaunchConfig, select, table
from tinygemm.kernel.reference import load_only_reference
from tinygemm.problem import STUDY_SHAPES, GemmProblem

PROBLEM = GemmProblem(2, 64, 256)
OURS = [name for name in registry.BACKENDS if name not in of_family(PEER)]
OF_INT4 = [name for name in OURS if name.startswith("int4") and "load-only" not in name]
GEMM_SELECTS = ("int4", "int4-serial", "int4-searched", "int4-bf16", "int4-asymmetric")


@pytest.fixture(autouse=True)
def _a_small_cache(request, monkeypatch):
    """Few copies make a weight cold on the CPU; on a GPU the real numbers hold."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(timing, "MIN_COLD_BYTES", 0)


def operands(problem=PROBLEM, symmetric=True):
    packed = registry.operands(problem, symmetric, "cpu", seed=0)
    x = registry.activations(problem, "cpu", seed=1)
    return x, packed, quant.reference_gemm(x, packed)


def bench_of(clock, *chosen, **plan):
    registry = {backend.name: backend for backend in chosen}
    plan = SweepPlan((PROBLEM,), backends=("fp16-cublas",), **plan)
    return choose.Bench(plan, {"key": "h200", "l2_bytes": 1000}, clock, "cpu", registry)


def ready_of(bench, weights, problem=PROBLEM, launch="graph", l2_state="cold", **others):
    group = Group(problem, str(problem), launch, l2_state, tuple(bench.backends), **others)
    return choose.make_ready(bench, [group], weights)


# --- the registry ---------------------------------------------------------------------------------------------------


def test_every_backend_of_the_design_is_registered_under_its_own_name():
    names = {
        "fp16-cublas", "fp16-triton", "fp16-triton-serial", "dequant-fp16", "dequant-only", "int4-static", "int4-ring",
        "int4-splitk", "int4", "int4-serial", "int4-fused", "int4-searched", "int4-no-split", "int4-more-split",
        "int4-naive-dequant",
        "int4-no-dequant", "int4-step-naive", "int4-step-lop3", "int4-step-early", "int4-bf16", "int4-asymmetric",
        "int4-one-row", "int4-load-only", "int4-load-only-serial", "aten-int4mm", "gemlite", "bitsandbytes-nf4",
        "marlin", "humming", "humming-serial", "copy", "empty-node",
    }  # fmt: skip
    assert set(registry.known_names()) == names
    assert set(REPORT_BACKENDS) <= names
    assert all(name == backend.name for name, backend in registry.BACKENDS.items())


@pytest.mark.parametrize(
    ("name", "bits", "bytes_min", "flops"),
    [
        ("fp16-cublas", 16, 2 * 4096 * 1024 + 2 * 4 * (4096 + 1024), 2 * 4 * 4096 * 1024),
        ("int4", 4.125, 4096 * 1024 // 2 + 2 * 32 * 1024 + 2 * 4 * (4096 + 1024), 2 * 4 * 4096 * 1024),
        ("int4-asymmetric", 4.1875, 4096 * 1024 // 2 + 3 * 32 * 1024 + 2 * 4 * (4096 + 1024), 2 * 4 * 4096 * 1024),
        ("int4-load-only", 4.125, 4096 * 1024 // 2 + 2 * 32 * 1024 + 2 * 4 * (4096 + 1024), 2 * 4 * 4096 * 1024),
        ("dequant-fp16", 4.125, 4096 * 1024 // 2 + 2 * 32 * 1024 + 2 * 4 * (4096 + 1024), 2 * 4 * 4096 * 1024),
        ("dequant-only", 4.125, 4096 * 1024 // 2 + 2 * 32 * 1024 + 2 * 4096 * 1024, 0),
        ("aten-int4mm", 4.25, 4096 * 1024 // 2 + 4 * 32 * 1024 + 2 * 4 * (4096 + 1024), 2 * 4 * 4096 * 1024),
    ],
)
def test_bits_bytes_and_flops_are_those_of_the_stored_format(name, bits, bytes_min, flops):
    problem, backend = GemmProblem(4, 1024, 4096), registry.BACKENDS[name]
    assert backend.bits_per_weight(problem, True) == bits
    assert backend.bytes_min(problem, bits) == bytes_min
    assert backend.flops(problem) == flops


def test_stored_bits_are_the_bytes_that_the_copies_hold():
    """bits_per_weight is a formula in the data and a tensor in memory; they must be one number."""
    _, packed, _ = operands(GemmProblem(1, 128, 1024))
    for name in ("fp16-cublas", "int4"):
        for variant in registry.BACKENDS[name].variants(PROBLEM, "h200"):
            stored = stored_bytes(variant.build(packed))
            assert stored * 8 / (128 * 1024) == registry.BACKENDS[name].bits_per_weight(PROBLEM, True)


@pytest.mark.parametrize(
    ("name", "problem", "symmetric", "message"),
    [
        ("int4-ring", GemmProblem(9, 1024, 4096), True, "up to 8 tokens, this is M=9"),
        ("int4-load-only", GemmProblem(1, 1024, 4096), False, "symmetric weights only"),
        ("aten-int4mm", GemmProblem(1, 1024, 4096, -1), True, "group sizes 32, 64 and 128, not -1"),
        ("aten-int4mm", GemmProblem(1, 1023, 4096), True, "N divisible by 8"),
        ("gemlite", GemmProblem(1, 1024, 4096), True, r"pip install gemlite"),
        ("bitsandbytes-nf4", GemmProblem(1, 1024, 4096), True, r"pip install bitsandbytes"),
        ("marlin", GemmProblem(1, 1024, 4096), True, r"github.com/IST-DASLab/marlin"),
        ("humming", GemmProblem(1, 1024, 4096), True, r"pip install humming-kernels"),
    ],
)
def test_what_a_backend_cannot_do_is_said_in_words(name, problem, symmetric, message, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    assert message in registry.BACKENDS[name].unsupported_reason(problem, symmetric)


def test_load_only_refuses_a_shape_that_leaves_a_tile_half_full():
    with pytest.raises(ValueError, match="no config of form load-only for M=1 N=1000 K=4096"):
        registry.BACKENDS["int4-load-only"].variants(GemmProblem(1, 1000, 4096), "h200")


# --- each computes the product --------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("name", ["fp16-cublas", "int4-static"])
def test_a_backend_and_all_its_variants_compute_the_product_on_a_cpu(name, symmetric):
    x, packed, reference = operands(symmetric=symmetric)
    backend = registry.BACKENDS[name]
    variants = backend.variants(PROBLEM, "h200")
    for variant in variants:
        backend.check(variant.bind, x, variant.build(packed), packed, reference, backend.tolerance)
    assert len(variants) == (2 if name == "fp16-cublas" else 1)


@pytest.mark.parametrize(
    "name", ["int4", "int4-serial", "int4-fused", "int4-no-split", "int4-more-split", "int4-asymmetric"]
)
def test_what_isolates_one_cause_computes_the_product_in_the_interpreter(name):
    problem = GemmProblem(1, 16, 8192)
    x, packed, reference = operands(problem)
    backend = registry.BACKENDS[name]
    for variant in backend.variants(problem, "h200"):
        with emulated():
            errors = backend.check(variant.bind, x, variant.build(packed), packed, reference, backend.tolerance)
        assert errors.rms_err < backend.tolerance.rms_err


def test_one_row_of_activations_stands_for_all_in_the_tuned_kernel():
    problem = GemmProblem(16, 16, 1024)
    x, packed, reference = operands(problem)
    backend = registry.BACKENDS["int4-one-row"]
    (variant,), (tuned,) = (registry.BACKENDS[name].variants(problem, "h200") for name in (backend.name, "int4"))
    assert (variant.config, variant.source) == (tuned.config, tuned.source)
    with emulated():
        out = variant.bind(x, packed)()
        backend.check(variant.bind, x, packed, packed, reference, backend.tolerance)
        with pytest.raises(MismatchError):
            backend.check(tuned.bind, x, packed, packed, reference, backend.tolerance)
    assert torch.equal(out, out[:1].expand_as(out))


def words(config: LaunchConfig) -> int:
    """Registers of a thread that wait for weights: 32 threads share the 128 of a row, and a register holds 8."""
    return config.block_n * launches.steps(config) // 2


@pytest.mark.parametrize(("K", "N"), STUDY_SHAPES)
def test_split_variants_differ_from_the_tuned_kernel_by_the_split_alone(K, N):
    """Without a split one warp walks all of K, requesting as much at once as each warp of the tuned kernel does."""
    problem = GemmProblem(1, N, K)
    names = ("int4-splitk", "int4-fused", "int4-more-split")
    (tuned,), (fused,), (more,) = (registry.BACKENDS[name].variants(problem, "h200") for name in names)
    assert tuned.config.split_k * tuned.config.num_warps > 1, "with no split the two would be one kernel"
    whole = registry.BACKENDS["int4-no-split"].variants(problem, "h200")
    assert [variant.config.block_n for variant in whole] == [16, 32, 64]
    for variant in whole:
        tile = {"block_n": variant.config.block_n, "block_k": variant.config.block_k}
        assert variant.config == replace(tuned.config, **tile, split_k=1, num_warps=1, max_registers=0)
        # at least one block is asked for, and a wide tile has many words in one
        assert words(variant.config) == max(words(tuned.config), words(replace(variant.config, block_k=128)))
    assert more.config == replace(fused.config, split_k=2 * fused.config.split_k)


@pytest.mark.parametrize(("N", "tiles"), [(4096, [16, 32, 64]), (4080, [16]), (4128, [16, 32]), (1000, [32])])
def test_without_a_split_the_tile_is_not_that_of_the_tuning(N, tiles, monkeypatch):
    """Every tile that divides N; one with a remainder, where none does."""

    def variants(tuned):
        monkeypatch.setattr(ours, "select", lambda *_, **__: (tuned, "table"))
        return ours.no_split_variants(GemmProblem(1, N, 4096), "h200")

    found = variants(LaunchConfig("splitk", 8, 32, 2048, 4, 8, 1, 128))
    assert [variant.config.block_n for variant in found] == tiles
    assert [variant.source for variant in found] == [f"table, one warp, block_n={tile}" for tile in tiles]
    assert {words(variant.config) for variant in found} == {32}
    if len(tiles) > 1:
        for other in (LaunchConfig("splitk", 8, 16, 512, 2, 1, 1), LaunchConfig("splitk", 8, 64, 256, 1, 2, 1)):
            assert [variant.config for variant in variants(other)] == [variant.config for variant in found]
    assert [launches.steps(variant.config) for variant in variants(LaunchConfig("splitk", 8, 32, 128, 1, 1, 1))] == [
        {16: 2, 32: 1, 64: 1}[tile] for tile in tiles
    ], "at least one block is asked for"


@pytest.mark.parametrize("M", [1, 8, 9, 256])
def test_without_overlap_what_int4_takes_races_the_best_of_each_fused_form(M):
    problem = GemmProblem(M, 4096, 4096)
    variants = registry.BACKENDS["int4-serial"].variants(problem, "h100-80gb-hbm3")
    selected, source = select(problem, "h100-80gb-hbm3")
    assert (variants[0].config, variants[0].source) == (selected, source)
    best = [select(problem, "h100-80gb-hbm3", form)[0] for form in (("splitk", "ring") if M <= 8 else ("splitk",))]
    assert {variant.config for variant in variants} == {selected, *best}
    assert len({variant.source for variant in variants}) == len(variants)
    assert len(variants) == len({selected, *best})
    assert (selected == DEQUANTISE) == (M == 256)


def test_no_variant_without_overlap_starts_early(monkeypatch):
    asked = []
    monkeypatch.setattr("tinygemm.kernel.gemm.gemm", lambda x, w, *how: asked.append(how))
    variants = registry.BACKENDS["int4-serial"].variants(GemmProblem(1, 4096, 4096), "h200")
    for variant in variants:
        variant.bind("x", "w")()
    assert asked == [(variant.config, False) for variant in variants]


def test_no_share_of_a_doubled_split_is_empty():
    with pytest.raises(ValueError, match=r"K=128 has \d shares of a whole step"):
        registry.BACKENDS["int4-more-split"].variants(GemmProblem(1, 4096, 128), "h200")


@pytest.mark.parametrize(("K", "N"), STUDY_SHAPES)
@pytest.mark.parametrize("backend", ["int4-bf16", "int4-asymmetric"])
def test_a_format_that_was_not_tuned_takes_the_config_of_int4_without_its_limit_of_registers(
    backend, K, N, monkeypatch
):
    """In the H200's table without its rows of other formats, and with a limit of registers in each of the rest."""
    plain = [row for row in table("h200")[0] if row["format"] == PLAIN]
    limited = [row | {"config": replace(row["config"], max_registers=96)} for row in plain]
    monkeypatch.setattr(configs, "table", lambda gpu: (limited, "table"))
    problem = GemmProblem(1, N, K)
    (half,), (other,) = (registry.BACKENDS[name].variants(problem, "h200") for name in ("int4", backend))
    assert half.config.max_registers == 96
    assert other.config == replace(half.config, max_registers=0)
    assert (half.source, other.source) == ("table", "rule")


@pytest.mark.parametrize(("K", "N"), STUDY_SHAPES)
@pytest.mark.parametrize("M", [1, 8])
@pytest.mark.parametrize("gpu", ["h100-80gb-hbm3", "h200"])
def test_a_format_that_was_tuned_takes_its_own_config(gpu, M, K, N):
    rows = [row for row in table(gpu)[0] if (row["M"], row["K"], row["N"]) == (M, K, N)]
    for backend, asked in (("int4-bf16", Format(half=False)), ("int4-asymmetric", Format(symmetric=False))):
        (variant,) = registry.BACKENDS[backend].variants(GemmProblem(M, N, K), gpu)
        fastest = min((row for row in rows if row["format"] == asked), key=lambda row: row["latency_us"])
        assert (variant.config, variant.source) == (fastest["config"], "table")


def asymmetric_configs(name, problem, gpu) -> list[LaunchConfig]:
    """What a backend of our own takes for weights with zeros, first of all the config that was tuned for them."""
    form = {"int4-static": "static", "int4-splitk": "splitk", "int4-no-split": "splitk", "int4-ring": "ring"}.get(name)
    form = form or ("splitk" if "-step-" in name else None if name in GEMM_SELECTS else "fused")
    config, _ = select(problem, gpu, form, symmetric=False, half=name != "int4-bf16")
    if name == "int4-no-split":
        steps = {n: config.block_n * launches.steps(config) // n for n in (16, 32, 64)}
        one_warp = replace(config, split_k=1, num_warps=1, max_registers=0)
        return [replace(one_warp, block_n=n, block_k=128 * max(1, steps[n])) for n in steps]
    if name == "int4-more-split":
        return [replace(config, split_k=2 * config.split_k)]
    if name == "int4-no-dequant" and config.max_registers:
        unspilled = min(ours.UNSPILLED, ours.REGISTERS // (32 * config.num_warps))
        return list(dict.fromkeys([config, replace(config, max_registers=unspilled)]))
    if name == "int4-serial":
        each = [select(problem, gpu, form, symmetric=False)[0] for form in ("splitk", "ring")]
        return list(dict.fromkeys([config, *each]))
    return [config]


@pytest.mark.parametrize(("K", "N"), STUDY_SHAPES)
@pytest.mark.parametrize("M", [1, 8])
@pytest.mark.parametrize("name", OF_INT4)
def test_of_asymmetric_weights_the_config_is_recorded_that_runs(name, M, K, N):
    """gemm selects by the format of the weight it is given, so a config of another one would not be what was timed."""
    problem, gpu = GemmProblem(M, N, K), "h100-80gb-hbm3"
    found = [variant.config for variant in registry.BACKENDS[name].variants(problem, gpu, symmetric=False)]
    expected = asymmetric_configs(name, problem, gpu)
    assert (found[:1] if name == "int4-searched" else found) == expected


@pytest.mark.parametrize("name", OF_INT4)
def test_some_config_of_the_study_is_another_one_for_asymmetric_weights(name):
    problems = [GemmProblem(M, N, K) for K, N in STUDY_SHAPES for M in (1, 8)]
    plain, zeros = ([[variant.config for variant in registry.BACKENDS[name].variants(problem, "h100-80gb-hbm3", kind)]
                     for problem in problems] for kind in (True, False))  # fmt: skip
    assert (plain == zeros) == (name in ("int4-static", "int4-asymmetric")), "one config, or always with zeros"


def test_the_choice_and_the_compiler_ask_for_what_the_plan_stores(monkeypatch):
    clock, asked = FakeClock(), []
    backend = fake_backend("int4", clock)
    known = backend.variants
    backend = replace(backend, variants=lambda *how: asked.append(how) or known(*how))
    _, packed, _ = operands(symmetric=False)
    ready_of(bench_of(clock, backend, symmetric=False), Weights(packed, 1000))
    group = Group(PROBLEM, str(PROBLEM), "graph", "cold", ("int4",))
    compile.jobs_of([group], "h200", False, {"int4": backend})
    monkeypatch.setattr("tinygemm.hardware.live_gpu_key", lambda: "h200")
    monkeypatch.setitem(registry.BACKENDS, "int4", backend)
    assert "KeyError" in compile.launch(compile.Job("int4", "a variant that it lacks", PROBLEM, False))
    assert asked == [(PROBLEM, "h200", False)] * 3


def test_some_config_of_the_study_has_a_limit_of_registers_to_lose():
    variants = [registry.BACKENDS["int4"].variants(GemmProblem(1, N, K), "h200") for K, N in STUDY_SHAPES]
    assert any(variant.config.max_registers for (variant,) in variants)


@pytest.mark.parametrize("limit", [0, 128, 168])
def test_without_dequantisation_a_limit_of_registers_is_one_that_it_keeps(limit, monkeypatch):
    tuned = LaunchConfig("splitk", 8, 32, 2048, 1, 8, 1, limit)
    monkeypatch.setattr(ours, "select", lambda *_, **__: (tuned, "table"))
    raced = registry.BACKENDS["int4-no-dequant"].variants(PROBLEM, "h200")
    assert {variant.config.max_registers for variant in raced} == {limit, 168 if limit else 0}
    assert len({variant.source for variant in raced}) == len(raced)
    (naive,) = registry.BACKENDS["int4-naive-dequant"].variants(PROBLEM, "h200")
    assert naive.config == tuned


def test_without_dequantisation_a_program_of_many_warps_still_fits_into_an_sm(monkeypatch):
    tuned = LaunchConfig("splitk", 8, 16, 4096, 1, 16, 1, 96)
    monkeypatch.setattr(ours, "select", lambda *_, **__: (tuned, "table"))
    raced = registry.BACKENDS["int4-no-dequant"].variants(PROBLEM, "h200")
    assert [variant.config.max_registers for variant in raced] == [96, 128]
    assert all(32 * 16 * variant.config.max_registers <= 65536 for variant in raced)


def test_the_asymmetric_twin_has_the_codes_and_scales_of_int4_and_zeros_that_matter():
    _, packed, _ = operands()
    (variant,) = registry.BACKENDS["int4-asymmetric"].variants(PROBLEM, "h200")
    twin = variant.build(packed)
    assert torch.equal(quant.unpack(twin), quant.unpack(packed))
    assert torch.equal(twin.scales, packed.scales)
    assert len(twin.zeros.unique()) > 8
    assert variant.build(twin) is twin
    assert stored_bytes(twin) * 8 / (64 * 256) == registry.BACKENDS["int4-asymmetric"].bits_per_weight(PROBLEM, True)
    x, _, reference = operands()
    with pytest.raises(MismatchError):
        verify.check_product(lambda x, w: lambda: right(x, w), x, twin, packed, reference, FP16_TOLERANCE)
    verify.check_own(lambda x, w: lambda: right(x, w), x, twin, packed, reference, FP16_TOLERANCE)


def test_the_search_races_what_int4_takes_and_the_best_candidates_by_the_model():
    problem = GemmProblem(1, 13824, 5120)
    variants = registry.BACKENDS["int4-searched"].variants(problem, "h200")
    (selected,) = registry.BACKENDS["int4"].variants(problem, "h200")
    assert variants[0].config == selected.config
    assert len({variant.source for variant in variants}) == len(variants) == ours.SEARCHED
    assert all(problem.N % variant.config.block_n == 0 for variant in variants[1:])


def test_zeros_are_zero_bits_and_their_product_is_zero():
    _, packed, _ = operands(symmetric=False)
    zeros = registry.zeroed(packed)
    assert all(not tensor.any() for tensor in zeros.tensors())
    assert zeros.shape == packed.shape
    out = right(torch.zeros(2, 256), zeros)
    assert verify.compare(out, torch.zeros(2, 64), FP16_TOLERANCE) == verify.Errors(0.0, 0.0)
    for wrong in (torch.ones(2, 64), torch.full((2, 64), torch.nan)):
        with pytest.raises(MismatchError):
            verify.compare(wrong, torch.zeros(2, 64), FP16_TOLERANCE)


@pytest.mark.parametrize(("M", "kinds"), [(1, 2), (4, 2), (5, 1), (8, 1)])
def test_gemlite_is_given_its_kernels_to_choose_from_and_gemvs_for_few_tokens_only(M, kinds):
    variants = peers.gemlite_variants(GemmProblem(M, 4096, 4096), "h200")
    assert len({variant.source for variant in variants}) == len(variants) == kinds
    assert any("GEMV" in variant.source for variant in variants) == (M <= 4)

    class Layer:
        def __call__(self, x):
            return "own choice"

        def forward_manual(self, x, matmul_type):
            return matmul_type

    assert all(variant.source.endswith(variant.bind(None, Layer())()) for variant in variants)


def test_marlin_is_called_with_each_of_its_tiles(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "marlin", SimpleNamespace(mul=lambda *arguments: calls.append(arguments)))
    x, weight = torch.zeros(2, 128, dtype=torch.float16), ("words", torch.zeros(1, 256), "workspace")
    variants = peers.marlin_variants(GemmProblem(2, 256, 128), "h200")
    outs = [variant.bind(x, weight)() for variant in variants]
    assert [(out.shape, arguments[2] is out) for out, arguments in zip(outs, calls, strict=True)] == [
        ((2, 256), True)
    ] * 2
    assert [called[-2:] for called in calls] == [(-1, -1), (64, 256)]
    assert all(out.isnan().all() for out in outs), "what it does not write is seen"


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_aten_operands_hold_the_same_weight_in_its_own_order(symmetric, monkeypatch):
    """(code - 8) * scale + zero of what is handed to aten is the weight that the packed format stands for."""
    handed = {}

    def convert(pairs, tiles):
        handed["codes"] = torch.stack([pairs >> 4, pairs & 15], -1).reshape(pairs.shape[0], -1)
        return torch.zeros(1, dtype=torch.int32)

    @dataclass(frozen=True)
    class Ops:
        _convert_weight_to_int4pack = staticmethod(convert)

    monkeypatch.setattr(torch.ops, "aten", Ops())
    _, packed, _ = operands(symmetric=symmetric)
    _, scales_and_zeros = peers.aten_build(8)(packed)
    assert scales_and_zeros.shape == (PROBLEM.K // 128, PROBLEM.N, 2)
    scale, zero = (part.repeat_interleave(128, 0).t() for part in scales_and_zeros.float().unbind(2))
    weight = (handed["codes"].float() - 8) * scale + zero
    expected = quant.dequantize(packed, torch.float32)
    assert (weight - expected).abs().max() < 2**-7 * expected.abs().max()


# --- a wrong one is caught ------------------------------------------------------------------------------------------


def right(x, w):
    return quant.reference_gemm(x, w)


def wrong_group(x, w):
    scales = w.scales.roll(1, 0)
    return right(x, quant.pack(quant.unpack(w), scales, w.zeros, w.group_size))


def wrong_nibble(x, w):
    codes = quant.unpack(w)
    codes[:, 0] ^= 1
    return right(x, quant.pack(codes, w.scales, w.zeros, w.group_size))


def lost_share(x, w):
    return right(x[:, : w.K // 2], quant.pack(quant.unpack(w)[:, : w.K // 2].contiguous(), w.scales[:1], None, 128))


def unwritten_element(x, w):
    """Memory that is not poisoned may still hold the right value of the call before: here it always does."""
    out = torch.empty(x.shape[0], w.N, dtype=torch.float64)
    stale = right(x, w)[0, -1] if not out[0, -1].isnan() else out[0, -1].clone()
    out[:] = right(x, w)
    out[0, -1] = stale
    return out


FAULTS = [wrong_group, wrong_nibble, lost_share, unwritten_element]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize(
    "tolerance", [FP16_TOLERANCE, GEMLITE_TOLERANCE, BF16_TOLERANCE], ids=["fp16", "gemlite", "bf16"]
)
def test_a_fault_is_a_mismatch_whatever_the_tolerance(fault, tolerance):
    x, packed, reference = operands()
    with pytest.raises(MismatchError, match="error against float64"):
        verify.check_product(lambda x, w: lambda: fault(x, w), x, packed, packed, reference, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", FP16_TOLERANCE), ("bfloat16", BF16_TOLERANCE)])
def test_rounding_everything_to_a_backends_type_stays_within_its_tolerance(dtype, tolerance):
    x, packed, reference = operands(GemmProblem(16, 512, 1024))
    dtype = getattr(torch, dtype)
    weight = quant.dequantize(packed).to(dtype).double()
    out = (x.to(dtype).double() @ weight.t()).to(dtype)
    errors = verify.compare(out, reference, tolerance)
    assert errors.max_err > tolerance.max_err / 30, "the bound is far wider than rounding needs"


def test_gemlite_alone_may_have_the_largest_error_of_a_gemv_that_adds_in_fp16():
    """0.0193 was measured; how many are off by how much is bounded as for everybody."""
    _, _, reference = operands(GemmProblem(1, 4096, 256))
    out = reference.clone()
    out[0, 7] += 0.021 * reference.square().mean().sqrt()
    assert 0.02 < verify.compare(out, reference, registry.BACKENDS["gemlite"].tolerance).max_err < 0.022
    for name in {*registry.BACKENDS} - {"gemlite"}:
        if registry.BACKENDS[name].dtype == "float16":
            with pytest.raises(MismatchError):
                verify.compare(out, reference, registry.BACKENDS[name].tolerance)
    with pytest.raises(MismatchError):
        verify.compare(reference * 1.004, reference, GEMLITE_TOLERANCE)


def test_bf16_is_too_coarse_for_the_bounds_of_fp16():
    _, _, reference = operands(GemmProblem(16, 512, 1024))
    with pytest.raises(MismatchError):
        verify.compare(reference.bfloat16(), reference, verify.Tolerance(2e-3, 1e-3))


def test_an_output_of_another_shape_is_a_mismatch():
    with pytest.raises(MismatchError, match=r"shape \(64, 2\), expected \(2, 64\)"):
        verify.compare(torch.zeros(64, 2), torch.ones(2, 64), FP16_TOLERANCE)


def test_nan_fails_every_bound():
    out = torch.ones(2, 64)
    out[1, 3] = torch.nan
    with pytest.raises(MismatchError, match="1 are NaN"):
        verify.compare(out, torch.ones(2, 64), verify.Tolerance(float("inf"), float("inf")))


def test_memory_is_poisoned_during_the_check_and_only_then():
    with verify.poisoned_memory():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_load_only_must_have_read_every_word_and_scale():
    _, packed, _ = operands()
    truth = load_only_reference(packed)
    whole = lambda x, w: lambda: torch.stack([truth ^ 5, torch.full_like(truth, 5)])  # noqa: E731
    assert verify.check_reads(whole, None, packed, packed, None, None) == verify.Errors()
    for spoilt in ({"qweight": packed.qweight.clone()}, {"scales": packed.scales.clone()}):
        (tensor,) = spoilt.values()
        tensor.view(-1).view(torch.int16)[-1] ^= 1
        less = load_only_reference(replace(packed, **spoilt))
        with pytest.raises(MismatchError, match="checksum of what was read is wrong for 1 of 64 rows"):
            verify.check_reads(lambda x, w, less=less: lambda: less[None], None, packed, packed, None, None)


def test_dequant_only_is_compared_with_the_weight_itself():
    x, packed, _ = operands()
    good = lambda x, w: lambda: quant.dequantize(w)  # noqa: E731
    verify.check_dequantised(good, x, packed, packed, None, verify.DEQUANT_TOLERANCE)
    bad = lambda x, w: lambda: quant.dequantize(w).roll(1, 1)  # noqa: E731
    with pytest.raises(MismatchError):
        verify.check_dequantised(bad, x, packed, packed, None, verify.DEQUANT_TOLERANCE)


def test_a_copy_that_copies_nothing_is_a_mismatch():
    source, target = torch.arange(8), torch.zeros(8, dtype=torch.long)
    verify.check_copy(lambda: (target.copy_(~source), source))
    with pytest.raises(MismatchError):
        verify.check_copy(lambda: (torch.zeros_like(source), source))


# --- copies ---------------------------------------------------------------------------------------------------------


def test_copies_are_equal_separate_and_aligned():
    _, packed, _ = operands(GemmProblem(1, 98, 256))
    copies = replicate(packed, 5)
    pointers = {tensor.data_ptr() for copy in copies for tensor in copy.tensors()}
    assert len(pointers) == 10
    for copy in copies:
        for tensor, first in zip(copy.tensors(), copies[0].tensors(), strict=True):
            assert (tensor.data_ptr() - first.data_ptr()) % 256 == 0, "another alignment would be another kernel"
    for copy in copies:
        assert torch.equal(copy.qweight, packed.qweight)
        assert torch.equal(copy.scales, packed.scales)
        assert (copy.N, copy.K, copy.group_size) == (98, 256, 128)
    copies[0].qweight.zero_()
    assert torch.equal(copies[1].qweight, packed.qweight)


def test_tuples_and_modules_are_copied_too():
    pair = (torch.arange(3), torch.ones(2))
    copies = replicate(pair, 3)
    assert [len(copy) for copy in copies] == [2, 2, 2]
    assert torch.equal(copies[2][0], pair[0])
    layers = replicate(torch.nn.Linear(4, 4), 3)
    assert len({layer.weight.data_ptr() for layer in layers}) == 3
    assert stored_bytes(layers[0]) == 4 * (16 + 4)
    with pytest.raises(TypeError, match="cannot copy a weight of type str"):
        stored_bytes("weight")


def test_a_form_is_built_once_for_all_backends_and_cache_states():
    _, packed, _ = operands()
    built = []
    weights = Weights(packed, l2_bytes=10 * packed.nbytes)

    def build(packed):
        built.append(1)
        return packed

    hot = weights.copies("packed", build, "hot")
    cold = weights.copies("packed", build, "cold")
    assert (len(hot), len(cold)) == (1, 50)
    assert weights.copies("packed", build, "hot")[0] is cold[0]
    assert weights.copies("packed", build, "cold") == cold
    assert built == [1]


# --- choosing a variant, refusing a backend -------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", ["first", "second"])
def test_the_fastest_variant_is_chosen_and_named(fastest):
    clock = FakeClock()
    us = {"first": 9.0, "second": 9.0} | {fastest: 8.0}
    bench = bench_of(clock, fake_backend("peer", clock, us, variants=("first", "second")))
    _, packed, _ = operands()
    ready = ready_of(bench, Weights(packed, 1000))
    assert ready["peer"].variant.source == fastest


def test_of_many_variants_each_is_timed_alone_and_the_best_against_each_other():
    clock = FakeClock()
    names = tuple(f"v{i}" for i in range(20))
    us = {name: 30.0 - i for i, name in enumerate(names)}
    _, packed, _ = operands()
    ready = ready_of(bench_of(clock, fake_backend("peer", clock, us, variants=names)), Weights(packed, 1000))
    assert ready["peer"].variant.source == "v19"
    rounds = [entry[1] for entry in clock.log if entry[0] == "round"]
    assert set(rounds) == {1, choose.FINALISTS}
    assert rounds.count(choose.FINALISTS) == choose.CHOICE_ROUNDS + 3


def test_a_variant_that_is_wrong_is_no_candidate_even_if_it_is_the_fastest():
    clock = FakeClock()
    good = fake_backend("peer", clock, {"slow": 9.0}, variants=("slow",))
    bad = fake_backend("peer", clock, {"fast": 1.0}, product=wrong_group, variants=("fast",))
    ways = [*bad.variants(PROBLEM, "h200"), *good.variants(PROBLEM, "h200")]
    _, packed, _ = operands()
    bench = bench_of(clock, replace(good, variants=lambda *_: ways))
    ready = ready_of(bench, Weights(packed, 1000))
    assert ready["peer"].variant.source == "slow"
    assert ready["peer"].message.startswith("left out: fast: error against float64: max ")
    ready = ready_of(bench_of(clock, bad), Weights(packed, 1000))
    assert ready["peer"].status == "mismatch"


def test_a_weight_that_does_not_fit_in_memory_is_every_contenders_misfortune(monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    clock = FakeClock()
    bench = bench_of(clock, fake_backend("a", clock), fake_backend("b", clock))
    group = Group(PROBLEM, str(PROBLEM), "graph", "cold", ("a", "b"))
    with monkeypatch.context() as patch:
        patch.setattr(registry, "operands", too_large)
        weights = choose.make_weights(bench, group)
    ready = choose.make_ready(bench, [group], weights)
    cases, samples = measure_group(bench, group, ready, weights)
    assert [case.status for case in cases] == ["out_of_memory"] * 2
    assert samples == []
    monkeypatch.setattr(quant, "reference_gemm", too_large)
    ready = choose.make_ready(bench, [group], choose.make_weights(bench, group))
    assert {state.status for state in ready.values()} == {"out_of_memory"}


def test_a_wrong_last_copy_is_caught():
    """The first copy alone would hide a fault of the copying."""
    clock = FakeClock()
    bench = bench_of(clock, fake_backend("int4", clock))
    _, packed, _ = operands()
    weights = Weights(packed, 1000)
    copies = weights.copies("packed", lambda packed: packed, "cold")
    copies[-1].scales.mul_(2)
    assert ready_of(bench, weights)["int4"].status == "mismatch"


def raising(error):
    def product(x, w):
        raise error

    return product


@pytest.mark.parametrize(
    ("product", "status", "message"),
    [
        (wrong_group, "mismatch", "error against float64"),
        (raising(torch.OutOfMemoryError("CUDA out of memory.\nTried")), "out_of_memory", "CUDA out of memory."),
        (raising(RuntimeError("ptxas failed on /tmp/x/k.ptx\nlong")), "error", "RuntimeError: ptxas failed on k.ptx"),
    ],
    ids=["mismatch", "out_of_memory", "error"],
)
def test_a_failure_gets_its_own_word_and_one_line(product, status, message):
    clock = FakeClock()
    bench = bench_of(clock, fake_backend("bad", clock, product=product), fake_backend("good", clock))
    _, packed, _ = operands()
    ready = ready_of(bench, Weights(packed, 1000))
    assert ready["bad"].status == status
    assert ready["bad"].message.startswith(message)
    assert isinstance(ready["good"], choose.Ready)


def test_a_config_that_does_not_exist_is_unsupported():
    def no_config(problem, gpu, symmetric):
        raise ValueError("the ring serves up to 8 tokens")

    clock = FakeClock()
    _, packed, _ = operands()
    ready = ready_of(bench_of(clock, fake_backend("b", clock, variants=())), Weights(packed, 1000))
    assert ready["b"].status == "error", "a backend without a variant is a fault, not a refusal"
    backend = fake_backend("b", clock)
    object.__setattr__(backend, "variants", no_config)
    ready = ready_of(bench_of(clock, backend), Weights(packed, 1000))
    assert (ready["b"].status, ready["b"].message) == ("unsupported", "the ring serves up to 8 tokens")


def test_a_lost_context_stops_everything():
    clock = FakeClock()

    def illegal(x, w):
        clock.broken = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    _, packed, _ = operands()
    with pytest.raises(choose.SweepStoppedError, match=r"no longer answers.*illegal memory access"):
        ready_of(bench_of(clock, fake_backend("bad", clock, product=illegal)), Weights(packed, 1000))


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("problem", [GemmProblem(1, 1024, 4096), GemmProblem(8, 4096, 4096)], ids=str)
def test_every_backend_is_right_on_the_gpu_or_says_why_not(problem, symmetric):
    from tinygemm import hardware

    plan = SweepPlan((problem,), symmetric=symmetric, backends=tuple(registry.BACKENDS))
    bench = choose.Bench(plan, hardware.snapshot(), timing.CudaClock())
    packed = registry.operands(problem, symmetric, "cuda", 0)
    ready = ready_of(bench, Weights(packed, bench.gpu["l2_bytes"]), problem)
    refused = {name: state for name, state in ready.items() if isinstance(state, choose.Refused)}
    assert {state.status for state in refused.values()} <= {"unsupported"}, refused
    needed = {"fp16-cublas", "fp16-triton", "dequant-fp16", "dequant-only", "int4-static", "int4", "aten-int4mm"}
    assert not needed & set(refused), refused
    assert ready["fp16-cublas"].variant.source in ("layout=kn", "layout=nk")


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(registry.CEILINGS))
def test_the_ceilings_run_on_the_gpu(name):
    ceiling = registry.CEILINGS[name]
    ceiling.check(ceiling.make())
    torch.cuda.synchronize()
