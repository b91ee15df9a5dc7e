"""Tiles: where a program's words, scales and x lie, the operands that they are, and the store of a split K."""

import triton
import triton.language as tl

from tinygemm.kernel.triton.dequant import dequantise


@triton.jit
def load_step(ptrs, kb, last, row, rows, k, K, ALL_ROWS: tl.constexpr, ALL_K: tl.constexpr, EVICTION: tl.constexpr):
    """Load what step `kb` reads; zeros past the end of the share, past `rows` and past K. k counts from the step.

    EVICTION: "evict_first" for weights, which nobody reads again, so that the caches keep x, which all programs read;
              "" for the caches' own choice
    """
    mask = kb < last
    if not ALL_ROWS:
        mask = mask & (row < rows)
    if not ALL_K:
        mask = mask & (kb * 128 + k < K)
    return tl.load(ptrs, mask=mask, other=0, eviction_policy=EVICTION)


@triton.jit
def load_zeros(zeros_ptr, offs, kb, last, row, rows, k, K, FULL_TILES: tl.constexpr):
    """The uint8 zeros at offs, as load_step loads them; int32.

    Where tiles are full, as halves of 16-bit words: Triton derives the dot operand's kWidth from the narrowest load
    that feeds it. A load of bytes would raise kWidth from 4 to 8 and move every weight to another lane.
    """
    if FULL_TILES:
        pair = load_step(zeros_ptr.to(tl.pointer_type(tl.int16)) + offs // 2, kb, last, row, rows, k, K, True, True, "")
        zero = (pair.to(tl.int32) >> (offs % 2 * 8)) & 0xFF
    else:
        zero = load_step(zeros_ptr + offs, kb, last, row, rows, k, K, False, False, "").to(tl.int32)
    return zero


@triton.jit
def k_range(KB, pid_k, STEP: tl.constexpr, SPLIT_K: tl.constexpr):
    """Blocks [first, last) of this program: SPLIT_K shares that differ by at most one step of STEP blocks."""
    steps = tl.cdiv(KB, STEP)
    first = pid_k * steps // SPLIT_K * STEP
    last = tl.minimum((pid_k + 1) * steps // SPLIT_K * STEP, KB)
    return first, last


@triton.jit
def wrap(step, first, steps):
    """Step `step` of a walk around `steps` of them that begins at `first`."""
    return tl.where(first + step >= steps, first + step - steps, first + step)


@triton.jit
def prefetch_counter(counter_ptr, pid_n, SPLIT_K: tl.constexpr):
    """Bring the counter of a split K into L2 while the weights are on their way: it was last used one replay ago."""
    if SPLIT_K > 1:
        address = (counter_ptr + pid_n).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def store_split(acc, out_ptr, partial_ptr, counter_ptr, offs_m, offs_n, M, N, pid_n, pid_k, SPLIT_K: tl.constexpr):
    """Store acc [BLOCK_N, BLOCK_M] as out[m, n]; with SPLIT_K > 1 the last program to arrive adds all shares, in order.

    partial_ptr: [SPLIT_K, M, N] float32; counter_ptr: one int32 per pid_n, zero before the launch and zero after it
    """
    mask = (offs_m[None, :] < M) & (offs_n[:, None] < N)
    offs_out = offs_m[None, :].to(tl.int64) * N + offs_n[:, None]
    if SPLIT_K == 1:
        tl.store(out_ptr + offs_out, acc.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + pid_k.to(tl.int64) * M * N + offs_out, acc, mask=mask)
        tl.debug_barrier()  # every thread's share is written before one of them announces it
        arrived = tl.atomic_add(counter_ptr + pid_n, 1, sem="acq_rel")
        if arrived == SPLIT_K - 1:
            total = tl.zeros_like(acc)
            for share in tl.static_range(SPLIT_K):
                total += tl.load(partial_ptr + share * M * N + offs_out, mask=mask, other=0.0, cache_modifier=".cg")
            tl.store(out_ptr + offs_out, total.to(out_ptr.dtype.element_ty), mask=mask)
            tl.store(counter_ptr + pid_n, 0)


# No data movement between a 16-byte load and the tensor core. Two choices make that so.
# * A batched dot gives each warp its own slice of K (batch = warp), so no weight is dequantised twice.
# * Tensors are loaded flat, in the order register, warp, lane, element (slowest first), and the compiler's layout then
#   puts elements where mma.m16n8k16 wants them.
#
# One 16 x 128 tile of a warp is two octets of 8 rows, 16 words a row. A lane loads 16 bytes of each octet:
#
#                words 0..3    words 4..7      words 8..11     words 12..15
#   row g        lane 4g       lane 4g + 1     lane 4g + 2     lane 4g + 3       octet 0
#   row g + 8    lane 4g       lane 4g + 1     lane 4g + 2     lane 4g + 3       octet 1
#
# So lane 4g + t holds words 4t + e, e = 0..3. Nibbles p and p + 4 of such a word are the two numbers of pair p:
#
#   word e          0               1               2               3
#   k - 32p         8t, 8t + 1      8t + 2, 8t + 3  8t + 4, 8t + 5  8t + 6, 8t + 7
#
# The A operand of mma.m16n8k16 is 16 rows x 16 k; lane 4g + t gives four registers of two numbers. The 32 k of pair p
# are two mma, b = 0 and b = 1:
#
#                its k = 2t, 2t + 1       its k = 2t + 8, 2t + 9
#   row g        a0 = word b              a2 = word b + 2                        of octet 0
#   row g + 8    a1 = word b              a3 = word b + 2                        of octet 1
#
# Every register is a pair that the lane itself has loaded and unpacked: no number moves to another lane. The k of the
# mma are not ours, which a sum over k does not notice, as long as x is named alike: lane 4m + t of the B operand loads
# x[m, 32p + 8t .. 8t + 7], also 16 bytes, and gives its pairs b and b + 2. With k = 8t + 4d + 2b + h the order of both
# is (b, t, d, h). Only the speed rests on this: any order that both operands share gives the same sums.
#
# Two kernels differ in where weights wait for x. `splitk` requests them into registers, before the wait for the kernel
# before: nothing is faster for one pass. `pipelined` keeps STAGES blocks per warp under way into shared memory, which
# costs no registers, so that more is in flight where a program walks far.
# Programs begin their walk at different blocks: together at one block, they would ask the same few slices of L2 for x.


@triton.jit
def quarters(values):
    """Split the last axis, of length 4, into four tensors."""
    even, odd = values.reshape(values.shape[:-1] + [2, 2]).split()
    v0, v2 = even.split()
    v1, v3 = odd.split()
    return v0, v1, v2, v3


@triton.jit
def a_operand(pair, N_OCTETS: tl.constexpr, WARPS_K: tl.constexpr):
    """Pairs of 32 k, flat [N_OCTETS * WARPS_K, 128, 2] -> [WARPS_K, 8 * N_OCTETS, 32] in the order (b, t, d, h)."""
    pair = pair.reshape(N_OCTETS, WARPS_K, 8, 4, 2, 2, 2)  # [r, warp, g, t, d, b, h]
    return pair.permute(1, 0, 2, 5, 3, 4, 6).reshape(WARPS_K, N_OCTETS * 8, 32)


@triton.jit
def b_operands(x, M_TILES: tl.constexpr, WARPS_K: tl.constexpr, K_WIDTH: tl.constexpr):
    """x flat [M_TILES * 4 * WARPS_K * 8, 32] -> for each 32 of 128 k: [WARPS_K, 32, 8 * M_TILES].

    K_WIDTH: elements of k that a lane of the dot operand holds side by side, the compiler's choice: 4 after a
             dequantisation, where k is in the order (b, t, d, h); 2 for plain FP16, order (d, b, t, h)
    """
    x = x.reshape(M_TILES, 4, WARPS_K, 8, 4, 2, 2, 2)  # [half, p, warp, m, t, d, b, h]
    if K_WIDTH == 4:
        x = x.permute(2, 6, 4, 5, 7, 0, 3, 1)
    else:
        x = x.permute(2, 5, 6, 4, 7, 0, 3, 1)
    x0, x1, x2, x3 = quarters(x)
    k: tl.constexpr = 32
    m: tl.constexpr = 8 * M_TILES
    return x0.reshape(WARPS_K, k, m), x1.reshape(WARPS_K, k, m), x2.reshape(WARPS_K, k, m), x3.reshape(WARPS_K, k, m)


@triton.jit
def per_pair(values, GROUPS_PER_BLOCK: tl.constexpr, N_OCTETS: tl.constexpr, WARPS_K: tl.constexpr):
    """Per-group values, flat [GROUPS_PER_BLOCK * N_OCTETS * WARPS_K * 32] -> for each pair [N_OCTETS * WARPS_K, 32]."""
    values = values.reshape(GROUPS_PER_BLOCK, N_OCTETS * WARPS_K, 32).permute(1, 2, 0)
    if GROUPS_PER_BLOCK == 4:
        v0, v1, v2, v3 = quarters(values)
    elif GROUPS_PER_BLOCK == 2:
        v0, v2 = values.split()
        v1, v3 = v0, v2
    else:
        v0 = values.reshape(N_OCTETS * WARPS_K, 32)
        v1, v2, v3 = v0, v0, v0
    return v0, v1, v2, v3


@triton.jit
def apply_scale(product, scale, N_OCTETS: tl.constexpr, WARPS_K: tl.constexpr):
    """product [WARPS_K, 8 * N_OCTETS, BLOCK_M] float32 times scale [N_OCTETS * WARPS_K, 32], one a lane for its row."""
    scale = scale.to(tl.float32).reshape(N_OCTETS, WARPS_K, 8, 4).permute(1, 0, 2, 3)  # [warp, r, g, t]
    columns = product.reshape(
        WARPS_K, N_OCTETS * 8, product.shape[2] // 8, 4, 2
    )  # lane t holds columns 2 t and 2 t + 1
    return (columns * scale.reshape(WARPS_K, N_OCTETS * 8, 1, 4, 1)).reshape(product.shape)


@triton.jit
def word_pointers(qweight_ptr, pid_n, KB, N_OCTETS: tl.constexpr, WARPS_K: tl.constexpr):
    """Pointers to the words of step 0, flat [N_OCTETS * WARPS_K, 128]; output rows and first k."""
    i = tl.arange(0, N_OCTETS * WARPS_K)[:, None]
    r, block = i // WARPS_K, i % WARPS_K
    lane_words = tl.arange(0, 128)[None, :]  # 8 rows x 16 words lie side by side
    tile_row = qweight_ptr + pid_n.to(tl.int64) * (N_OCTETS // 2) * KB * 256
    ptrs = tile_row + (r // 2 * KB + block) * 256 + r % 2 * 128 + lane_words
    return ptrs, pid_n * N_OCTETS * 8 + r * 8 + lane_words // 16, block * 128


@triton.jit
def scale_offsets(
    pid_n, N, GROUPS_PER_BLOCK: tl.constexpr, SCALE_ROWS: tl.constexpr, N_OCTETS: tl.constexpr, WARPS_K: tl.constexpr
):
    """Offsets of step 0's scales, flat [GROUPS_PER_BLOCK * N_OCTETS * WARPS_K * 32], one a lane; rows and first k."""
    i = tl.arange(0, GROUPS_PER_BLOCK * N_OCTETS * WARPS_K * 32)
    block, sub = i // 32 % WARPS_K, i // (32 * WARPS_K * N_OCTETS)
    row = pid_n * N_OCTETS * 8 + i // (32 * WARPS_K) % N_OCTETS * 8 + i % 32 // 4
    return (block * SCALE_ROWS + sub) * N + row, row, block * 128 + sub * (128 // GROUPS_PER_BLOCK)


@triton.jit
def x_pointers(x_ptr, stride_xm, M_TILES: tl.constexpr, WARPS_K: tl.constexpr):
    """Offsets of the x of step 0, flat [M_TILES * 4 * WARPS_K * 8, 32], with the token m and the k of each element."""
    i = tl.arange(0, M_TILES * 4 * WARPS_K * 8)[:, None]
    m = i // (8 * WARPS_K * 4) * 8 + i % 8
    k = i // 8 % WARPS_K * 128 + i // (8 * WARPS_K) % 4 * 32 + tl.arange(0, 32)[None, :]
    return x_ptr + m.to(tl.int64) * stride_xm + k, m, k


@triton.jit
def multiply_block(
    acc, word, s0, s1, s2, s3, z0, z1, z2, z3, x0, x1, x2, x3,
    GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr, DEQUANT: tl.constexpr, N_OCTETS: tl.constexpr, WARPS_K: tl.constexpr,
):  # fmt: skip
    """acc [WARPS_K, BLOCK_N, BLOCK_M] float32 plus the product of one block of 128 k per warp.

    word:     [N_OCTETS * WARPS_K, 32, 4]; scales s and zeros z: [N_OCTETS * WARPS_K, 32], for each pair p
    x0 .. x3: [WARPS_K, 32, BLOCK_M]
    """
    p0, p1, p2, p3 = dequantise(word, z0, z1, z2, z3, x0.dtype, HAS_ZEROS, DEQUANT)
    # dots: [WARPS_K, BLOCK_N, 32] x [WARPS_K, 32, BLOCK_M]; two chains of dependent mma instead of one
    first, second = tl.dot(a_operand(p0, N_OCTETS, WARPS_K), x0), tl.dot(a_operand(p2, N_OCTETS, WARPS_K), x2)
    if GROUP == 32:
        acc += apply_scale(first, s0, N_OCTETS, WARPS_K) + apply_scale(second, s2, N_OCTETS, WARPS_K)
        first, second = tl.zeros_like(acc), tl.zeros_like(acc)
    first = tl.dot(a_operand(p1, N_OCTETS, WARPS_K), x1, first)
    second = tl.dot(a_operand(p3, N_OCTETS, WARPS_K), x3, second)
    if GROUP <= 64:
        acc += apply_scale(first, s1, N_OCTETS, WARPS_K) + apply_scale(second, s3, N_OCTETS, WARPS_K)
    else:
        acc += apply_scale(first + second, s3, N_OCTETS, WARPS_K)
    return acc
