"""Attention of one decode step as one kernel: q/k norm, rotary, cache write, split-KV attention and its merge.

Between the product of q, k and v and that of o, a compiler makes eight kernels of the equations in `lean.Attention`.
Here they are one. Programs split the cache among them; the last one to finish a head merges the shares, as the kernels
of a split K do (tinygemm/kernel/triton/tiles.py). Source of the method: Dao et al. 2023, Flash-Decoding.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from tinygemm.kernel import launches, workspace
from tinygemm.step import lean

MIN_TOKENS = 32  # of the cache for one program
MAX_SPLITS = 32
PROGRAMS_PER_SM = 2
MIN_ROWS = 16  # of q in one tile: what a tensor-core instruction takes


@triton.jit
def attend(q, k, v, seen, peak, total, acc, scale_log2: tl.constexpr):
    """One step of the online softmax: q [G, D] over k, v [L, D]; seen [L]. Scores are in powers of two."""
    scores = tl.dot(q, tl.trans(k)) * scale_log2  # [G, L]
    scores = tl.where(seen[None, :], scores, -1e30)
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    shrink = tl.exp2(peak - new_peak)
    p = tl.exp2(scores - new_peak[:, None])
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
    return new_peak, total * shrink + tl.sum(p, 1), acc


@triton.jit
def kernel_decode_attention(
    qkv_ptr, rotary_ptr, q_norm_ptr, k_norm_ptr, position_ptr, keys_ptr, values_ptr, out_ptr, partial_ptr, counter_ptr,
    capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HAS_NORM: tl.constexpr, EPS: tl.constexpr,
    SCALE_LOG2: tl.constexpr, ROWS: tl.constexpr, BLOCK_L: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out[b, h] = softmax(q[b, h] @ keys[b, kv].T * scale) @ values[b, kv], the new token included.

    program:  (sequence and KV head, share of the cache); it serves the HEADS // KV_HEADS heads of q of that KV head
    ROWS:     of the tile of q, at least MIN_ROWS; those beyond the heads are zeros
    TOKENS:   of one share, a multiple of BLOCK_L
    PDL:      dependent launch: the first keys and values are requested while the kernel before this one still runs
    """
    pid, split = tl.program_id(0), tl.program_id(1)
    b, kv = pid // KV_HEADS, pid % KV_HEADS
    G: tl.constexpr = HEADS // KV_HEADS
    g, d, l = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, BLOCK_L)  # noqa: E741

    # the share of the cache: tokens [first, last), all of them of earlier steps
    position = tl.load(position_ptr).to(tl.int32)
    first = split * TOKENS
    last = tl.minimum(first + TOKENS, position)
    start = pid.to(tl.int64) * capacity * D
    offsets = l[:, None] * D + d[None, :]  # [BLOCK_L, D]
    keys_ptr += start
    values_ptr += start
    seen = first + l < last
    k = tl.load(keys_ptr + first * D + offsets, mask=seen[:, None], other=0.0)
    v = tl.load(values_ptr + first * D + offsets, mask=seen[:, None], other=0.0)
    other = tl.where(d < D // 2, d + D // 2, d - D // 2)  # the partner of each element in its rotation
    sign = tl.where(d < D // 2, -1.0, 1.0)
    cos = tl.load(rotary_ptr + position * D + d)
    sin = tl.load(rotary_ptr + (capacity + position) * D + d) * sign
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    # q of the heads that share this KV head, and the new k and v
    row_ptr = qkv_ptr + b * (HEADS + 2 * KV_HEADS) * D
    q_ptr, k_ptr = row_ptr + kv * G * D + g[:, None] * D, row_ptr + (HEADS + kv) * D
    rows = (g < G)[:, None]
    q = tl.load(q_ptr + d[None, :], mask=rows, other=0.0).to(tl.float32)  # [ROWS, D]
    q_other = tl.load(q_ptr + other[None, :], mask=rows, other=0.0).to(tl.float32)
    new_k, k_other = tl.load(k_ptr + d).to(tl.float32), tl.load(k_ptr + other).to(tl.float32)  # [D]
    new_v = tl.load(row_ptr + (HEADS + KV_HEADS + kv) * D + d)
    if HAS_NORM:
        q_factor = tl.rsqrt(tl.sum(q * q, 1) / D + EPS)[:, None]
        k_factor = tl.rsqrt(tl.sum(new_k * new_k, 0) / D + EPS)
        q = q * q_factor * tl.load(q_norm_ptr + d).to(tl.float32)[None, :]
        q_other = q_other * q_factor * tl.load(q_norm_ptr + other).to(tl.float32)[None, :]
        new_k = new_k * k_factor * tl.load(k_norm_ptr + d).to(tl.float32)
        k_other = k_other * k_factor * tl.load(k_norm_ptr + other).to(tl.float32)
    q16 = (q * cos[None, :] + q_other * sin[None, :]).to(k.dtype)
    k16 = (new_k * cos + k_other * sin).to(k.dtype)
    mine = split == 0  # the first share takes the new token in, into the cache and into its sums
    tl.store(keys_ptr + position * D + d, k16, mask=mine & (d < D))
    tl.store(values_ptr + position * D + d, new_v, mask=mine & (d < D))

    # walk the share
    score = tl.sum(q16.to(tl.float32) * k16.to(tl.float32)[None, :], 1) * SCALE_LOG2  # [ROWS]
    peak = tl.where(mine, score, -1e30)
    total = tl.where(mine, score * 0 + 1.0, 0.0)
    acc = tl.zeros((ROWS, D), dtype=tl.float32) + tl.where(mine, new_v.to(tl.float32), 0.0)[None, :]
    if first < last:
        peak, total, acc = attend(q16, k, v, seen, peak, total, acc, SCALE_LOG2)
        for token in tl.range(first + BLOCK_L, last, BLOCK_L, num_stages=3 if PDL else 2):
            more = token + l < last
            k_next = tl.load(keys_ptr + token * D + offsets, mask=more[:, None], other=0.0)
            v_next = tl.load(values_ptr + token * D + offsets, mask=more[:, None], other=0.0)
            peak, total, acc = attend(q16, k_next, v_next, more, peak, total, acc, SCALE_LOG2)

    # store, or merge the shares: the last program to arrive adds them in their order
    heads = (b * HEADS + kv * G + g)[:, None] * D + d[None, :]
    if SPLITS == 1:
        tl.store(out_ptr + heads, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=rows)
    else:
        sums_ptr = partial_ptr + pid * SPLITS * ROWS * (D + 2)  # of a share: acc [ROWS, D], peak [ROWS], total [ROWS]
        mine_ptr = sums_ptr + split * ROWS * (D + 2)
        tl.store(mine_ptr + g[:, None] * D + d[None, :], acc, mask=rows)
        tl.store(mine_ptr + ROWS * D + g, peak)
        tl.store(mine_ptr + ROWS * (D + 1) + g, total)
        tl.debug_barrier()  # every thread's share is written before one of them announces it
        arrived = tl.atomic_add(counter_ptr + pid, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            top = tl.full((ROWS,), -1e30, dtype=tl.float32)
            for share in tl.static_range(SPLITS):
                top = tl.maximum(top, tl.load(sums_ptr + (share * (D + 2) + D) * ROWS + g, cache_modifier=".cg"))
            whole = tl.zeros((ROWS,), dtype=tl.float32)
            merged = tl.zeros((ROWS, D), dtype=tl.float32)
            for share in tl.static_range(SPLITS):
                share_ptr = sums_ptr + share * ROWS * (D + 2)
                weight = tl.exp2(tl.load(share_ptr + ROWS * D + g, cache_modifier=".cg") - top)
                whole += weight * tl.load(share_ptr + ROWS * (D + 1) + g, cache_modifier=".cg")
                part = tl.load(share_ptr + g[:, None] * D + d[None, :], mask=rows, other=0.0, cache_modifier=".cg")
                merged += weight[:, None] * part
            tl.store(out_ptr + heads, (merged / whole[:, None]).to(out_ptr.dtype.element_ty), mask=rows)
            tl.store(counter_ptr + pid, 0)


def cut(B: int, kv_heads: int, capacity: int, sm_count: int) -> tuple[int, int, int]:
    """(BLOCK_L, TOKENS, SPLITS): shares of the cache that fill the GPU with programs."""
    splits = max(1, min(PROGRAMS_PER_SM * sm_count // (B * kv_heads), capacity // MIN_TOKENS, MAX_SPLITS))
    tokens = -(-capacity // splits)
    block = MIN_TOKENS if tokens <= MIN_TOKENS else 2 * MIN_TOKENS
    tokens = -(-tokens // block) * block
    return block, tokens, -(-capacity // tokens)


def launch(
    qkv: torch.Tensor,
    rotary: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    position: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    heads: int,
    norm_eps: float,
) -> torch.Tensor:
    """`lean.Attention` as one kernel; its arguments and result. keys and values take the new token in."""
    B, kv_heads, capacity, D = keys.shape
    block, tokens, splits = cut(B, kv_heads, capacity, _sm_count(qkv.device))
    rows = max(MIN_ROWS, triton.next_power_of_2(heads // kv_heads))
    pdl = launches.dependent_launch(qkv.device)
    out = qkv.new_empty(B, heads * D)
    needed = (B * kv_heads * splits * rows * (D + 2), B * kv_heads) if splits > 1 else (0, 0)
    sums, counters = workspace.reserve(*needed, qkv.device).tensors
    kernel_decode_attention[(B * kv_heads, splits)](
        qkv, rotary, q_norm, k_norm, position, keys, values, out, sums, counters, capacity,
        HEADS=heads, KV_HEADS=kv_heads, D=D, HAS_NORM=q_norm is not None, EPS=norm_eps,
        SCALE_LOG2=D**-0.5 * 1.4426950408889634, ROWS=rows, BLOCK_L=block, TOKENS=tokens, SPLITS=splits,
        PDL=pdl, num_warps=4, enable_fp_fusion=True, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
    return out


decode_attention = torch.library.custom_op("tinygemm::decode_attention", launch, mutates_args=("keys", "values"))


@decode_attention.register_fake
def _(qkv, rotary, q_norm, k_norm, position, keys, values, heads, norm_eps):
    return qkv.new_empty(qkv.shape[0], heads * keys.shape[3])


class FusedAttention(lean.Attention):
    """`lean.Attention` as one kernel, on a GPU."""

    def forward(self, qkv: torch.Tensor, position: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        return torch.ops.tinygemm.decode_attention(
            qkv, rotary, self.q_norm, self.k_norm, position, self.cache.keys, self.cache.values,
            self.arch.model.heads, self.arch.norm_eps,
        )  # fmt: skip


@functools.cache
def _sm_count(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16
