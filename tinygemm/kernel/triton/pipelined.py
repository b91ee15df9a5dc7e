"""The pipelined kernel: each warp keeps several blocks under way in shared memory. Tables of configs call it `ring`."""

import triton
import triton.language as tl

from tinygemm.kernel.triton.smem import (
    add_warps,
    cp_async_commit,
    cp_async_pred,
    cp_async_tile,
    cp_async_wait,
    read_byte,
    read_half,
    read_halves,
    read_words,
    shared_memory,
    sync_warp,
)
from tinygemm.kernel.triton.tiles import b_operands, k_range, multiply_block, prefetch_counter, store_split, wrap


@triton.jit
def prefetch_group_values(
    address, ptr, block, last, pid_n, N,
    BYTES: tl.constexpr, GROUPS_PER_BLOCK: tl.constexpr, SCALE_ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    WARPS_K: tl.constexpr, WARP_BYTES: tl.constexpr,
):  # fmt: skip
    """Copy scales (BYTES 2) or zeros (1) of a block per warp, [GROUPS_PER_BLOCK, BLOCK_N], to `address` of warp 0."""
    PER_ROW: tl.constexpr = BLOCK_N * BYTES // 4
    PIECES: tl.constexpr = GROUPS_PER_BLOCK * PER_ROW
    COUNT: tl.constexpr = (PIECES + 31) // 32
    i = tl.arange(0, COUNT * WARPS_K)[:, None]
    piece = i // WARPS_K * 32 + tl.arange(0, 32)[None, :]  # [COUNT * WARPS_K, 32]
    warp = i % WARPS_K  # [COUNT * WARPS_K, 1]
    row = (block + warp) * SCALE_ROWS + piece // PER_ROW
    source = ptr.to(tl.int64) + (row.to(tl.int64) * N + pid_n * BLOCK_N) * BYTES + piece % PER_ROW * 4
    # `+ piece * 0` gives the size the shape of piece: inline assembly takes operands of one shape
    size, pred = tl.where(block + warp < last, 4, 0) + piece * 0, tl.where(piece < PIECES, 1, 0)
    cp_async_pred(address + warp * WARP_BYTES + piece * 4, source, size, pred, 4)


