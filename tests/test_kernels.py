"""Every kernel against the definition of the product, in Triton's interpreter.

The interpreter runs the kernels' Python, the assembly they contain is emulated, every memory access is checked, and
what `torch.empty` returns is poisoned, so a result that was never written cannot pass.
"""

import re
from dataclasses import replace

import pytest
import torch
from guard import guarded
from operands import assert_close, make_operands, poison_allocations
from ptx import emulated
from triton.runtime.interpreter import InterpreterBuilder

from tinygemm.kernel import launches, workspace
from tinygemm.kernel.configs import STATIC, LaunchConfig
from tinygemm.kernel.gemm import dequantize_fp16, gemm
from tinygemm.kernel.quant import dequantize, pack
from tinygemm.kernel.reference import ablated_gemm, empty_kernel, fp16_gemm, load_only, load_only_reference, raw_weight

SPLITK = LaunchConfig("splitk", block_m=8, block_n=64, block_k=256, split_k=1, num_warps=2, num_stages=1)
AHEAD = replace(SPLITK, block_k=1024)  # each warp requests four blocks at once
RING = LaunchConfig("ring", block_m=4, block_n=64, block_k=256, split_k=1, num_warps=2, num_stages=3)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Emulated assembly, guarded memory, poisoned allocations."""
    poison_allocations(monkeypatch)
    with emulated(), guarded():
        yield


def name(parameter):
    """The id of a test parameter: a launch config goes by its form."""
    return getattr(parameter, "form", None)


def packed(operands):
    return pack(operands.codes, operands.scales, operands.zeros, operands.group_size)


def check(M, N, K, group_size, symmetric, config, seed=0, dtype=torch.float16):
    operands = make_operands(M, N, K, group_size, symmetric, seed)
    x = operands.x.to(dtype)
    out = gemm(x, packed(operands), config)
    assert out.dtype == dtype
    if dtype == torch.bfloat16:  # 8 bits instead of 11: every rounding is 8 times as coarse
        assert_close(out, replace(operands, x=x).reference(), max_err=8 * 4e-3, rms_err=8e-3)
    else:
        assert_close(out, operands.reference())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(
    ("config", "group_size"),
    [(config, group_size) for config in (STATIC, SPLITK, AHEAD, RING) for group_size in (32, 64, 128, -1)],
    ids=name,
)
def test_every_form_serves_every_group_size_and_zero_mode(config, group_size, symmetric):
    check(3, 128, 768, group_size, symmetric, config)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_bfloat16_activations(config, group_size, symmetric):
    check(3, 64, 512, group_size, symmetric, config, dtype=torch.bfloat16)


TOKENS = {  # one, one less than a tile holds, a full tile, more than one
    STATIC: (1, 15, 16, 19),
    SPLITK: (1, 7, 8, 19),
    replace(SPLITK, block_k=2048, num_warps=16): (1, 8),
    replace(SPLITK, block_m=16): (1, 15, 16, 19),
    replace(RING, block_m=1): (1, 3),
    replace(RING, block_m=2): (1, 2, 3),
    RING: (1, 3, 4, 6),
    replace(RING, block_m=8): (1, 7, 8, 11),
}


@pytest.mark.parametrize(
    ("config", "M"),
    [(config, M) for config, counts in TOKENS.items() for M in counts],
    ids=lambda value: f"{value.form}-{value.block_m}" if isinstance(value, LaunchConfig) else None,
)
def test_any_number_of_tokens(config, M):
    check(M, 32, 256, 128, False, replace(config, block_n=16))


@pytest.mark.parametrize("N", [1, 15, 33, 100])
@pytest.mark.parametrize("config", [STATIC, SPLITK], ids=name)
def test_any_number_of_outputs(config, N):
    check(1, N, 256, 128, False, config, seed=2)  # the single output is not near zero, for it is the unit of its error


@pytest.mark.parametrize(
    ("config", "K", "group_size"),
    [
        (config, *shape)
        for config in (STATIC, SPLITK)
        for shape in ((32, 32), (96, 32), (160, 32), (192, 64), (128, 128), (640, 128))
    ]
    + [(RING, K, group_size) for K, group_size in ((128, 128), (640, 64), (1920, 128))],
    ids=name,
)
def test_any_number_of_groups(config, K, group_size):
    """K that is no multiple of the block of 128, and fewer blocks than the tile walks at a time."""
    check(1, 64 if config.form == "ring" else 40, K, group_size, False, config)


@pytest.mark.parametrize(
    ("config", "K"),
    [(config, K) for config in (STATIC, SPLITK, AHEAD) for K in (2, 33, 64, 96, 130, 257, 300)],
    ids=name,
)
def test_one_group_of_any_length(config, K):
    """Odd lengths and ones below a block of 128 included."""
    check(1, 40, K, -1, False, config)


@pytest.mark.parametrize("split_k", [2, 3, 7])
@pytest.mark.parametrize("config", [SPLITK, AHEAD, RING], ids=name)
def test_splitting_k_into_any_number_of_shares(config, split_k):
    """Shares of unequal length, and more shares than there are steps, so that some are empty."""
    check(2, 128 if config.form == "ring" else 100, 1280, 128, False, replace(config, split_k=split_k))


@pytest.mark.parametrize("stages", [1, 2, 5, 9])
def test_a_ring_of_any_length(stages):
    """Longer than the walk, too; and one that does not fit is shortened."""
    check(1, 32, 640, 128, False, replace(RING, block_n=32, num_stages=stages))
    assert_stages(replace(RING, block_n=64, num_stages=40), most=4)


def assert_stages(config, most):
    (launch_,) = launches.product(config, 1, packed(make_operands(1, 64, 256)), 256, pdl=False)
    assert launch_.constants["STAGES"] == most


@pytest.mark.parametrize("config", [SPLITK, AHEAD, RING], ids=name)
def test_the_order_in_which_shares_arrive_does_not_change_a_bit(config, monkeypatch):
    operands = make_operands(1, 64, 1280, symmetric=False)
    config = replace(config, split_k=5)
    forwards = gemm(operands.x, packed(operands), config)
    set_grid_idx = InterpreterBuilder.set_grid_idx

    def reversed_along_k(self, x, y, z):
        set_grid_idx(self, x, self.grid_dim[1] - 1 - y, z)

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "set_grid_idx", reversed_along_k)
        backwards = gemm(operands.x, packed(operands), config)
    assert torch.equal(forwards, backwards)
    assert_close(forwards, operands.reference())


@pytest.mark.parametrize("config", [SPLITK, AHEAD, RING], ids=name)
def test_the_arrival_counters_are_zero_again_after_a_call(config, monkeypatch):
    counters = []

    def remembered(count, device):
        counters.append(torch.zeros(count, dtype=torch.int32, device=device))
        return counters[-1]

    monkeypatch.setattr(workspace, "_zeros", remembered)
    operands = make_operands(1, 192, 1024)
    gemm(operands.x, packed(operands), replace(config, split_k=3))
    assert [tensor.tolist() for tensor in counters] == [[0, 0, 0]]


@pytest.mark.parametrize("config", [SPLITK, AHEAD, RING], ids=name)
def test_each_output_tile_is_written_once_by_the_last_share(config, monkeypatch):
    """In the interpreter a share that writes too early is corrected by the next one; on a GPU it may come last."""
    written = []
    store = InterpreterBuilder.create_masked_store

    def spy(self, pointers, value, mask, *hints):
        if pointers.get_element_ty().name == "fp16":
            written.append(self.grid_idx[:2])
        return store(self, pointers, value, mask, *hints)

    operands = make_operands(1, 192, 1024)
    with monkeypatch.context() as patch:  # undone before the memory guard takes its own patches back
        patch.setattr(InterpreterBuilder, "create_masked_store", spy)
        gemm(operands.x, packed(operands), replace(config, split_k=4))
    assert written == [(tile, 3) for tile in range(3)]


@pytest.mark.parametrize(
    "config", [LaunchConfig("splitk", 8, 32, 512, 4, 4, 1), LaunchConfig("ring", 1, 16, 512, 2, 4, 1)], ids=name
)
def test_a_real_projection(config):
    """Llama-3-8B's narrow projection, one token: K = 4096, N = 1024."""
    check(1, 1024, 4096, 128, True, replace(config, block_n=128))


