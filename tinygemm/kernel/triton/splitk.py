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
    turn,
    word_pointers,
    x_pointers,
)


@triton.jit(do_not_specialize=["M", "KB"])  # one binary serves every M up to BLOCK_M
def kernel_gemm_packed_int4_splitk(
    x_ptr, qweight_ptr, scales_ptr, zeros_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, KB, stride_xm,
    GROUP: tl.constexpr, WHOLE_K: tl.constexpr, HAS_ZEROS: tl.constexpr, DEQUANT: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WARPS_K: tl.constexpr, SPLIT_K: tl.constexpr,
    STEPS: tl.constexpr, ADD_WARPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[M, N] = x[M, K] @ weight.T: warp w of a program takes blocks w, w + WARPS_K, ... of the program's share of K.

    STEPS: blocks of 128 k that a warp requests at once; they wait in registers, and ptxas may not move them past a loop
           edge, so the loads of a chunk are in flight together and other warps hide what is left of their latency
    EVEN:  N fills the tiles and K a block of every warp, so that a load needs no mask but the end of the share
    ADD_WARPS: add up with add_warps; False: with tl.sum, to see what that costs
    PDL:   dependent launch: the first weights are requested while the kernel before this one still runs
    """
    pid_n, pid_k = tl.program_id(0), tl.program_id(1)
    prefetch_counter(counter_ptr, pid_n, SPLIT_K)

    # which tile of `out` is mine, and which blocks of K
    ROWS: tl.constexpr = BLOCK_N // 8
    HALVES: tl.constexpr = BLOCK_M // 8
    SUBGROUPS: tl.constexpr = 128 // GROUP
    SCALE_ROWS: tl.constexpr = 0 if WHOLE_K else SUBGROUPS  # rows of scales per block of 128 k
    first, last = k_range(KB, pid_k, WARPS_K, SPLIT_K)
    q_ptrs, q_row, q_k = word_pointers(qweight_ptr, pid_n, KB, ROWS, WARPS_K)
    offs_g, g_row, g_k = scale_offsets(pid_n, N, SUBGROUPS, SCALE_ROWS, ROWS, WARPS_K)
    x_ptrs, m, x_k = x_pointers(x_ptr, stride_xm, HALVES, WARPS_K)

    # walk K; the weights of a chunk are requested before x, for x may still be on its way from the kernel before
    acc = tl.zeros((WARPS_K, BLOCK_N, BLOCK_M), dtype=tl.float32)
    CHUNK: tl.constexpr = STEPS * WARPS_K
    chunks = tl.cdiv(last - first, CHUNK)
    for i in tl.range(0, chunks, num_stages=1):
        chunk = first + turn(i, pid_n % chunks, chunks) * CHUNK
        words, scales, zeros, xs = (), (), (), ()
        for step in tl.static_range(STEPS):
            kb = chunk + step * WARPS_K
            words += (load_step(q_ptrs + kb * 256, kb, last, q_row, N, q_k, K, EVEN, EVEN, "evict_first"),)
            g_kb = kb * SCALE_ROWS * N
            scales += (load_step(scales_ptr + g_kb + offs_g, kb, last, g_row, N, g_k, K, EVEN, EVEN, ""),)
            if HAS_ZEROS:
                zeros += (load_zeros(zeros_ptr, g_kb + offs_g, kb, last, g_row, N, g_k, K, EVEN),)
            else:
                zeros += (scales[step],)
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()  # not before: three kernels at a time only crowd each other
        for step in tl.static_range(STEPS):
            kb = chunk + step * WARPS_K
            xs += (load_step(x_ptrs + kb * 128, kb, last, m, M, x_k, K, False, EVEN, ""),)
        for step in tl.static_range(STEPS):
            word = words[step].reshape(ROWS * WARPS_K, 32, 4)
            s0, s1, s2, s3 = per_pair(scales[step], SUBGROUPS, ROWS, WARPS_K)
            z0, z1, z2, z3 = per_pair(zeros[step], SUBGROUPS, ROWS, WARPS_K)
            x0, x1, x2, x3 = b_operands(xs[step], HALVES, WARPS_K, 4)
            acc = multiply_block(
                acc, word, s0, s1, s2, s3, z0, z1, z2, z3,
                x0, x1, x2, x3, GROUP, HAS_ZEROS, DEQUANT, ROWS, WARPS_K,
            )  # fmt: skip

    # add the warps' shares, then the programs'
    offs_m, offs_n = tl.arange(0, BLOCK_M), pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if ADD_WARPS:
        total = add_warps(acc, shared_memory(WARPS_K * BLOCK_N * BLOCK_M * 4), BLOCK_N, BLOCK_M, WARPS_K)
    else:
        total = tl.sum(acc, 0)
    store_split(total, out_ptr, partial_ptr, counter_ptr, offs_m, offs_n, M, N, pid_n, pid_k, SPLIT_K)