@triton.jit
def prefetch_weights(
    address, qweight_ptr, scales_ptr, zeros_ptr, block, last, pid_n, N, KB,
    GROUPS_PER_BLOCK: tl.constexpr, SCALE_ROWS: tl.constexpr, HAS_ZEROS: tl.constexpr, BLOCK_N: tl.constexpr,
    WARPS_K: tl.constexpr, WARP_BYTES: tl.constexpr,
):  # fmt: skip
    """Start to copy the words, scales and zeros of block `block + warp` of each warp to a stage of the ring."""
    i = tl.arange(0, BLOCK_N // 16 * WARPS_K)[:, None]
    r, warp = i // WARPS_K, i % WARPS_K
    lane = tl.arange(0, 32)[None, :]
    tile = qweight_ptr + (pid_n.to(tl.int64) * (BLOCK_N // 16) * KB + block) * 256
    source = tile + (r * KB + warp) * 256 + lane * 4  # [BLOCK_N // 16 * WARPS_K, 32]
    size = tl.where(block + warp < last, 16, 0) + lane * 0  # `+ lane * 0`: the shape [BLOCK_N // 16 * WARPS_K, 32]
    cp_async_tile(address + warp * WARP_BYTES + r * 1024 + lane * 16, source.to(tl.int64), size)
    prefetch_group_values(
        address + BLOCK_N * 64, scales_ptr, block, last, pid_n, N, 2, GROUPS_PER_BLOCK, SCALE_ROWS,
        BLOCK_N, WARPS_K, WARP_BYTES,
    )  # fmt: skip
    if HAS_ZEROS:
        prefetch_group_values(
            address + BLOCK_N * (64 + 2 * GROUPS_PER_BLOCK), zeros_ptr, block, last, pid_n, N, 1, GROUPS_PER_BLOCK,
            SCALE_ROWS, BLOCK_N, WARPS_K, WARP_BYTES,
        )  # fmt: skip


@triton.jit
def prefetch_x(
    address, x_ptr, block, last, M, stride_xm, BLOCK_M: tl.constexpr, WARPS_K: tl.constexpr, WARP_BYTES: tl.constexpr
):
    """Start copying x of block `block + warp` of each warp, as pieces [p, m, t] of 16 bytes: k = 32 p + 8 t .. + 7."""
    PIECES: tl.constexpr = 16 * BLOCK_M
    COUNT: tl.constexpr = (PIECES + 31) // 32
    i = tl.arange(0, COUNT * WARPS_K)[:, None]
    piece = i // WARPS_K * 32 + tl.arange(0, 32)[None, :]  # [COUNT * WARPS_K, 32]
    warp = i % WARPS_K  # [COUNT * WARPS_K, 1]
    p, m, t = piece // (4 * BLOCK_M), piece // 4 % BLOCK_M, piece % 4
    row = tl.minimum(m, M - 1).to(tl.int64) * stride_xm  # rows past M repeat the last one; nobody stores their product
    source = x_ptr + row + (block + warp).to(tl.int64) * 128 + p * 32 + t * 8
    # `+ piece * 0` gives the size the shape of piece, as above
    size, pred = tl.where(block + warp < last, 16, 0) + piece * 0, tl.where(piece < PIECES, 1, 0)
    cp_async_pred(address + warp * WARP_BYTES + piece * 16, source.to(tl.int64), size, pred, 16)


@triton.jit
def read_groups(address, BYTES: tl.constexpr, GROUPS_PER_BLOCK: tl.constexpr, BLOCK_N: tl.constexpr):
    """The scales (BYTES 2) or zeros (1) of the four pairs, from what prefetch_group_values put at `address`."""
    STEP: tl.constexpr = BLOCK_N * BYTES * GROUPS_PER_BLOCK // 4  # where the group of the next pair lies, or 0
    if BYTES == 2:
        v0 = read_half(address)
        v1 = read_half(address + STEP) if GROUPS_PER_BLOCK == 4 else v0
        v2 = read_half(address + 2 * STEP) if GROUPS_PER_BLOCK >= 2 else v0
        v3 = read_half(address + 3 * STEP) if GROUPS_PER_BLOCK == 4 else v2
    else:
        v0 = read_byte(address)
        v1 = read_byte(address + STEP) if GROUPS_PER_BLOCK == 4 else v0
        v2 = read_byte(address + 2 * STEP) if GROUPS_PER_BLOCK >= 2 else v0
        v3 = read_byte(address + 3 * STEP) if GROUPS_PER_BLOCK == 4 else v2
    return v0, v1, v2, v3


@triton.jit(do_not_specialize=["M", "KB"])
def kernel_gemm_packed_int4_pipelined(
    x_ptr, qweight_ptr, scales_ptr, zeros_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, KB, stride_xm,
    GROUP: tl.constexpr, PER_CHANNEL: tl.constexpr, HAS_ZEROS: tl.constexpr, DEQUANT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WARPS_K: tl.constexpr, SPLIT_K: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[M, N] = x[M, K] @ weight.T for M up to BLOCK_M <= 8, N that fills the tiles, K a multiple of 128.

    Every warp has a ring of STAGES stages, each with the words, scales, zeros and x of one block of 128 k. A stage is
    requested again as soon as it has been read; a warp waits for its own copies only.
    """
    pid_n, pid_k = tl.program_id(0), tl.program_id(1)
    prefetch_counter(counter_ptr, pid_n, SPLIT_K)

    # which tile of `out` is mine, which blocks of K, and where each warp's ring lies
    N_OCTETS: tl.constexpr = BLOCK_N // 8
    GROUPS_PER_BLOCK: tl.constexpr = 128 // GROUP
    SCALE_ROWS: tl.constexpr = 0 if PER_CHANNEL else GROUPS_PER_BLOCK
    SCALES_AT: tl.constexpr = BLOCK_N * 64
    ZEROS_AT: tl.constexpr = SCALES_AT + BLOCK_N * 2 * GROUPS_PER_BLOCK
    X_AT: tl.constexpr = ZEROS_AT + (BLOCK_N * GROUPS_PER_BLOCK if HAS_ZEROS else 0)
    STAGE: tl.constexpr = X_AT + 256 * BLOCK_M
    WARP: tl.constexpr = STAGES * STAGE
    COLUMNS: tl.constexpr = 8  # of x in an mma; those past BLOCK_M repeat earlier ones
    SUMS: tl.constexpr = BLOCK_N * COLUMNS * 4
    ring = shared_memory(WARPS_K * (WARP if WARP > SUMS else SUMS))
    first, last = k_range(KB, pid_k, 1, SPLIT_K)
    steps = tl.cdiv(last - first, WARPS_K)
    start = pid_n % tl.maximum(steps, 1)

    # request the first weights, wait for the kernel before, request their x
    for stage in tl.static_range(STAGES):
        kb = tl.where(stage < steps, first + wrap(stage, start, steps) * WARPS_K, last)
        prefetch_weights(
            ring + stage * STAGE, qweight_ptr, scales_ptr, zeros_ptr, kb, last, pid_n, N, KB,
            GROUPS_PER_BLOCK, SCALE_ROWS, HAS_ZEROS, BLOCK_N, WARPS_K, WARP,
        )  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for stage in tl.static_range(STAGES):
        kb = tl.where(stage < steps, first + wrap(stage, start, steps) * WARPS_K, last)
        prefetch_x(ring + stage * STAGE + X_AT, x_ptr, kb, last, M, stride_xm, BLOCK_M, WARPS_K, WARP)
        cp_async_commit()

    # walk K
    lane = tl.arange(0, 32)[None, :]
    i = tl.arange(0, N_OCTETS * WARPS_K)[:, None]
    words_at = ring + i % WARPS_K * WARP + i // WARPS_K * 512 + lane * 16
    row = i // WARPS_K * 8 + lane // 4
    scales_at, zeros_at = ring + i % WARPS_K * WARP + SCALES_AT + row * 2, ring + i % WARPS_K * WARP + ZEROS_AT + row
    i = tl.arange(0, 4 * WARPS_K)[:, None]
    piece = (i // WARPS_K * BLOCK_M + lane // 4 % BLOCK_M) * 4 + lane % 4
    x_at = ring + i % WARPS_K * WARP + X_AT + piece * 16
    acc = tl.zeros((WARPS_K, BLOCK_N, COLUMNS), dtype=tl.float32)
    slot = 0
    for step in tl.range(0, steps, num_stages=1):
        cp_async_wait(STAGES - 1)
        w0, w1, w2, w3 = read_words(words_at + slot)  # each [N_OCTETS * WARPS_K, 32]
        s0, s1, s2, s3 = read_groups(scales_at + slot, 2, GROUPS_PER_BLOCK, BLOCK_N)  # each [N_OCTETS * WARPS_K, 32]
        if HAS_ZEROS:
            z0, z1, z2, z3 = read_groups(zeros_at + slot, 1, GROUPS_PER_BLOCK, BLOCK_N)
        else:
            z0, z1, z2, z3 = s0, s1, s2, s3  # only names for the call: without zeros, dequantise reads none of them
        x = read_halves(x_at + slot, x_ptr.dtype.element_ty)  # [4 * WARPS_K, 32, 2, 2, 2]
        sync_warp()
        kb = tl.where(step + STAGES < steps, first + wrap(step + STAGES, start, steps) * WARPS_K, last)
        prefetch_weights(
            ring + slot, qweight_ptr, scales_ptr, zeros_ptr, kb, last, pid_n, N, KB,
            GROUPS_PER_BLOCK, SCALE_ROWS, HAS_ZEROS, BLOCK_N, WARPS_K, WARP,
        )  # fmt: skip
        prefetch_x(ring + slot + X_AT, x_ptr, kb, last, M, stride_xm, BLOCK_M, WARPS_K, WARP)
        cp_async_commit()
        slot = tl.where(slot == (STAGES - 1) * STAGE, 0, slot + STAGE)

        word = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(N_OCTETS * WARPS_K, 32, 4)
        x0, x1, x2, x3 = b_operands(x.reshape(4 * WARPS_K * 8, 32), 1, WARPS_K, 4)  # each [WARPS_K, 32, COLUMNS]
        acc = multiply_block(  # [WARPS_K, BLOCK_N, COLUMNS]
            acc, word, s0, s1, s2, s3, z0, z1, z2, z3,
            x0, x1, x2, x3, GROUP, HAS_ZEROS, DEQUANT, N_OCTETS, WARPS_K,
        )  # fmt: skip

    # add the warps' shares in what was the ring, then the programs'
    cp_async_wait(0)
    tl.debug_barrier()
    offs_m, offs_n = tl.arange(0, COLUMNS), pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    total = add_warps(acc, ring, BLOCK_N, COLUMNS, WARPS_K)  # [BLOCK_N, COLUMNS]
    store_split(total, out_ptr, partial_ptr, counter_ptr, offs_m, offs_n, M, N, pid_n, pid_k, SPLIT_K)