@pytest.mark.parametrize("exponent", [-10, -7, 11])
@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_accuracy_does_not_depend_on_the_size_of_the_activations(config, exponent):
    """Outputs stay within the range of normal float16, so that only the kernel's own rounding counts."""
    operands = make_operands(1, 64, 512, symmetric=False)
    scaled = replace(operands, x=operands.x * 2.0**exponent, scales=operands.scales * 2.0 ** -max(0, exponent))
    assert_close(gemm(scaled.x, packed(scaled), config), scaled.reference())


@pytest.mark.parametrize("zero", [0, 8, 15])
@pytest.mark.parametrize("config", [SPLITK, AHEAD, replace(RING, block_n=16)], ids=name)
def test_the_largest_activations_do_not_overflow_inside_the_kernel(config, zero):
    """x is the largest float16 throughout, weights are as far from zero as they can be; the output itself is small."""
    codes = torch.full((16, 256), 0 if zero >= 8 else 15, dtype=torch.uint8)
    x = torch.full((1, 256), torch.finfo(torch.float16).max, dtype=torch.float16)
    scales = torch.full((2, 16), 2.0**-14, dtype=torch.float16)
    w = pack(codes, scales, torch.full((2, 16), zero, dtype=torch.uint8))
    reference = x.double() @ ((codes.double() - zero) * 2.0**-14).T
    assert_close(gemm(x, w, config), reference)


