"""The PTX emulator and the memory guard: the two instruments the kernel tests rely on."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from guard import FalseHintError, MisalignedError, OutOfBoundsError, guarded
from ptx import POISON, SHARED, SHARED_AT, PtxError, emulated, execute
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


def bf16(values):
    """The nearest bf16 of numbers, as bits."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def test_bf16_fma_rounds_once_and_works_on_both_halves():
    """(1 + 2^-7)^2 - 1 = 2^-6 + 2^-14, which bf16 holds; rounding the product first would lose the last term."""
    pair = bf16([1 + 2**-7, 3]).view(np.uint32)
    (bits,) = execute("fma.rn.bf16x2 $0, $1, $1, 0xbf80bf80;", "=r,r", [pair])
    np.testing.assert_array_equal(bits.view(np.uint16), bf16([2**-6 + 2**-14, 8]))


@pytest.mark.parametrize(("low", "rounded"), [(0x7F, 0x3F80), (0x80, 0x3F80), (0x81, 0x3F81), (0x180, 0x3F82)])
def test_bf16_results_round_to_nearest_even(low, rounded):
    """1 + low / 2^15, added up from two bf16: halfway between two bf16 the even one is taken."""
    terms = [1 + (low >> 8) * 2**-7, (low & 0xFF) * 2**-15]
    one, big, small = (np.full(1, bf16(value), np.uint32) for value in (1.0, *terms))
    (bits,) = execute("fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [one, big, small])
    assert bits[0] & 0xFFFF == rounded


# --- shared memory ----------------------------------------------------------------------------------------------------

SOURCE = np.arange(1, 65, dtype=np.uint32)
POISONED = np.frombuffer(bytes([POISON] * 4), np.uint32)[0]
LANES = np.arange(8, dtype=np.uint32)


def declare(size):
    execute(f"{{ .shared .align 16 .b8 memory[{size}]; mov.u32 $0, memory; }}", "=r", [])


def copy(lanes=LANES, size=16, width=16):
    """Each lane copies its 16 bytes of SOURCE to where its number says."""
    pointers = SOURCE.ctypes.data + 16 * LANES.astype(np.uint64)
    addresses, sizes = (SHARED_AT + 16 * lanes).astype(np.uint32), np.full(8, size, np.uint32)
    asm = f"cp.async.cg.shared.global [$1], [$2], {width}, $3; mov.b32 $0, 0;"
    execute(asm, "=r,r,l,r", [addresses, pointers, sizes])


def copy_where(wanted):
    """Only wanted lanes copy their 16 bytes."""
    pointers, sizes = SOURCE.ctypes.data + 16 * LANES.astype(np.uint64), np.full(8, 16, np.uint32)
    asm = """{ .reg .pred wanted; setp.ne.s32 wanted, $4, 0;
               @wanted cp.async.ca.shared.global [$1], [$2], 16, $3; mov.b32 $0, 0; }"""
    execute(asm, "=r,r,l,r,r", [(SHARED_AT + 16 * LANES).astype(np.uint32), pointers, sizes, wanted.astype(np.int32)])


def commit():
    execute("cp.async.commit_group; mov.b32 $0, 0;", "=r", [])


def wait(pending):
    execute(f"cp.async.wait_group {pending}; bar.warp.sync 0xffffffff; mov.b32 $0, 0;", "=r", [])


def read(lanes=LANES, words=4):
    outputs = ", ".join(f"${i}" for i in range(words))
    asm = f"ld.shared.v4.b32 {{{outputs}}}, [${words}];"
    return np.stack(execute(asm, "=r,=r,=r,=r,r", [(SHARED_AT + 16 * lanes).astype(np.uint32)]), axis=1)


def write(lanes=LANES):
    values = [(SHARED_AT + 4 * lanes).astype(np.uint32), lanes.astype(np.float32)]
    execute("st.shared.f32 [$1], $2; mov.b32 $0, 0;", "=r,r,f", values)


def test_a_copy_that_is_read_without_its_wait_is_seen_as_poison():
    declare(128)
    assert (read() == POISONED).all(), "nobody has written there yet"
    copy()
    assert (read() == POISONED).all()
    commit()
    wait(1)
    assert (read() == POISONED).all(), "the last group may still be under way"
    wait(0)
    np.testing.assert_array_equal(read().ravel(), SOURCE[:32])


def test_a_lane_that_is_not_wanted_copies_nothing():
    declare(128)
    copy_where(LANES % 2)
    commit()
    wait(0)
    np.testing.assert_array_equal(read(LANES[1::2]).ravel(), SOURCE[:32].reshape(8, 4)[1::2].ravel())
    assert (read(LANES[::2]) == POISONED).all()


@pytest.mark.parametrize(("guarded", "message"), [
    ("@other cp.async.ca.shared.global [$1], [$2], 16, $3", "predicate other is not declared"),
    ("@!wanted cp.async.ca.shared.global [$1], [$2], 16, $3", "predicate !wanted is not declared"),
    ("@wanted cp.async.commit_group", "only copies are emulated under a predicate"),
])  # fmt: skip
def test_what_is_not_emulated_under_a_predicate_is_refused(guarded, message):
    values = [LANES, LANES.astype(np.uint64), LANES, LANES.astype(np.int32)]
    with pytest.raises(PtxError, match=message):
        execute(f"{{ .reg .pred wanted; setp.ne.s32 wanted, $4, 0; {guarded}; }}", "=r,r,l,r,r", values)


def test_two_lanes_that_copy_to_one_place_are_refused():
    declare(128)
    with pytest.raises(PtxError, match="two lanes copy to one place"):
        copy(LANES // 2)


def test_groups_arrive_in_the_order_in_which_they_were_committed():
    declare(256)
    copy()
    commit()
    copy(LANES + 8)
    commit()
    wait(1)
    np.testing.assert_array_equal(read().ravel(), SOURCE[:32])
    assert (read(LANES + 8) == POISONED).all()


def test_a_copy_outside_every_group_never_arrives():
    declare(128)
    copy()
    wait(0)
    assert (read() == POISONED).all()


def test_a_copy_of_size_zero_writes_zeros_and_reads_nothing(monkeypatch):
    checked = []
    monkeypatch.setattr(SHARED, "check", lambda pointers, size: checked.append((len(pointers), size)))
    declare(128)
    copy(size=0)
    commit()
    wait(0)
    assert (read() == 0).all()
    copy()
    assert checked == [(0, 16), (8, 16)], "the guard is asked about what is read, and about nothing else"


def test_shared_memory_must_not_be_written_while_copies_are_under_way():
    declare(128)
    write()
    copy()
    with pytest.raises(PtxError, match="while copies may still arrive"):
        write()
    commit()
    with pytest.raises(PtxError, match="while copies may still arrive"):
        write()
    wait(0)
    write()
    np.testing.assert_array_equal(read().view(np.float32).ravel()[:8], LANES)


@pytest.mark.parametrize("lanes", [LANES - 1, LANES + 1], ids=["below", "above"])
@pytest.mark.parametrize("access", [copy, read, lambda lanes: write(4 * lanes)], ids=["copy", "read", "write"])
def test_addresses_outside_of_what_was_declared_are_refused(access, lanes):
    declare(128)
    with pytest.raises(PtxError, match="lie outside the 128 bytes declared"):
        access(lanes)
    assert (SHARED.bytes == POISON).all()


def test_what_does_not_lie_at_a_multiple_of_its_size_is_refused():
    declare(128)
    with pytest.raises(PtxError, match="shared addresses are no multiple of 16"):
        read(LANES[:4] + 0.25)
    with pytest.raises(PtxError, match="takes sizes 0 and 16 and aligned pointers"):
        copy(size=8)
    with pytest.raises(PtxError, match="past L1 a copy has 16 bytes"):
        copy(size=4, width=4)


def test_a_new_program_finds_its_shared_memory_poisoned():
    declare(128)
    write()
    declare(128)
    assert (read() == POISONED).all()


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
