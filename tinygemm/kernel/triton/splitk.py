"""The splitk kernel: weights are requested into registers before the wait for x."""

import triton
import triton.language as tl

from tinygemm.kernel.triton.smem import add_warps, shared_memory
from tinygemm.kernel.triton.tiles import (
    b_operands,
    k_range,
    load_step,
    load_zeros,
    multiply_block,
    per_pair,
    prefetch_counter,
    scale_offsets,
    store_split,
    word_pointers,
    wrap,
    x_pointers,
)


@triton.jit(do_not_specialize=["M", "KB"])  # one binary serves every M up to BLOCK_M
def kernel_gemm_packed_int4_splitk(
    x_ptr, qweight_ptr, scales_ptr, zeros_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, KB, stride_xm,
    GROUP: tl.constexpr, PER_CHANNEL: tl.constexpr, HAS_ZEROS: tl.constexpr, DEQUANT: tl.constexpr,
    FULL_TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WARPS_K: tl.constexpr,
    SPLIT_K: tl.constexpr, BLOCKS_IN_FLIGHT: tl.constexpr, ADD_WARPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[M, N] = x[M, K] @ weight.T: warp w of a program takes blocks w, w + WARPS_K, ... of the program's share of K.

    BLOCKS_IN_FLIGHT: blocks of 128 k that a warp requests at once. They wait in registers. ptxas may not move them past
           a loop edge, so the loads of a chunk are in flight together, and other warps hide the rest of the latency
    FULL_TILES: N fills the tiles and K a block of every warp, so that a load needs no mask but the end of the share
    ADD_WARPS: add up with add_warps; False: with tl.sum, to see what that costs
    PDL:   dependent launch: the first weights are requested while the kernel before this one still runs
    """
    pid_n, pid_k = tl.program_id(0), tl.program_id(1)
    prefetch_counter(counter_ptr, pid_n, SPLIT_K)

    # which tile of `out` is mine, and which blocks of K
    N_OCTETS: tl.constexpr = BLOCK_N // 8
    M_TILES: tl.constexpr = BLOCK_M // 8
    GROUPS_PER_BLOCK: tl.constexpr = 128 // GROUP
    SCALE_ROWS: tl.constexpr = 0 if PER_CHANNEL else GROUPS_PER_BLOCK  # rows of scales per block of 128 k
    first, last = k_range(KB, pid_k, WARPS_K, SPLIT_K)
    q_ptrs, q_row, q_k = word_pointers(qweight_ptr, pid_n, KB, N_OCTETS, WARPS_K)
    offs_g, g_row, g_k = scale_offsets(pid_n, N, GROUPS_PER_BLOCK, SCALE_ROWS, N_OCTETS, WARPS_K)
    x_ptrs, m, x_k = x_pointers(x_ptr, stride_xm, M_TILES, WARPS_K)

    # walk K; the weights of a chunk are requested before x, for x may still be on its way from the kernel before
    acc = tl.zeros((WARPS_K, BLOCK_N, BLOCK_M), dtype=tl.float32)
    CHUNK: tl.constexpr = BLOCKS_IN_FLIGHT * WARPS_K
    chunks = tl.cdiv(last - first, CHUNK)
    for i in tl.range(0, chunks, num_stages=1):
        chunk = first + wrap(i, pid_n % chunks, chunks) * CHUNK
        words, scales, zeros, xs = (), (), (), ()
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            kb = chunk + step * WARPS_K
            # [N_OCTETS * WARPS_K, 128]
            words += (load_step(q_ptrs + kb * 256, kb, last, q_row, N, q_k, K, FULL_TILES, FULL_TILES, "evict_first"),)
            g_kb = kb * SCALE_ROWS * N
            # [GROUPS_PER_BLOCK * N_OCTETS * WARPS_K * 32]
            scales += (load_step(scales_ptr + g_kb + offs_g, kb, last, g_row, N, g_k, K, FULL_TILES, FULL_TILES, ""),)
            if HAS_ZEROS:
                zeros += (load_zeros(zeros_ptr, g_kb + offs_g, kb, last, g_row, N, g_k, K, FULL_TILES),)
            else:
                zeros += (scales[step],)  # only fills the place: without zeros, dequantise reads none of them
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()  # not before: three kernels at a time only crowd each other
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            kb = chunk + step * WARPS_K
            # [M_TILES * 4 * WARPS_K * 8, 32]
            xs += (load_step(x_ptrs + kb * 128, kb, last, m, M, x_k, K, False, FULL_TILES, ""),)
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            word = words[step].reshape(N_OCTETS * WARPS_K, 32, 4)
            # scales and zeros: each [N_OCTETS * WARPS_K, 32]; x: each [WARPS_K, 32, BLOCK_M]
            s0, s1, s2, s3 = per_pair(scales[step], GROUPS_PER_BLOCK, N_OCTETS, WARPS_K)
            z0, z1, z2, z3 = per_pair(zeros[step], GROUPS_PER_BLOCK, N_OCTETS, WARPS_K)
            x0, x1, x2, x3 = b_operands(xs[step], M_TILES, WARPS_K, 4)
            acc = multiply_block(  # [WARPS_K, BLOCK_N, BLOCK_M]
                acc, word, s0, s1, s2, s3, z0, z1, z2, z3,
                x0, x1, x2, x3, GROUP, HAS_ZEROS, DEQUANT, N_OCTETS, WARPS_K,
            )  # fmt: skip

    # add the warps' shares, then the programs'
    offs_m, offs_n = tl.arange(0, BLOCK_M), pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if ADD_WARPS:
        total = add_warps(acc, shared_memory(WARPS_K * BLOCK_N * BLOCK_M * 4), BLOCK_N, BLOCK_M, WARPS_K)
    else:
        total = tl.sum(acc, 0)
    store_split(total, out_ptr, partial_ptr, counter_ptr, offs_m, offs_n, M, N, pid_n, pid_k, SPLIT_K)
