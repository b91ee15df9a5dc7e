"""The PTX emulator and the memory guard: the two instruments the kernel tests rely on."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from guard import FalseHintError, MisalignedError, OutOfBoundsError, guarded
from ptx import PtxError, emulated, execute
from triton.runtime.errors import InterpreterError

WORDS = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)


def test_the_magic_number_trick_gives_the_low_codes_as_halves():
    """(q & 0x000f000f) | 0x64006400 read as two f16 is 1024 + code; table 0xea is (a & b) | c."""
    (bits,) = execute(
        "{ .reg .b32 t; lop3.b32 t, $1, 0x000f000f, 0x64006400, 0xea; sub.f16x2 $0, t, 0x64006400; }", "=r,r", [WORDS]
    )
    pairs = bits.view(np.float16).reshape(-1, 2)
    np.testing.assert_array_equal(pairs[:, 0], WORDS & 15)
    np.testing.assert_array_equal(pairs[:, 1], WORDS >> 16 & 15)


@pytest.mark.parametrize(
    ("asm", "expected"),
    [
        ("lop3.b32 $0, $1, 0x0f0f0f0f, 0xffff0000, 0x96;", WORDS ^ 0x0F0F0F0F ^ 0xFFFF0000),
        ("shr.u32 $0, $1, 8; // a comment", WORDS >> 8),
        ("shl.b32 $0, $1, 32;", np.zeros(64, np.uint32)),
        ("shr.s32 $0, $1, 40;", np.where(WORDS >> 31, 0xFFFFFFFF, 0)),
        ("prmt.b32 $0, $1, 0, 0x4140;", (WORDS & 0xFF) | (WORDS & 0xFF00) << 8),
        ("prmt.b32 $0, $1, 0, 0x888b;", np.where(WORDS >> 31, 0xFF, 0) | np.where(WORDS >> 7 & 1, 0xFFFFFF00, 0)),
        ("bfe.u32 $0, $1, 12, 4;", WORDS >> 12 & 15),
        ("{ .reg .b16 h<2>; mov.b32 {h0, h1}, $1; mov.b32 $0, {h1, h0}; }", WORDS >> 16 | WORDS << 16),
    ],
)
def test_integer_instructions_do_what_the_ptx_manual_says(asm, expected):
    (bits,) = execute(asm, "=r,r", [WORDS])
    np.testing.assert_array_equal(bits, np.asarray(expected).astype(np.uint32))


def test_half_fma_rounds_once():
    """(1 + 2^-10)^2 - 1 = 2^-9 + 2^-20 in f16: rounding the product first would lose the last term."""
    one_up = np.array([0x3C01], np.uint16)
    (bits,) = execute("fma.rn.f16 $0, $1, $1, 0xbc00;", "=h,h", [one_up])
    assert bits.view(np.float16)[0] == np.float16(2**-9 + 2**-20)


@pytest.mark.parametrize(
    ("asm", "complaint"),
    [
        ("add.u32 $0, $1, t;", "t is not declared"),
        ("{ .reg .b32 t; add.u32 $0, $1, t; }", "before it is written"),
        ("{ .reg .b16 t; mov.b32 t, $1; }", "16 bits"),
        ("frobnicate.b32 $0, $1;", "not an instruction"),
        ("add.u32 $0, $1;", "takes 2 sources"),
    ],
)
def test_what_ptxas_would_refuse_is_refused_with_the_statement(asm, complaint):
    with pytest.raises(PtxError, match=complaint):
        execute(asm, "=r,r", [WORDS])


@triton.jit
def kernel_halve_words(out_ptr, words_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    words = tl.load(words_ptr + offsets, mask=offsets < n, other=0)
    lo, hi = tl.inline_asm_elementwise(
        "and.b32 $0, $2, 0xffff; shr.u32 $1, $2, 16;",
        "=r,=r,r",
        [words],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )
    tl.store(out_ptr + offsets, lo, mask=offsets < n)
    tl.store(out_ptr + BLOCK + offsets, hi, mask=offsets < n)


def test_the_interpreter_runs_inline_assembly_inside_a_kernel():
    words, out = torch.from_numpy(WORDS.view(np.int32)), torch.zeros(128, dtype=torch.int32)
    with emulated():
        kernel_halve_words[(1,)](out, words, 64, BLOCK=64)
    np.testing.assert_array_equal(out[:64], WORDS & 0xFFFF)
    np.testing.assert_array_equal(out[64:], WORDS >> 16)


@triton.jit
def kernel_copy(out_ptr, in_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(in_ptr + offsets), mask=offsets < n)


def test_the_guard_lets_masked_lanes_pass_and_stops_active_ones():
    source, short = torch.zeros(128), torch.zeros(100)
    with guarded():
        kernel_copy[(1,)](short, source, 100, BLOCK=128)
        with pytest.raises(InterpreterError, match="store: 1 of 101 active lanes"):
            kernel_copy[(1,)](short, source, 101, BLOCK=128)
        with pytest.raises(InterpreterError, match="load: 28 of 128 active lanes") as caught:
            kernel_copy[(1,)](source, short, 100, BLOCK=128)
    assert isinstance(caught.value.__cause__, OutOfBoundsError)


@triton.jit
def kernel_copy_pairs(out_ptr, in_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(in_ptr.to(tl.pointer_type(tl.int32)) + offsets))


def test_the_guard_stops_a_misaligned_access():
    """Reading two halves as one word is only allowed where the halves start at a multiple of four bytes."""
    halves, words = torch.zeros(40, dtype=torch.float16), torch.zeros(16, dtype=torch.int32)
    with guarded():
        kernel_copy_pairs[(1,)](words, halves[2:], BLOCK=16)
        with pytest.raises(InterpreterError, match="no multiple of 4 bytes") as caught:
            kernel_copy_pairs[(1,)](words, halves[1:], BLOCK=16)
    assert isinstance(caught.value.__cause__, MisalignedError)


@triton.jit
def kernel_promise(in_ptr, n, BLOCK: tl.constexpr):
    tl.load(in_ptr + tl.multiple_of(n, 16) + tl.arange(0, BLOCK))


@triton.jit
def kernel_promise_runs(in_ptr, step, BLOCK: tl.constexpr):
    tl.load(in_ptr + tl.max_contiguous(tl.arange(0, BLOCK) * step, 4))


def test_the_guard_stops_a_false_alignment_hint():
    source = torch.zeros(64)
    with guarded():
        kernel_promise[(1,)](source, 32, BLOCK=16)
        kernel_promise_runs[(1,)](source, 1, BLOCK=16)
        with pytest.raises(InterpreterError) as caught:
            kernel_promise[(1,)](source, 33, BLOCK=16)
        assert isinstance(caught.value.__cause__, FalseHintError)
        with pytest.raises(InterpreterError) as caught:
            kernel_promise_runs[(1,)](source, 2, BLOCK=16)
        assert isinstance(caught.value.__cause__, FalseHintError)
