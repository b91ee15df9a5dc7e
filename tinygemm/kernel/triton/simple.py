"""The obvious kernel, and the one that writes the weight out."""

import triton
import triton.language as tl

from tinygemm.kernel.triton.dequant import EIGHT_HI, EIGHT_LO, UNPACK_WORD, unpack_word


@triton.jit(do_not_specialize=["M"])
def kernel_gemm_packed_int4_static(
    x_ptr, qweight_ptr, scales_ptr, zeros_ptr, out_ptr,
    M, N, K, KB, stride_xm,
    GROUP: tl.constexpr, PER_CHANNEL: tl.constexpr, HAS_ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[M, N] = x[M, K] @ weight.T the straightforward way: shift, mask, scale, dot; one program walks all of K."""
    # which tile of `out` is mine
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_mask, n_mask = (offs_m < M)[:, None], (offs_n < N)[:, None]
    q_rows = (offs_n // 16).to(tl.int64) * KB * 256 + offs_n % 16 * 16
    q_ptrs = qweight_ptr + q_rows[:, None] + tl.arange(0, 16)[None, :]
    x_ptrs = x_ptr + offs_m[:, None].to(tl.int64) * stride_xm + tl.arange(0, 128)[None, :]
    p, h = tl.arange(0, 4)[None, :, None, None], tl.arange(0, 2)[None, None, None, :]
    subgroup = tl.arange(0, 128 // GROUP)[None, :]

    # walk K, a block of 128 at a time
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for kb in range(KB):
        k = kb * 128 + tl.arange(0, 128)[None, :]
        x = tl.load(x_ptrs + kb * 128, mask=m_mask & (k < K), other=0.0)  # [BLOCK_M, 128]
        word = tl.load(q_ptrs + kb * 256, mask=n_mask, other=0)  # [BLOCK_N, 16]
        code = ((word[:, None, :, None] >> 4 * (p + 4 * h)) & 0xF).reshape(BLOCK_N, 128)  # k = 32 p + 2 j + h

        # `subgroup * 0`: group 0, in the shape of subgroup
        group = subgroup * 0 if PER_CHANNEL else kb * (128 // GROUP) + subgroup
        g_mask = n_mask & (kb * 128 + subgroup * GROUP < K)
        scale = tl.load(scales_ptr + group * N + offs_n[:, None], mask=g_mask, other=0.0)  # [BLOCK_N, 128 // GROUP]
        weight = code.to(tl.float16).reshape(BLOCK_N, 128 // GROUP, GROUP)
        if HAS_ZEROS:
            zero = tl.load(zeros_ptr + group * N + offs_n[:, None], mask=g_mask, other=0)
            weight -= zero.to(tl.float16)[:, :, None]
        else:
            weight -= 8.0
        weight = (weight * scale[:, :, None]).to(x.dtype).reshape(BLOCK_N, 128)
        acc = tl.dot(x, tl.trans(weight), acc)

    out_ptrs = out_ptr + offs_m[:, None].to(tl.int64) * N + offs_n[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=m_mask & (offs_n < N)[None, :])


@triton.jit
def kernel_dequantize_int4(
    qweight_ptr, scales_ptr, zeros_ptr, weight_ptr,
    N, K, KB,
    GROUP: tl.constexpr, PER_CHANNEL: tl.constexpr, HAS_ZEROS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """weight[N, K], of the type that weight_ptr has, from its packed words: one program writes BLOCK_N rows x 128 k."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    kb = tl.program_id(1)
    n_words = (offs_n // 16).to(tl.int64) * KB * 256 + offs_n % 16 * 16
    n_mask = (offs_n < N)[:, None]
    word = tl.load(qweight_ptr + kb * 256 + n_words[:, None] + tl.arange(0, 16)[None, :], mask=n_mask, other=0)

    # each [BLOCK_N, 16, 2]
    p0, p1, p2, p3 = unpack_word(word, EIGHT_LO, EIGHT_HI, EIGHT_LO, EIGHT_HI, UNPACK_WORD, tl.float16)
    code = tl.join(tl.join(p0, p1), tl.join(p2, p3)).permute(0, 4, 3, 1, 2).reshape(BLOCK_N, 128)  # code - 8

    k = kb * 128 + tl.arange(0, 128)[None, :]
    mask = n_mask & (k < K)
    # `k * 0`: group 0 for every k, in the shape of k
    offs_g = (k * 0 if PER_CHANNEL else k // GROUP) * N + offs_n[:, None]
    scale = tl.load(scales_ptr + offs_g, mask=mask, other=0.0).to(tl.float32)
    if HAS_ZEROS:
        code += 8.0 - tl.load(zeros_ptr + offs_g, mask=mask, other=0).to(tl.float16)
    weight = (code.to(tl.float32) * scale).to(weight_ptr.dtype.element_ty)
    tl.store(weight_ptr + offs_n[:, None].to(tl.int64) * K + k, weight, mask=mask)