def test_leading_dimensions_are_kept():
    operands = make_operands(6, 32, 256)
    w = packed(operands)
    flat = gemm(operands.x, w, SPLITK)
    assert gemm(operands.x.view(2, 3, 256), w, SPLITK).shape == (2, 3, 32)
    assert torch.equal(gemm(operands.x.view(2, 3, 256), w, SPLITK).view(6, 32), flat)
    assert torch.equal(gemm(operands.x[0], w, SPLITK), flat[0])


@pytest.mark.parametrize("config", [STATIC, SPLITK, replace(RING, block_n=32)], ids=name)
def test_rows_of_x_may_lie_apart(config):
    operands = make_operands(3, 32, 256)
    wide = torch.full((3, 400), torch.nan, dtype=torch.float16)
    wide[:, 100:356] = operands.x
    assert_close(gemm(wide[:, 100:356], packed(operands), config), operands.reference())


@pytest.mark.parametrize("config", [STATIC, SPLITK, AHEAD, replace(RING, block_n=32)], ids=name)
def test_rows_of_x_lie_apart_all_along_a_walk_of_many_blocks(config):
    """Further than what a form requests at first, so that what it requests later is of the right rows, too."""
    K = 128 * 12
    operands = make_operands(3, 32, K)
    wide = torch.full((3, K + 24), torch.nan, dtype=torch.float16)
    wide[:, :K] = operands.x
    blocks_of_a_warp = K // 128 // config.num_warps
    assert config.form == "static" or blocks_of_a_warp > max(config.num_stages, launches.steps(config))
    assert_close(gemm(wide[:, :K], packed(operands), config), operands.reference())


@pytest.mark.parametrize("config", [STATIC, SPLITK, replace(RING, block_n=32)], ids=name)
def test_x_may_start_anywhere(config):
    """Two bytes off a multiple of four, where nothing wider than a half can be read."""
    operands = make_operands(1, 32, 256)
    buffer = torch.full((300,), torch.nan, dtype=torch.float16)
    buffer[1:257] = operands.x[0]
    assert_close(gemm(buffer[1:257].view(1, 256), packed(operands), config), operands.reference())


@pytest.mark.parametrize("M", [1, 2, 16, 17])
@pytest.mark.parametrize(("K", "group_size"), [(257, -1), (96, 32), (512, 128)])
def test_the_selected_config_serves_whatever_comes(M, K, group_size):
    """Without a config, every shape that `quantize` accepts is computed."""
    check(M, 24, K, group_size, True, None)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_the_dequantised_weight_equals_the_reference_bit_for_bit(group_size, symmetric):
    operands = make_operands(1, 40, 384, group_size, symmetric)
    w = packed(operands)
    assert torch.equal(dequantize_fp16(w), dequantize(w))


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("split_k", [1, 3])
def test_load_only_reads_every_word_and_scale_once(group_size, split_k):
    operands = make_operands(1, 128, 1024, group_size)
    w = packed(operands)
    shares = load_only(w, replace(SPLITK, split_k=split_k))
    assert shares.shape == (split_k, 128)
    total = shares[0]
    for share in shares[1:]:
        total = total ^ share
    assert torch.equal(total, load_only_reference(w))


@pytest.mark.parametrize(("M", "N", "K"), [(1, 64, 512), (3, 40, 300), (8, 100, 640)])
@pytest.mark.parametrize("split_k", [1, 3])
def test_the_fp16_twin_computes_the_same_product(M, N, K, split_k):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(M, K, generator=generator).half()
    weight = (torch.randn(N, K, generator=generator) * K**-0.5).half()
    assert_close(fp16_gemm(x, weight, replace(SPLITK, split_k=split_k)), x.double() @ weight.double().T)


@pytest.mark.parametrize("config", [replace(SPLITK, split_k=2), replace(RING, split_k=2)], ids=name)
@pytest.mark.parametrize(("M", "N", "K", "group_size"), [(1, 64, 512, 128), (3, 128, 384, 32), (2, 64, 640, -1)])
def test_without_dequantisation_the_raw_bits_are_the_weight(config, M, N, K, group_size):
    operands = make_operands(M, N, K, group_size)
    w = packed(replace(operands, zeros=None))
    assert_close(ablated_gemm(operands.x, w, config, "none"), operands.x.double() @ raw_weight(w).T)
    with pytest.raises(AssertionError):
        assert_close(gemm(operands.x, w, SPLITK), operands.x.double() @ raw_weight(w).T)


