"""Shared memory and asynchronous copies: what Triton's language has no words for."""

import triton
import triton.language as tl

# A program's own piece of shared memory, addressed in bytes, and asynchronous copies into it, which hold no register
# while they are under way. They serve one warp at a time (what a lane copies, its own warp reads), so the only barriers
# are those of add_warps. Statements without a result return a dummy.


@triton.jit
def shared_memory(BYTES: tl.constexpr):
    """The address of BYTES of shared memory; a kernel calls it once."""
    return tl.inline_asm_elementwise(
        f"{{ .shared .align 16 .b8 memory[{BYTES}]; mov.u32 $0, memory; }}", "=r", [],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def cp_async_tile(address, pointer, size):
    """Copy 16 bytes a lane of both halves of a packed 1 KiB tile; zeros where size is 0 instead of 16.

    Past L1, since nobody reads a weight twice; both halves by one pointer, which halves the registers for pointers.
    """
    tl.inline_asm_elementwise(
        "cp.async.cg.shared.global [$1], [$2], 16, $3; cp.async.cg.shared.global [$1+512], [$2+512], 16, $3;"
        " mov.b32 $0, 0;", "=r,r,l,r", [address, pointer, size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def cp_async_pred(address, pointer, size, pred, BYTES: tl.constexpr):
    """Copy BYTES (4 or 16) where `pred` is not 0, zeros where size is 0 instead of BYTES.

    Through L1, where the other programs of an SM then find x. Lanes beyond the data are predicated off: if they
    repeated another lane's copy, two asynchronous copies would race on one address.
    """
    tl.inline_asm_elementwise(
        f"{{ .reg .pred copies; setp.ne.s32 copies, $4, 0;"
        f" @copies cp.async.ca.shared.global [$1], [$2], {BYTES}, $3; mov.b32 $0, 0; }}", "=r,r,l,r,r",
        [address, pointer, size, pred], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def cp_async_commit():
    """Make one group of the copies since the last group."""
    tl.inline_asm_elementwise("cp.async.commit_group; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def cp_async_wait(PENDING: tl.constexpr):
    """Wait until all but the last PENDING groups have arrived, for the whole warp."""
    tl.inline_asm_elementwise(
        f"cp.async.wait_group {PENDING}; bar.warp.sync 0xffffffff; mov.b32 $0, 0;", "=r", [],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def sync_warp():
    """Every lane of the warp has read what stands above; what is below may overwrite it."""
    tl.inline_asm_elementwise(
        "bar.warp.sync 0xffffffff; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def read_words(address):
    """Four int32 that lie side by side."""
    return tl.inline_asm_elementwise(
        "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,r", [address],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
    )  # fmt: skip


_READ_HALVES = """
    {
    .reg .b32 w0, w1, w2, w3;
    ld.shared.v4.b32 {w0, w1, w2, w3}, [$8];
    mov.b32 {$0, $1}, w0;
    mov.b32 {$2, $3}, w1;
    mov.b32 {$4, $5}, w2;
    mov.b32 {$6, $7}, w3;
    }
"""
READ_HALVES = tl.constexpr(_READ_HALVES)


@triton.jit
def read_halves(address, DTYPE: tl.constexpr):
    """Eight 16-bit numbers that lie side by side, as [..., 2, 2, 2]."""
    e0, e1, e2, e3, e4, e5, e6, e7 = tl.inline_asm_elementwise(
        READ_HALVES, "=h,=h,=h,=h,=h,=h,=h,=h,r", [address],
        dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
        is_pure=False, pack=1,
    )  # fmt: skip
    even = tl.join(tl.join(e0, e4), tl.join(e2, e6))
    odd = tl.join(tl.join(e1, e5), tl.join(e3, e7))
    return tl.join(even, odd).to(DTYPE, bitcast=True)


@triton.jit
def read_half(address):
    """One float16."""
    return tl.inline_asm_elementwise(
        "ld.shared.u16 $0, [$1];", "=h,r", [address], dtype=tl.float16, is_pure=False, pack=1
    )


@triton.jit
def read_byte(address):
    """One uint8, as int32."""
    return tl.inline_asm_elementwise("ld.shared.u8 $0, [$1];", "=r,r", [address], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def add_warps(acc, address, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, WARPS_K: tl.constexpr):
    """Add the warps' shares: acc [WARPS_K, BLOCK_N, BLOCK_M] -> [BLOCK_N, BLOCK_M], through shared memory at `address`.

    tl.sum does the same with four barriers and two changes of layout, which took 0.4 to 1 us of every call.
    """
    warp = tl.arange(0, WARPS_K)[:, None, None]
    n, m = tl.arange(0, BLOCK_N)[None, :, None], tl.arange(0, BLOCK_M)[None, None, :]
    tl.inline_asm_elementwise(
        "st.shared.f32 [$1], $2; mov.b32 $0, 0;", "=r,r,f", [address + ((warp * BLOCK_M + m) * BLOCK_N + n) * 4, acc],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    tl.debug_barrier()
    read = address + (tl.arange(0, BLOCK_M)[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]) * 4
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for share in tl.static_range(WARPS_K):
        total += tl.inline_asm_elementwise(
            "ld.shared.f32 $0, [$1];", "=f,r", [read + share * (BLOCK_M * BLOCK_N * 4)],
            dtype=tl.float32, is_pure=False, pack=1,
        )  # fmt: skip
    return total
