"""The choice of `gemm`: the fused kernel for few tokens, the dequantised weight for many, and few binaries for all."""

from dataclasses import replace

import pytest
import torch
from operands import assert_close, make_operands, poison_allocations
from ptx import emulated

from tinygemm.kernel import gemm, launch, launches
from tinygemm.kernel.configs import DEQUANTISE, DEQUANTISE_FROM_M, STATIC, LaunchConfig, select, table
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.quant import dequantize, pack, quantize, random_packed
from tinygemm.problem import GemmProblem

SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=256, split_k=2, num_warps=2, num_stages=1)
RING = LaunchConfig("ring", block_m=4, block_n=32, block_k=256, split_k=1, num_warps=2, num_stages=3)
TOLERANCE = {torch.float16: {}, torch.bfloat16: {"max_err": 8 * 4e-3, "rms_err": 8e-3}}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    poison_allocations(monkeypatch)
    with emulated():
        yield


@pytest.fixture
def launched(monkeypatch):
    """The launches of every call, in order."""
    described = []
    start = launch.start

    def remember(key, inputs, work):
        described.extend((one, inputs) for one in work.launches)
        return start(key, inputs, work)

    monkeypatch.setattr(launch, "start", remember)
    return described


def names(launched):
    return [one.kernel.fn.__name__ for one, _ in launched]


def packed(operands):
    return pack(operands.codes, operands.scales, operands.zeros, operands.group_size)


@pytest.mark.parametrize("M", [DEQUANTISE_FROM_M - 1, DEQUANTISE_FROM_M])
def test_from_the_crossover_on_the_weight_is_dequantised_first(M, launched, monkeypatch):
    monkeypatch.setattr(gemm, "_selected", lambda problem, gpu, form, *format: selected(problem.M, form))
    operands = make_operands(M, 40, 256, 64, symmetric=False)
    assert_close(gemm.gemm(operands.x, packed(operands)), operands.reference())
    fused = "kernel_gemm_packed_int4_splitk"
    assert set(names(launched)) == {fused if M < DEQUANTISE_FROM_M else "kernel_dequantize_int4"}
    launched.clear()
    assert_close(gemm.fused_gemm(operands.x, packed(operands)), operands.reference())
    assert set(names(launched)) == {fused}, "forced, at any number of tokens"


def selected(M, form):
    return DEQUANTISE if form is None and M >= DEQUANTISE_FROM_M else SPLITK


def test_the_dequantised_route_can_be_forced_and_keeps_leading_dimensions(launched):
    operands = make_operands(6, 40, 256)
    out = gemm.gemm(operands.x.view(2, 3, 256), packed(operands), DEQUANTISE)
    assert names(launched) == ["kernel_dequantize_int4"]
    assert_close(out.view(6, 40), operands.reference())


def test_a_fused_call_on_bad_input_says_what_is_wrong():
    with pytest.raises(ValueError, match="K=256"):
        gemm.fused_gemm(torch.ones(1, 128).half(), random_packed(16, 256))


OPERANDS = {
    "x a list": (lambda w: ([1], w), "x must be a tensor, got list"),
    "w a tensor": (lambda w: (X, torch.ones(16, 256)), "w must be a PackedInt4, got Tensor; pack"),
    "w a layer": (lambda w: (X, Int4Linear.from_packed(w)), "got Int4Linear; pass layer.weight"),
    "w a float layer": (lambda w: (X, torch.nn.Linear(256, 16)), "got Linear; pack a matrix"),
}
X = torch.ones(1, 256).half()


@pytest.mark.parametrize("product", [gemm.gemm, gemm.fused_gemm, gemm.check])
@pytest.mark.parametrize("case", OPERANDS)
def test_what_is_no_operand_is_refused_with_what_to_pass(case, product):
    operands, message = OPERANDS[case]
    with pytest.raises(TypeError, match=message):
        product(*operands(random_packed(16, 256)))


@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_weight_is_dequantised_in_the_type_that_is_asked_for(dtype, group_size):
    operands = make_operands(1, 40, 384, group_size, symmetric=False)
    weight = gemm.dequantize_fp16(packed(operands), dtype)
    assert weight.dtype == dtype
    if dtype == torch.float16:
        assert torch.equal(weight, dequantize(packed(operands), dtype))
    else:  # the interpreter cuts the last bits off where a GPU rounds
        exact = dequantize(packed(operands), torch.float32)
        torch.testing.assert_close(weight.float(), exact, rtol=2**-7, atol=0)


def test_a_table_that_is_not_tuned_for_many_tokens_still_serves_them():
    rows, _ = table("h200")
    assert max(row["M"] for row in rows) < 1000
    assert select(GemmProblem(1000, 4096, 4096), "h200", "fused")[0].form in ("splitk", "ring", "static")


