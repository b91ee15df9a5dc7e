"""The equations of the latency model: what one call of a backend is made of, and the numbers that are fitted.

One call takes

    T = start + token · M + (T_serial^p + T_memory^p + T_unpack^p + T_multiply^p)^(1/p)

    T_serial   = serial · K walked by one program          a chain of loads and multiplications, however wide the GPU
    T_memory   = bytes / (efficiency · usable bandwidth)   DRAM traffic
    T_unpack   = weight · K · N · tail / SMs               instructions per weight: dequantisation, address, load
    T_multiply = tile · tiles of M · K · N · tail / SMs    instructions per weight and tile of tokens
    tail       = rounds of programs over the SMs / their mean, where all programs are cut alike; otherwise 1

One program walks K / split_k where all are cut alike. Otherwise a library or a tuner has cut them: it walks K as far as
`longest_k`, and what is longer is split among programs, (K^-8 + longest_k^-8)^(-1/8).

With p = 1 the four add up, with a large p the longest hides the others; p is fitted like the rest. From Python a
call takes (host^8 + (T + gap)^8)^(1/8): the host or the device, whichever is slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from tinygemm.hardware import GpuSpec

ECC_SHARE = 0.125  # of the bandwidth, where ECC bits lie in the DRAM itself: 10 to 15 % on an A10 (README of Marlin)
OVERLAPPING = ("serial", "memory", "unpack", "multiply")
SHARPNESS = 8  # of a corner: between host-bound and device-bound, between walks that are split and that are not


def term(unit: str, meaning: str, prior: float, sigma: float, low: float, high: float):
    """A fitted number: its unit and meaning, what to expect of it before a run speaks, and its bounds."""
    metadata = {"unit": unit, "meaning": meaning, "prior": prior, "sigma": sigma, "low": low, "high": high}
    return field(default=prior, metadata=metadata)


@dataclass(frozen=True)
class Terms:
    """The fitted numbers of one backend; `sigma` of a prior is in natural logarithms."""

    start_us: float = term("µs", "launching, filling and draining the GPU, once per call", 3, 1, 0.02, 30)
    token_us: float = term("µs", "per token: reading and placing activations, storing outputs", 0.03, 1.5, 1e-4, 2)
    serial_ns: float = term("ns", "per weight along K that one program walks", 0.3, 1.5, 1e-3, 50)
    longest_k: float = term(
        "1", "weights along K that one program walks at most: what is longer is split", 2e4, 0.7, 512, 1e6
    )
    efficiency: float = term(
        "1", "share of the usable DRAM bandwidth: that of the fastest case of the run", 0.9, 0, 0, 1
    )
    weight_ps: float = term("ps", "of one SM per weight: unpacking it, in whatever format", 5, 2, 1e-2, 3e3)
    tile_ps: float = term("ps", "of one SM per weight and tile of tokens: multiplying", 5, 2, 1e-2, 3e3)
    overlap: float = term("1", "exponent p: 1 adds the terms up, 8 lets the longest hide the rest", 2, 0.7, 1, 8)
    l2_share: float = term("1", "share of L2 that keeps a dequantised weight until it is read", 0.5, 0.7, 0.05, 4)
    host_us: float = term("µs", "of the host per call from Python", 15, 1, 1, 500)
    gap_us: float = term("µs", "between two calls from Python, beside the device time", 2, 1, 0.05, 30)


HOST = ("host_us", "gap_us")
# not the efficiency: on one GPU it cannot be told from the work of the SMs, which also grows with K · N
DEVICE = tuple(f.name for f in fields(Terms) if f.name not in (*HOST, "efficiency"))
META = {f.name: f.metadata for f in fields(Terms)}


@dataclass(frozen=True)
class Fitted:
    """One backend of a run.

    bits:    stored bits per weight at groups of 128      block_m: rows of its M tile; 0: cost grows with M itself
    cut:     (block_n, split_k) where every program of the run was cut alike, else None: the tuner chose
    n_shapes: (K, N) that it was fitted to
    spread:  launch -> (low, high): factors that cover 90 % of measured / predicted at shapes left out of the fit
    """

    backend: str
    terms: Terms
    bits: float
    block_m: int
    cut: tuple[int, int] | None
    n_shapes: int
    spread: dict[str, tuple[float, float]]


def device_us(fitted: Fitted, M, K, N, bits, spec: GpuSpec) -> np.ndarray:
    """Predicted device time of one call, without the host; M, K, N, bits may be arrays."""
    parts = parts_us(fitted, M, K, N, bits, spec)
    return parts["start"] + parts["token"] + _together(fitted.terms.overlap, parts)


def parts_us(fitted: Fitted, M, K, N, bits, spec: GpuSpec) -> dict[str, np.ndarray]:
    """The terms of a call in us: start, token, serial, memory, unpack, multiply."""
    terms, (M, K, N, bits) = fitted.terms, (np.asarray(value, dtype=float) for value in (M, K, N, bits))
    moved = K * N * bits / 8 + 2 * M * (K + N)
    if fitted.backend == "dequant-fp16":  # the FP16 weight is written, and read again as far as L2 does not hold it
        fp16 = 2 * K * N
        moved = moved + fp16 + fp16 * fp16 / (fp16 + terms.l2_share * spec.l2_bytes)
    tiles = np.ceil(M / fitted.block_m) if fitted.block_m else M / 8
    tail, walked = 1.0, (K**-SHARPNESS + terms.longest_k**-SHARPNESS) ** (-1 / SHARPNESS)
    if fitted.cut:
        block_n, split_k = fitted.cut
        programs, walked = np.ceil(N / block_n) * split_k, K / split_k
        tail = np.ceil(programs / spec.sm_count) * spec.sm_count / programs
    return {
        "start": terms.start_us + 0 * M,
        "token": terms.token_us * M,
        "serial": terms.serial_ns * 1e-3 * walked,
        "memory": moved / (terms.efficiency * usable_gb_s(spec) * 1e3),
        "unpack": terms.weight_ps * 1e-6 * K * N * tail / spec.sm_count,
        "multiply": terms.tile_ps * tiles * 1e-6 * K * N * tail / spec.sm_count,
    }


def eager_us(terms: Terms, device) -> np.ndarray:
    """Time of one call launched from Python, from its device time."""
    return (terms.host_us**SHARPNESS + (np.asarray(device) + terms.gap_us) ** SHARPNESS) ** (1 / SHARPNESS)


def usable_gb_s(spec: GpuSpec) -> float:
    """Published DRAM bandwidth less what ECC takes of it."""
    return spec.dram_gb_s * (1 - ECC_SHARE * spec.inline_ecc)


def _together(overlap, parts) -> np.ndarray:
    """The p-norm of the terms that may overlap, scaled by the longest, so that no power overflows."""
    terms = np.stack(np.broadcast_arrays(*(parts[name] for name in OVERLAPPING)))
    longest = terms.max(axis=0)
    return longest * ((terms / longest) ** overlap).sum(axis=0) ** (1 / overlap)