@pytest.mark.parametrize(("group_size", "symmetric"), [(32, False), (64, True), (128, False), (-1, True)])
@pytest.mark.parametrize("config", [SPLITK, RING], ids=name)
def test_the_naive_dequantisation_computes_the_same_product(config, group_size, symmetric):
    operands = make_operands(2, 64, 512, group_size, symmetric)
    assert_close(ablated_gemm(operands.x, packed(operands), config, "naive"), operands.reference())


def test_the_empty_kernel_runs():
    empty_kernel()


X = torch.ones(2, 256, dtype=torch.float16)
W = pack(torch.zeros(16, 256, dtype=torch.uint8), torch.ones(2, 16, dtype=torch.float16), None)
REFUSED = {
    "float32 x": (lambda: gemm(X.float(), W), "x must be float16 or bfloat16, got torch.float32"),
    "another K": (lambda: gemm(X[:, :128], W), "x must be [..., K] with K=256, got shape (2, 128)"),
    "a scalar": (lambda: gemm(X[0, 0], W), "x must be [..., K]"),
    "no rows for a yardstick": (lambda: ablated_gemm(X[:0], W, SPLITK), "at least one row"),
    "strided in K": (lambda: gemm(X.repeat(1, 2)[:, ::2], W), "contiguous in K"),
    "two devices": (lambda: gemm(X.to("meta"), W), "x is on meta and w on cpu"),
    "asymmetric load_only": (
        lambda: load_only(replace(W, zeros=torch.zeros(2, 16, dtype=torch.uint8)), SPLITK),
        "load_only reads symmetric weights",
    ),
    "load_only that does not fill its tiles": (lambda: load_only(W, SPLITK), "fill the tiles"),
    "a yardstick's config": (
        lambda: gemm(X, W, replace(SPLITK, form="load-only")),
        "config must be of a form that computes the product (splitk, ring, static), got load-only",
    ),
    "fp16 twin with more rows than its tile": (
        lambda: fp16_gemm(torch.ones(9, 256).half(), torch.ones(16, 256).half(), SPLITK),
        "block_m",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_the_constraint_in_words(case):
    call, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


@pytest.mark.parametrize(("N", "K"), [(40, 256), (64, 192)])
def test_the_ring_refuses_what_does_not_fill_its_tiles(N, K):
    operands = make_operands(1, N, K, 64)
    with pytest.raises(ValueError, match="ring needs N divisible by block_n=64 and K by 128"):
        gemm(operands.x, packed(operands), RING)


def test_a_twin_is_of_a_known_kind():
    with pytest.raises(ValueError, match="dequant must be fast, naive or none, got 'lop3'"):
        ablated_gemm(X, W, SPLITK, "lop3")
    with pytest.raises(ValueError, match="config must be of form splitk, got ring"):
        ablated_gemm(X, W, RING, add_warps=False)


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("M", [1, 2])
def test_a_twin_refuses_x_that_a_ring_cannot_read_where_it_lies(M, offset):
    """gemm copies such an x; a yardstick would time the copy with the kernel."""
    rows = torch.ones(M, 256 + 8 * M, dtype=torch.float16)
    ring, message = replace(RING, block_n=16), "every row of x must start at a multiple of 16 bytes for form ring"
    with pytest.raises(ValueError, match=message):
        ablated_gemm(rows[:, offset : offset + 256], W, ring)
    assert torch.equal(ablated_gemm(rows[:, 8:264], W, ring), ablated_gemm(rows[:, offset : offset + 256], W, SPLITK))


def test_a_twin_refuses_rows_that_a_ring_cannot_read_where_they_lie():
    rows = torch.ones(2, 260, dtype=torch.float16)
    with pytest.raises(ValueError, match="every row of x must start at a multiple of 16 bytes"):
        ablated_gemm(rows[:, :256], W, replace(RING, block_n=16))
    assert ablated_gemm(rows[:1, :256], W, replace(RING, block_n=16)).shape == (1, 16), "one row lies apart from none"


@pytest.mark.parametrize("config", [SPLITK, replace(SPLITK, split_k=3)], ids=name)
def test_adding_up_with_triton_gives_the_same_product(config):
    operands = make_operands(3, 64, 1280, symmetric=False)
    assert_close(ablated_gemm(operands.x, packed(operands), config, add_warps=False), operands.reference())


def test_without_a_gpu_or_the_interpreter_a_yardstick_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    with pytest.raises(ValueError, match="x is on cpu; the kernels run on a CUDA GPU"):
        ablated_gemm(X, W, SPLITK)
