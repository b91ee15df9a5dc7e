"""The meaning of the bits: the packed format, quantisation, and their errors."""

import copy
import gc
import re
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import assert_close, make_operands

from tinygemm.kernel.quant import (
    RULES,
    PackedInt4,
    dequantize,
    pack,
    quantize,
    random_packed,
    reference_gemm,
    unpack,
)

GROUP_SIZES = (32, 64, 128, -1)
# (symmetric, rule): every way to choose a scale
WAYS = [(True, "full-range"), (True, "absmax"), (False, "full-range")]
WAY_IDS = ["full-range", "absmax", "zeros"]


@st.composite
def shapes(draw):
    """(N, K, group_size): odd N, K of any number of groups, K not a multiple of 128."""
    group_size = draw(st.sampled_from(GROUP_SIZES))
    K = draw(st.integers(1, 300)) if group_size == -1 else group_size * draw(st.integers(1, 6))
    return draw(st.integers(1, 40)), K, group_size


@st.composite
def weights(draw):
    """A finite weight [N, K] with its group size: any float type, rows of very different magnitude, some constant."""
    N, K, group_size = draw(shapes())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(N, K, generator=generator) * torch.logspace(-7, draw(st.integers(-7, 3)), N)[:, None]
    weight = weight * draw(st.sampled_from([0.0, 1.0])) + draw(st.sampled_from([0.0, 0.5, -2.0]))
    return weight.to(draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))), group_size