@pytest.mark.parametrize(
    ("shape", "strides", "distance"),
    [
        ((8,), (1,), 8),
        ((1, 8), (99, 1), 8),
        ((3, 8), (20, 1), 20),
        ((4, 8), (0, 1), 0),
        ((2, 3, 8), (60, 20, 1), 20),
        ((2, 1, 8), (60, 7, 1), 60),
        ((1, 3, 8), (7, 20, 1), 20),
        ((2, 3, 8), (61, 20, 1), None),
        ((3, 2, 8), (20, 60, 1), None),
        ((2, 2, 3, 8), (120, 60, 20, 1), 20),
    ],
)
def test_rows_lie_at_one_distance_or_are_copied(shape, strides, distance):
    x = torch.zeros(400).as_strided(shape, strides)
    assert gemm._row_stride(x) == distance
    if distance is not None:
        rows = torch.arange(400.0).as_strided(shape, strides).reshape(-1, 8)
        assert torch.equal(rows, torch.arange(400.0).as_strided((len(rows), 8), (distance, 1)))


@pytest.mark.parametrize("view", ["last token", "swapped axes", "expanded", "every second"])
def test_any_arrangement_of_rows_is_multiplied(view):
    operands = make_operands(12, 40, 256)
    w, x = packed(operands), operands.x.view(3, 4, 256)
    x = {
        "last token": lambda: x[:, -1:],
        "swapped axes": lambda: x.transpose(0, 1),
        "expanded": lambda: x[:1].expand(3, 4, 256),
        "every second": lambda: x[:, ::2],
    }[view]()
    out = gemm.gemm(x, w, SPLITK)
    assert out.shape == (*x.shape[:-1], 40)
    reference = x.reshape(-1, 256).double() @ dequantize(w, torch.float64).T
    assert_close(out.reshape(-1, 40), reference)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "M"),
    [(STATIC, 1), (STATIC, 17), (SPLITK, 1), (SPLITK, 9), (RING, 1), (RING, 6), (DEQUANTISE, 64)],
    ids=lambda value: getattr(value, "form", value),
)
def test_scales_may_be_negative_and_subnormal(config, M, dtype, symmetric):
    """Small weights quantised by full range, in every form; activations bring the output to order one."""
    operands = make_operands(M, 32, 256, 64, symmetric)
    sign = torch.where(torch.arange(32) % 3 == 0, -1, 1)  # the neighbour's sign would show
    scales = (operands.scales * sign * 2.0**-13).half()  # steps of 2^-24 are a percent of them
    assert 0 < scales.abs().min() < scales.abs().max() < torch.finfo(torch.float16).tiny
    operands = replace(operands, scales=scales, x=(operands.x * 2.0**12).to(dtype))
    assert_close(gemm.gemm(operands.x, packed(operands), config), operands.reference(), **TOLERANCE[dtype])


def test_a_weight_by_full_range_is_multiplied_with_its_signed_scales():
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(1)).half()
    w = quantize(weight)
    assert (w.scales < 0).any()
    assert (w.scales > 0).any()
    assert_close(gemm.gemm(x, w, SPLITK), x.double() @ dequantize(w, torch.float64).T)


@pytest.mark.parametrize("shape", [(0, 256), (2, 0, 256), (0, 3, 256)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_rows_give_no_rows(shape, dtype, launched):
    for product in (gemm.gemm, gemm.fused_gemm):
        out = product(torch.zeros(shape, dtype=dtype), random_packed(40, 256))
        assert (out.shape, out.dtype) == ((*shape[:-1], 40), dtype)
    assert not launched


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine on which no kernel can run."""
    monkeypatch.setattr(launches, "INTERPRETED", False)


@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (128, False), (-1, True)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_without_a_gpu_the_product_is_that_of_the_dequantised_weight(no_gpu, launched, dtype, group_size, symmetric):
    operands = make_operands(6, 40, 256, group_size, symmetric)
    x, w = operands.x.to(dtype), packed(operands)
    out = gemm.gemm(x.view(2, 3, 256), w)
    assert (out.shape, out.dtype) == ((2, 3, 40), dtype)
    assert not launched
    assert_close(out.view(6, 40), replace(operands, x=x).reference(), **TOLERANCE[dtype])
    operator = torch.ops.tinygemm.gemm(x, w.qweight, w.scales, w.zeros, 40, 256, group_size)
    assert torch.equal(operator, out.view(6, 40))


def test_without_a_gpu_a_config_cannot_be_forced(no_gpu):
    with pytest.raises(ValueError, match="config must be None where x is on cpu"):
        gemm.gemm(torch.ones(1, 256).half(), random_packed(16, 256), SPLITK)


@pytest.mark.parametrize("M", [2, 100])
def test_a_product_on_meta_tensors_has_its_shape_and_type(M):
    out = gemm.gemm(torch.empty(M, 256, dtype=torch.bfloat16, device="meta"), random_packed(40, 256).to("meta"))
    assert (out.shape, out.dtype, out.device.type) == ((M, 40), torch.bfloat16, "meta")


@pytest.mark.parametrize("interpreted", [True, False])
def test_autocast_changes_nothing_of_a_product(interpreted, monkeypatch):
    """Its output has the dtype of x, by whatever route."""
    monkeypatch.setattr(launches, "INTERPRETED", interpreted)
    operands = make_operands(64, 32, 256)
    expected = gemm.gemm(operands.x, packed(operands), DEQUANTISE if interpreted else None)
    with torch.autocast("cpu", torch.bfloat16):
        out = gemm.gemm(operands.x, packed(operands), DEQUANTISE if interpreted else None)
    assert out.dtype == torch.float16
    assert torch.equal(out, expected)
