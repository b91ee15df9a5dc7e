"""References: kernels that the product is measured against."""

import triton
import triton.language as tl

from tinygemm.kernel.triton.smem import add_warps, shared_memory
from tinygemm.kernel.triton.tiles import (
    b_operands,
    k_range,
    load_step,
    prefetch_counter,
    quarters,
    scale_offsets,
    store_split,
    word_pointers,
    wrap,
    x_pointers,
)


@triton.jit(do_not_specialize=["KB"])
def kernel_load_only_int4(
    qweight_ptr, scales_ptr, checksum_ptr,
    N, KB,
    SCALE_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, WARPS_K: tl.constexpr, SPLIT_K: tl.constexpr,
    BLOCKS_IN_FLIGHT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Read every word and scale, compute nothing with them: checksum[SPLIT_K, N] int32 is the XOR of what a row read.

    The ceiling of every INT4 kernel: tiles, K slices, layout and the prefetch of the fast kernel, with neither x nor
    arithmetic. Scales are read as their bits; symmetric weights whose N and K fill the tiles only.
    """
    pid_n, pid_k = tl.program_id(0), tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    N_OCTETS: tl.constexpr = BLOCK_N // 8
    GROUPS: tl.constexpr = SCALE_ROWS if SCALE_ROWS > 0 else 1
    first, last = k_range(KB, pid_k, WARPS_K, SPLIT_K)
    q_ptrs, _, _ = word_pointers(qweight_ptr, pid_n, KB, N_OCTETS, WARPS_K)
    offs_g, _, _ = scale_offsets(pid_n, N, GROUPS, SCALE_ROWS, N_OCTETS, WARPS_K)
    s_ptrs = scales_ptr.to(tl.pointer_type(tl.int16)) + offs_g

    words = tl.zeros((N_OCTETS * WARPS_K, 128), dtype=tl.int32)
    scales = tl.zeros((GROUPS * N_OCTETS * WARPS_K * 32,), dtype=tl.int16)
    for chunk in tl.range(first, last, BLOCKS_IN_FLIGHT * WARPS_K, num_stages=1):
        chunk_words, chunk_scales = (), ()
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            kb = chunk + step * WARPS_K
            chunk_words += (tl.load(q_ptrs + kb * 256, mask=kb < last, other=0, eviction_policy="evict_first"),)
            chunk_scales += (tl.load(s_ptrs + kb * SCALE_ROWS * N, mask=kb < last, other=0),)
        if PDL:
            tl.extra.cuda.gdc_wait()
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            words ^= chunk_words[step]
            scales ^= chunk_scales[step]

    checksum = tl.xor_sum(tl.xor_sum(words.reshape(N_OCTETS, WARPS_K, 8, 16), 3), 1)  # [N_OCTETS, 8]
    if SCALE_ROWS > 0:  # four lanes read each scale: one of them counts
        scales = scales.to(tl.int32).reshape(GROUPS, N_OCTETS, WARPS_K, 8, 4)
        scales = tl.where(tl.arange(0, 4)[None, None, None, None, :] == 0, scales, 0)
        checksum ^= tl.xor_sum(tl.xor_sum(tl.xor_sum(scales, 4), 2), 0)
    offs = tl.arange(0, N_OCTETS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(checksum_ptr + pid_k * N + pid_n * BLOCK_N + offs, checksum)


@triton.jit(do_not_specialize=["M", "KB"])
def kernel_gemm_fp16_splitk(
    x_ptr, weight_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, KB, stride_xm,
    FULL_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WARPS_K: tl.constexpr, SPLIT_K: tl.constexpr,
    BLOCKS_IN_FLIGHT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The FP16 reference of splitk: out[M, N] = x[M, K] @ weight[N, K].T in its tiles, K slices and prefetch."""
    pid_n, pid_k = tl.program_id(0), tl.program_id(1)
    prefetch_counter(counter_ptr, pid_n, SPLIT_K)
    N_OCTETS: tl.constexpr = BLOCK_N // 8
    M_TILES: tl.constexpr = BLOCK_M // 8
    first, last = k_range(KB, pid_k, WARPS_K, SPLIT_K)
    w_ptrs, w_row, w_k = x_pointers(weight_ptr + pid_n.to(tl.int64) * BLOCK_N * K, K, N_OCTETS, WARPS_K)
    w_row += pid_n * BLOCK_N
    x_ptrs, m, x_k = x_pointers(x_ptr, stride_xm, M_TILES, WARPS_K)

    acc = tl.zeros((WARPS_K, BLOCK_N, BLOCK_M), dtype=tl.float32)
    CHUNK: tl.constexpr = BLOCKS_IN_FLIGHT * WARPS_K
    chunks = tl.cdiv(last - first, CHUNK)
    for i in tl.range(0, chunks, num_stages=1):
        chunk = first + wrap(i, pid_n % chunks, chunks) * CHUNK
        ws, xs = (), ()
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            kb = chunk + step * WARPS_K
            ws += (load_step(w_ptrs + kb * 128, kb, last, w_row, N, w_k, K, FULL_TILES, FULL_TILES, "evict_first"),)
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            kb = chunk + step * WARPS_K
            xs += (load_step(x_ptrs + kb * 128, kb, last, m, M, x_k, K, False, FULL_TILES, ""),)
        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            w = ws[step].reshape(N_OCTETS, 4, WARPS_K, 8, 4, 2, 2, 2)  # [r, p, warp, g, t, d, b, h]
            w0, w1, w2, w3 = quarters(w.permute(2, 0, 3, 5, 6, 4, 7, 1))
            x0, x1, x2, x3 = b_operands(xs[step], M_TILES, WARPS_K, 2)
            acc = tl.dot(w0.reshape(WARPS_K, BLOCK_N, 32), x0, acc)
            acc = tl.dot(w1.reshape(WARPS_K, BLOCK_N, 32), x1, acc)
            acc = tl.dot(w2.reshape(WARPS_K, BLOCK_N, 32), x2, acc)
            acc = tl.dot(w3.reshape(WARPS_K, BLOCK_N, 32), x3, acc)

    offs_m, offs_n = tl.arange(0, BLOCK_M), pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    total = add_warps(acc, shared_memory(WARPS_K * BLOCK_N * BLOCK_M * 4), BLOCK_N, BLOCK_M, WARPS_K)
    store_split(total, out_ptr, partial_ptr, counter_ptr, offs_m, offs_n, M, N, pid_n, pid_k, SPLIT_K)


@triton.jit
def kernel_empty():
    """Nothing: what one node of a CUDA graph costs."""