def expand(per_group, K):
    """[groups, N] -> [N, K]"""
    return per_group.double().repeat_interleave(K // len(per_group), 0).T


@settings(max_examples=60, deadline=None)
@given(shapes(), st.booleans(), st.integers(0, 2**31))
def test_unpack_gives_back_what_pack_was_given(shape, symmetric, seed):
    N, K, group_size = shape
    operands = make_operands(1, max(N, 16), K, group_size, symmetric, seed)
    codes, scales = operands.codes[:N], operands.scales[:, :N]
    zeros = None if symmetric else operands.zeros[:, :N]
    w = pack(codes, scales, zeros, group_size)
    assert w.shape == (N, K)
    assert w.qweight.dtype == torch.int32
    assert w.qweight.shape == (-(-N // 16), -(-K // 128), 16, 16)
    assert torch.equal(unpack(w), codes)
    assert torch.equal(w.scales, scales)
    assert w.zeros is None if symmetric else torch.equal(w.zeros, zeros)


def test_each_code_lies_where_the_format_says():
    """Word j of row n of a tile holds k = 32 p + 2 j + h at bits 4 (p + 4 h): checked code by code."""
    N, K = 33, 272
    operands = make_operands(1, N, K, -1)
    qweight = pack(operands.codes, operands.scales, None, -1).qweight.tolist()
    for n in range(N):
        for k in range(K):
            p, j, h = k % 128 // 32, k % 32 // 2, k % 2
            word = qweight[n // 16][k // 128][n % 16][j]
            assert word >> 4 * (p + 4 * h) & 15 == operands.codes[n, k], f"n={n} k={k}"


def test_padding_stands_for_zero():
    """Rows beyond N and columns beyond K hold code 8, which is zero where nothing else is known."""
    w = pack(torch.full((3, 32), 15, dtype=torch.uint8), torch.ones(1, 3, dtype=torch.float16), None, 32)
    codes = unpack(PackedInt4(w.qweight, scales_like(1, 16), None, 16, 128, -1))
    assert (codes[:3, :32] == 15).all()
    assert (codes[3:] == 8).all()
    assert (codes[:, 32:] == 8).all()


@settings(max_examples=80, deadline=None)
@given(weights(), st.sampled_from(WAYS))
def test_the_error_of_a_weight_is_at_most_half_its_scale_and_one_on_the_clipped_side(weight_and_group, way):
    weight, group_size = weight_and_group
    w = quantize(weight, group_size, way[0], rule=way[1])
    scales, weight = expand(w.scales, weight.shape[1]), weight.double()
    error = (dequantize(w, torch.float64) - weight).abs()
    # the scale itself is rounded to float16, by up to 2^-11 of it or half a subnormal step; a group is 15 codes wide
    rounding = 15 * (scales.abs() * 2**-11).clamp_min(2**-25)
    clipped = (weight / scales > 7.5) & (way == (True, "full-range"))
    bound = torch.where(clipped, 1.0, 0.5) * scales.abs() + rounding
    assert (error <= bound).all(), f"worst {(error / bound).max():.4f} of the bound"


@pytest.mark.parametrize(("symmetric", "rule"), WAYS, ids=WAY_IDS)
@pytest.mark.parametrize(("sigma", "worst"), [(1e-2, 0.125), (2e-4, 0.125), (2e-5, 0.125), (1e-6, 0.14), (1e-7, 0.25)])
def test_small_weights_are_rounded_as_well_as_large_ones(symmetric, rule, sigma, worst):
    """Scales may be subnormal: relative error of Gaussian weights, in units of their size."""
    weight = torch.randn(32, 512, generator=torch.Generator().manual_seed(0)) * sigma
    error = dequantize(quantize(weight, 128, symmetric, rule=rule), torch.float64) - weight
    assert error.norm() / weight.norm() < worst


@pytest.mark.parametrize(("symmetric", "rule"), WAYS, ids=WAY_IDS)
def test_weights_below_half_the_smallest_scale_become_zero(symmetric, rule):
    weight = torch.linspace(-(2.0**-25), 2.0**-25, 128)[None] * 0.99
    w = quantize(weight, 128, symmetric, rule=rule)
    assert w.scales.item() == 2.0**-24
    assert (dequantize(w, torch.float64) == 0).all()


@pytest.mark.parametrize("largest", [-3.0, 3.0])
def test_by_full_range_the_largest_weight_is_code_0_whatever_its_sign(largest):
    weight = torch.linspace(-2.9, 2.9, 128).repeat(2, 1)
    weight[:, 40] = largest
    w = quantize(weight)
    assert (w.scales == torch.tensor(largest / -8).half()).all()
    assert (unpack(w)[:, 40] == 0).all()
    exact = weight / w.scales.float().T  # [N, 1]: one group
    assert torch.equal(unpack(w), (exact + 8).round().clamp(0, 15).to(torch.uint8))
    assert (unpack(w) == 15).any(), "the other side is clipped"


def test_by_full_range_a_group_with_two_largest_weights_has_a_positive_scale():
    weight = torch.zeros(1, 128)
    weight[0, :2] = torch.tensor([1.0, -1.0])
    w = quantize(weight)
    assert w.scales.item() == 0.125
    assert unpack(w)[0, :2].tolist() == [15, 0]


def test_by_absmax_the_scale_is_a_seventh_of_the_largest_magnitude():
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    w = quantize(weight, rule="absmax")
    assert torch.equal(w.scales, (weight.view(4, 2, 128).abs().amax(-1) / 7).half().T)
    assert unpack(w).min() == 1


def error_of_each_group(w, weight):
    """Squared error in float64: [N, groups]"""
    return (dequantize(w, torch.float64) - weight.double()).square().view(w.N, -1, w.group_length).sum(-1)


@settings(max_examples=80, deadline=None)
@given(weights(), st.sampled_from(WAYS))
def test_a_searched_scale_loses_no_more_than_the_rule_in_any_group(weight_and_group, way):
    weight, group_size = weight_and_group
    closed, searched = (quantize(weight, group_size, way[0], rule=way[1], search=search) for search in (False, True))
    floor = 1e-4 * error_of_each_group(closed, weight) + 1e-40  # the search adds up in float32
    assert (error_of_each_group(searched, weight) <= error_of_each_group(closed, weight) + floor).all()


@pytest.mark.parametrize(("symmetric", "rule"), WAYS, ids=WAY_IDS)
def test_a_search_finds_the_scale_that_a_few_outliers_hide(symmetric, rule):
    """127 weights on a grid of 0.1 and one outlier that is little to lose: the best codes are those of the grid."""
    weight = 0.1 * torch.arange(-7, 8.0).repeat(2, 16)[:, :128]
    weight[:, 100] = 1.0
    w = quantize(weight, symmetric=symmetric, rule=rule, search=True)
    kept = torch.arange(128) != 100
    lost = dequantize(w, torch.float64) - weight
    assert lost[:, kept].square().mean().sqrt() < 0.01
    assert (lost[:, 100] < -0.1).all()
    closed = dequantize(quantize(weight, symmetric=symmetric, rule=rule), torch.float64) - weight
    assert lost.norm() < closed.norm()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_search_is_nearly_as_good_as_trying_every_scale(symmetric):
    """Gaussian groups of 64 against 400 scales of either sign, each with every zero, in float64."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    best = torch.full((8,), torch.inf, dtype=torch.float64)
    for zero in [8] if symmetric else range(16):
        for steps in torch.linspace(-0.5, 0.5, 401).double():
            if steps:
                codes = (weight.double() / steps + zero).round().clamp(0, 15)
                best = best.minimum(((codes - zero) * steps - weight).square().sum(-1))
    found = error_of_each_group(quantize(weight, 64, symmetric, search=True), weight).sum()
    assert best.sum() * 0.999 <= found < best.sum() * 1.05


def test_a_search_keeps_weights_within_float16():
    weight = torch.linspace(-65000, 65000, 128).repeat(16, 1)
    weight[:, 0] = 65504
    w = quantize(weight, search=True)
    assert dequantize(pack(torch.full_like(unpack(w), 15), w.scales, None)).isfinite().all()
    one_sided = quantize(weight.abs(), symmetric=False, search=True)
    assert dequantize(one_sided).isfinite().all()


def test_full_range_loses_less_than_absmax_and_zeros_least():
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    errors = [(dequantize(quantize(weight, 128, s, rule=rule)) - weight).norm().item() for s, rule in WAYS]
    assert errors[2] < errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("low", [0.5, 21 * 2.0**-24], ids=["normal", "subnormal"])
@pytest.mark.parametrize(("sign", "zero"), [(1, 0), (-1, 15)], ids=["positive", "negative"])
def test_a_one_sided_group_has_its_zero_at_an_end_of_the_codes(sign, zero, low):
    """The codes reach from zero to the farthest weight; a scale that was rounded down must not push zero further."""
    weight = sign * torch.linspace(low / 2, low, 128).repeat(3, 1)
    w = quantize(weight, symmetric=False)
    assert (w.zeros == zero).all()
    assert unpack(w).max() == 15 if sign > 0 else unpack(w).min() == 0
    scale = w.scales.double().max()
    error = (dequantize(w, torch.float64) - weight).abs().max()
    assert error <= scale / 2 + 15 * max(scale * 2**-11, 2.0**-25)


@settings(max_examples=40, deadline=None)
@given(weights(), st.sampled_from(RULES))
def test_rounding_a_rounded_symmetric_weight_changes_nothing(weight_and_group, rule):
    """Codes and scales stay bit for bit, wherever scales are normal numbers."""
    weight, group_size = weight_and_group
    once = quantize(weight, group_size, rule=rule)
    twice = quantize(dequantize(once, torch.float32), group_size, rule=rule)
    normal = once.scales.abs() >= torch.finfo(torch.float16).tiny
    assert torch.equal(once.scales[normal], twice.scales[normal])
    same = (unpack(once) == unpack(twice)) | ~(expand(normal, weight.shape[1]) > 0)
    assert same.all()


@settings(max_examples=40, deadline=None)
@given(shapes(), st.booleans(), st.integers(0, 2**31))
def test_quantising_a_dequantised_weight_changes_nothing(shape, symmetric, seed):
    """Weights that INT4 can express exactly, with the outermost codes in every group, survive bit for bit.

    By absmax; by full range each group holds code 0, which the test above sees to.
    """
    N, K, group_size = shape
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group_size == -1 else K // group_size
    codes = torch.randint(1, 16, (N, K), generator=generator, dtype=torch.uint8)
    starts = torch.arange(groups) * (K // groups)
    codes[:, starts] = 15  # at zero 8 the scale is absmax / 7, at zero 0 it is max / 15
    scales = 2.0 ** torch.randint(-8, 2, (groups, N), generator=generator).half()
    zeros = None if symmetric else torch.zeros(groups, N, dtype=torch.uint8)
    exact = dequantize(pack(codes, scales.half(), zeros, group_size), torch.float32)
    assert torch.equal(dequantize(quantize(exact, group_size, symmetric, rule="absmax"), torch.float32), exact)


@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantize_is_code_minus_zero_times_scale(symmetric):
    operands = make_operands(1, 24, 192, 64, symmetric)
    zeros = torch.full_like(operands.scales, 8) if symmetric else operands.zeros
    expected = (operands.codes.double() - expand(zeros, 192)) * expand(operands.scales, 192)
    w = pack(operands.codes, operands.scales, operands.zeros, 64)
    assert torch.equal(dequantize(w, torch.float64), expected)
    assert torch.equal(dequantize(w), expected.half())
    assert torch.equal(dequantize(w, torch.bfloat16), expected.float().bfloat16())


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_reference_equals_the_definition(group_size, symmetric):
    operands = make_operands(3, 20, 384, group_size, symmetric)
    out = reference_gemm(operands.x, pack(operands.codes, operands.scales, operands.zeros, group_size))
    assert out.dtype == torch.float64
    assert_close(out, operands.reference(), max_err=1e-12, rms_err=1e-12)


def test_quantisation_keeps_a_product_within_a_few_percent():
    """Gaussian weights, group 128: the error of 4 bits is about a tenth of the weights' spread, averaged over K."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 512, generator=generator)
    x = torch.randn(4, 512, generator=generator).half()
    exact = x.double() @ weight.double().T
    for symmetric in (True, False):
        error = reference_gemm(x, quantize(weight, 128, symmetric)) - exact
        assert error.square().mean().sqrt() < 0.15 * exact.square().mean().sqrt()


def test_asymmetric_groups_use_all_codes_of_a_one_sided_weight():
    weight = torch.linspace(0, 3, 128).expand(4, 128)
    one_sided = quantize(weight, 128, symmetric=False)
    assert unpack(one_sided).unique().tolist() == list(range(16))
    assert (one_sided.zeros == 0).all()
    error = (dequantize(one_sided, torch.float64) - weight).abs().max()
    assert error < 0.55 * (dequantize(quantize(weight, 128), torch.float64) - weight).abs().max()  # 15 codes, not 8


@pytest.mark.parametrize(("sign", "zero"), [(1.0, 0), (-1.0, 15)], ids=["all positive", "all negative"])
def test_the_zero_point_of_a_one_sided_group_is_an_end_of_the_codes(sign, zero):
    weight = sign * torch.rand(16, 256, generator=torch.Generator().manual_seed(0)).add(0.5)
    w = quantize(weight, 32, symmetric=False)
    assert w.zeros.unique().tolist() == [zero]
    scale = w.scales.float().repeat_interleave(32, 0).t()
    assert ((dequantize(w, torch.float32) - weight).abs() <= 0.501 * scale).all()


def test_a_group_of_zeros_stays_zero():
    assert (dequantize(quantize(torch.zeros(16, 128)), torch.float64) == 0).all()
    assert (dequantize(quantize(torch.zeros(16, 128), symmetric=False), torch.float64) == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(value):
    weight = torch.ones(16, 128)
    weight[3, 70] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(weight)


@pytest.mark.parametrize(
    ("symmetric", "rule", "largest", "limit"),
    [(True, "full-range", 65504, 8188), (True, "absmax", 57300, 8188), (False, "full-range", 65460, 4367)],
    ids=WAY_IDS,
)
def test_no_weight_of_a_group_may_lie_beyond_float16(symmetric, rule, largest, limit):
    """Kernels compute weights in float16: up to the limit all fit, whatever the code; beyond it they are refused."""
    weight = torch.linspace(0, largest, 128).repeat(16, 1)
    w = quantize(weight, symmetric=symmetric, rule=rule)
    assert dequantize(w).isfinite().all()
    for code in (0, 15):
        assert dequantize(pack(torch.full_like(unpack(w), code), w.scales, w.zeros)).isfinite().all()
    with pytest.raises(ValueError, match=f"a group's scale is .*{limit}"):
        quantize(weight * 1.01, symmetric=symmetric, rule=rule)
    with pytest.raises(ValueError, match=f"a group's scale is .*{limit}"):
        pack(unpack(w), w.scales * 1.01, w.zeros)


@pytest.mark.parametrize(("low", "largest"), [(0, 65_490), (-1, 61_420)], ids=["one sign", "both sides"])
def test_the_largest_asymmetric_weight_is_what_the_docstring_says(low, largest):
    weight = torch.linspace(low, 1, 128).repeat(16, 1)
    assert dequantize(quantize(weight * (largest - 5), symmetric=False)).isfinite().all()
    with pytest.raises(ValueError, match="a group's scale is"):
        quantize(weight * (largest + 10), symmetric=False)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf, -torch.inf, -8192.0])
def test_a_scale_that_stands_for_no_weights_is_refused(scale):
    scales = scales_like(1, 16)
    scales[0, 3] = scale
    with pytest.raises(ValueError, match=f"a group's scale is {scale:g}"):
        pack(CODES, scales, None)


def test_a_packed_weight_holds_on_to_nothing_of_the_one_it_came_from():
    parameter = torch.nn.Parameter(torch.randn(256, 256))
    alive = weakref.ref(parameter)
    w = quantize(parameter)
    del parameter
    gc.collect()
    assert alive() is None
    learnt = pack(unpack(w), w.scales.float().requires_grad_().half(), None)
    for packed in (w, learnt):
        assert not any(tensor.requires_grad for tensor in packed.tensors())
        assert torch.equal(copy.deepcopy(packed).scales, w.scales)


@pytest.mark.parametrize("search", [False, True])
def test_a_large_weight_is_rounded_in_blocks_of_rows_to_the_same_codes(monkeypatch, search):
    weight = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        whole = quantize(weight, symmetric=symmetric, search=search)
        with monkeypatch.context() as patch:
            patch.setattr("tinygemm.kernel.quant.ROUNDED_AT_ONCE", 7 * 256)
            patch.setattr("tinygemm.kernel.scales.SEARCHED_AT_ONCE", 3 * 256)
            blocks = quantize(weight, symmetric=symmetric, search=search)
        assert all(torch.equal(*pair) for pair in zip(whole.tensors(), blocks.tensors(), strict=True))


def scales_like(groups, N):
    return torch.ones(groups, N, dtype=torch.float16)


CODES = torch.zeros(16, 128, dtype=torch.uint8)
REFUSED = {
    "integer weight": (lambda: quantize(torch.ones(16, 128, dtype=torch.int32)), "weight must be float16"),
    "float64 weight": (lambda: quantize(torch.ones(16, 128).double()), "weight must be float16"),
    "weight of three dimensions": (lambda: quantize(torch.ones(2, 16, 128)), "[N, K]"),
    "empty weight": (lambda: quantize(torch.ones(0, 128)), "non-empty"),
    "search that is no bool": (lambda: quantize(torch.ones(16, 128), search="yes"), "search must be True or False"),
    "K not divisible": (lambda: quantize(torch.ones(16, 130)), "K=130 must be divisible by group_size=128"),
    "unknown rule": (
        lambda: quantize(torch.ones(16, 128), rule="best"),
        "rule must be one of ('full-range', 'absmax')",
    ),
    "weight without values": (lambda: quantize(torch.ones(16, 128, device="meta")), "weight is on the meta device"),
    "weight that is a list": (lambda: quantize([1.0]), "weight must be a tensor, got list"),
    "sparse weight": (lambda: quantize(torch.ones(16, 128).to_sparse()), "weight must be dense"),
    "neither symmetric nor not": (lambda: quantize(torch.ones(16, 128), symmetric=None), "symmetric must be True or"),
    "codes without values": (
        lambda: pack(CODES.to("meta"), scales_like(1, 16).to("meta"), None),
        "codes are on the meta device",
    ),
    "codes that are a list": (lambda: pack([1], scales_like(1, 16), None), "codes must be a tensor, got list"),
    "group size in float": (lambda: quantize(torch.ones(16, 128), 128.0), "group_size must be one of"),
    "unknown group size": (lambda: quantize(torch.ones(16, 96), group_size=48), "group_size must be one of"),
    "codes of another type": (lambda: pack(CODES.int(), scales_like(1, 16), None), "codes must be uint8"),
    "code 16": (lambda: pack(CODES + 16, scales_like(1, 16), None), "codes must lie in 0..15, got 16"),
    "zero 16": (
        lambda: pack(CODES, scales_like(1, 16), torch.full((1, 16), 16, dtype=torch.uint8)),
        "zeros must lie in 0..15",
    ),
    "scales transposed": (lambda: pack(CODES, scales_like(16, 1), None), "scales must be torch.float16 [1, 16]"),
    "scales of another type": (lambda: pack(CODES, scales_like(1, 16).float(), None), "scales must be torch.float16"),
    "zeros of another shape": (
        lambda: pack(CODES, scales_like(1, 16), torch.zeros(2, 16, dtype=torch.uint8)),
        "zeros must be torch.uint8 [1, 16]",
    ),
    "scales elsewhere": (
        lambda: pack(CODES, scales_like(1, 16).to("meta"), None),
        "scales must be on the device of codes, cpu",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_the_constraint_in_words(case):
    call, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def test_strided_weights_and_codes_are_read_by_value():
    """A transposed view is the usual way to get a weight [N, K] out of a [K, N] checkpoint."""
    weight = torch.randn(256, 32)
    assert torch.equal(quantize(weight.T).qweight, quantize(weight.T.contiguous()).qweight)
    operands = make_operands(1, 32, 256, symmetric=False)
    strided = [t.T.contiguous().T for t in (operands.codes, operands.scales, operands.zeros)]
    w = pack(*strided)
    assert torch.equal(unpack(w), operands.codes)
    assert all(tensor.is_contiguous() for tensor in w.tensors())


def test_size_in_bytes_counts_codes_scales_and_zeros():
    symmetric = random_packed(32, 256, 128)
    assert symmetric.nbytes == 32 * 256 // 2 + 2 * 32 * 2
    assert symmetric.bits_per_weight == 4.125
    assert random_packed(32, 256, 128, symmetric=False).bits_per_weight == 4.125 + 8 / 128


def test_a_clone_shares_nothing():
    w = random_packed(16, 128, symmetric=False)
    copy = w.clone()
    for mine, theirs in zip(w.tensors(), copy.tensors(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


W = random_packed(40, 256, 64, symmetric=False)
SPOILT = {
    "qweight of another dtype": ({"qweight": W.qweight.float()}, "qweight must be torch.int32"),
    "qweight of fewer rows": ({"qweight": W.qweight[:2]}, "qweight must be torch.int32 [3, 2, 16, 16]"),
    "qweight strided": ({"qweight": W.qweight.mT.contiguous().mT}, "qweight must be contiguous"),
    "qweight that is no tensor": ({"qweight": None}, "qweight must be a tensor"),
    "scales in float32": ({"scales": W.scales.float()}, "scales must be torch.float16"),
    "scales in bfloat16": ({"scales": W.scales.bfloat16()}, "scales must be torch.float16"),
    "scales strided": ({"scales": W.scales.t().contiguous().t()}, "scales must be contiguous"),
    "scales of fewer groups": ({"scales": W.scales[:3]}, "scales must be torch.float16 [4, 40]"),
    "scales elsewhere": ({"scales": W.scales.to("meta")}, "scales must be on the device of qweight, cpu, got meta"),
    "zeros of another dtype": ({"zeros": W.zeros.int()}, "zeros must be torch.uint8"),
    "zeros transposed": ({"zeros": W.zeros.t()}, "zeros must be torch.uint8 [4, 40]"),
    "zeros expanded": ({"zeros": W.zeros[:1].expand(4, 40)}, "zeros must be contiguous"),
    "zeros elsewhere": ({"zeros": W.zeros.to("meta")}, "zeros must be on the device of qweight, cpu, got meta"),
    "another N": ({"N": 64}, "qweight must be torch.int32 [4, 2, 16, 16]"),
    "another N in the same tiles": ({"N": 41}, "scales must be torch.float16 [4, 41]"),
    "another K": ({"K": 512}, "qweight must be torch.int32 [3, 4, 16, 16]"),
    "no N": ({"N": 0}, "N and K must be positive"),
    "another group size": ({"group_size": 128}, "scales must be torch.float16 [2, 40]"),
    "unknown group size": ({"group_size": 48}, "group_size must be one of"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_packed_weight_of_other_bytes_than_kernels_read_is_refused_by_name(case):
    change, message = SPOILT[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        replace(W, **change)


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.ones(1)], ids=["half", "bfloat16", "tensor"])
def test_a_packed_weight_only_moves(target):
    with pytest.raises(TypeError, match="only moves"):
        W.to(target)


def test_a_packed_weight_is_no_tensor_and_says_what_to_call():
    with pytest.raises(TypeError, match=r"linear takes no PackedInt4: multiply with tinygemm\.gemm"):
        torch.nn.functional.linear(torch.ones(1, 256), W)


def test_moving_a_weight_moves_all_of_it():
    w = random_packed(16, 128, symmetric=False).to("meta")
    assert {tensor.device.type for tensor in w.tensors()} == {"meta"} == {w.device.type}


@pytest.mark.parametrize("symmetric", [True, False])
def test_random_weights_make_every_index_matter(symmetric):
    w = random_packed(48, 512, 64, symmetric, seed=3)
    assert unpack(w).unique().tolist() == list(range(16))
    per_group = [w.scales] if symmetric else [w.scales, w.zeros]
    for tensor in per_group:
        for dim in (0, 1):
            assert (tensor != tensor.roll(1, dim)).any(1 - dim).all()
    x = torch.randn(1, 512, generator=torch.Generator().manual_seed(0)).half()
    reference = reference_gemm(x, w)
    assert 0.2 < reference.std() < 5
    for field in ["scales"] if symmetric else ["scales", "zeros"]:
        moved = pack(unpack(w), w.scales, w.zeros, 64)
        getattr(moved, field).copy_(getattr(w, field).roll(1, 0))
        with pytest.raises(AssertionError, match="error"):
            assert_close(reference_gemm(x, moved), reference)


def test_the_same_seed_gives_the_same_weight_and_another_seed_another():
    assert torch.equal(random_packed(16, 128, seed=1).qweight, random_packed(16, 128, seed=1).qweight)
    assert not torch.equal(random_packed(16, 128, seed=1).qweight, random_packed(16, 128, seed=2).qweight)
