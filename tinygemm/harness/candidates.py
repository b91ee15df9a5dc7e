"""Launch configs worth trying: those of each kernel, those that fit a problem, and a rough model that ranks them."""

from __future__ import annotations

import itertools
from dataclasses import replace

from tinygemm.hardware import GpuSpec
from tinygemm.kernel.configs import LaunchConfig, fitted, serves
from tinygemm.kernel.launches import SHARED_BYTES
from tinygemm.problem import GemmProblem

LATENCY_US = 0.8  # one trip to DRAM and back under load, about the same on every GPU of these years
L2_OVER_DRAM = 3.0  # L2 bandwidth over DRAM bandwidth, of the order of both Ampere and Hopper
BLOCKS_N, WARPS = (16, 32, 64), (1, 2, 4, 8, 16)
SPLITS = {
    "splitk": (1, 2, 3, 4, 6, 8, 10, 16),
    "fp16": (1, 2, 3, 4, 6, 8, 10, 16),
    "ring": (1, 2, 3, 4, 6, 8),
    "load-only": (1, 2, 4, 8),
}
WORDS = {"splitk": (8, 16, 32), "load-only": (32, 64), "fp16": (32, 64)}
WARPS_PER_SM = (0.9, 40)  # programs that leave most of the GPU idle, or queue many deep, are not worth timing


def candidates_of(form: str, problem: GemmProblem, sm_count: int) -> list[LaunchConfig]:
    """The launch configs of a kernel worth timing on a problem, cut to the K there is and then limited in registers.

    The weight-read bound reads no x and is tuned once, at M = 1.
    """
    if form == "load-only" and problem.M != 1:
        return []
    cut = dict.fromkeys(fitted(config, problem) for config in candidates(form, problem.M))
    return [limited for config in cut if fits(config, problem, sm_count) for limited in with_limits(config)]


def candidates(form: str, M: int) -> list[LaunchConfig]:
    """Every launch config of a kernel worth trying for M tokens, before the shape is looked at."""
    block_m = rows_of_x(form, M)
    if block_m is None:
        return []
    if form == "ring":
        return _rings(block_m)
    found = []
    for block_n, warps, split_k, steps in itertools.product(BLOCKS_N, WARPS, SPLITS[form], (1, 2, 4)):
        words = block_n * steps // 2 * (4 if form == "fp16" else 1)  # registers of a thread that wait for weights
        if words not in WORDS[form] or not 4 <= warps * split_k <= 64:
            continue
        found.append(LaunchConfig(form, block_m, block_n, 128 * warps * steps, split_k, warps, 1))
    return found


def with_limits(config: LaunchConfig) -> list[LaunchConfig]:
    """The config, or in its place one for each limit of registers, where many of them wait for weights.

    There the compiler's own limit, 128, makes it request part of x late.
    """
    words = config.block_n * config.block_k // (256 * config.num_warps)
    if config.form != "splitk" or words <= 16:
        return [config]
    return [replace(config, max_registers=limit) for limit in limits(config.num_warps)]


def limits(num_warps: int) -> tuple[int, ...]:
    """Limits of registers that won in searches; under each of them at least one program fits into an SM."""
    return (96, 128) if num_warps == 16 else (128, 168)


def _rings(block_m: int) -> list[LaunchConfig]:
    """Rings that fit into shared memory, as long as they can be and somewhat shorter."""
    found = []
    for block_n, warps, split_k in itertools.product(BLOCKS_N, WARPS[1:], SPLITS["ring"]):
        longest = SHARED_BYTES // (warps * (66 * block_n + 256 * block_m))
        for stages in {longest, min(longest, 5), min(longest, 3)} - {0, 1}:
            if 4 <= warps * split_k <= 32:
                found.append(LaunchConfig("ring", block_m, block_n, 128 * warps, split_k, warps, stages))
    return found


def fits(config: LaunchConfig, problem: GemmProblem, sm_count: int) -> bool:
    """Tell whether a config, cut to K, computes the problem and is worth timing: not too few or too many warps."""
    if problem.N % config.block_n or not serves(config, problem):
        return False
    if config.form == "load-only" and config.split_k > problem.K // config.block_k:
        return False
    warps = problem.N // config.block_n * config.split_k * config.num_warps
    return WARPS_PER_SM[0] <= warps / sm_count <= WARPS_PER_SM[1]


def for_tokens(M: int, configs: list[LaunchConfig]) -> list[LaunchConfig]:
    """Those of the configs that serve M tokens: pipelined in a tile of other rows, the others in their own."""
    fitting = []
    for config in configs:
        rows = rows_of_x(config.form, M)
        if config.form == "ring" and rows:
            fitting.append(replace(config, block_m=rows))
        elif config.form != "ring" and config.block_m == rows:
            fitting.append(config)
    return list(dict.fromkeys(fitting))


def rows_of_x(form: str, M: int) -> int | None:
    """Rows of x in a tile for M tokens: a ring holds hardly more than it needs, and none for more than 8."""
    if form == "ring":
        return next((rows for rows in (1, 2, 4, 8) if rows >= M), None)
    return 8 if M <= 8 else 16


def variants(configs: list[LaunchConfig]) -> list[LaunchConfig]:
    """Configs that won, and these with every limit of registers, and with half as much requested at once.

    Where registers are short, above all in formats that take more of them, one of these is often faster.
    """
    found = list(configs)
    for config in configs:
        for max_registers in (0, *limits(config.num_warps)):
            found.append(replace(config, max_registers=max_registers))
            if config.form != "ring" and (half := config.block_k // (256 * config.num_warps)):
                found.append(replace(found[-1], block_k=128 * config.num_warps * half))
    return list(dict.fromkeys(found))


def predicted_us(config: LaunchConfig, problem: GemmProblem, spec: GpuSpec) -> float:
    """A rough latency that ranks launch configs; it is not meant to be right in microseconds.

    The busiest SM streams its programs' weights at its share of the bandwidth, unless its programs, one step of K after
    the other, take longer: each step waits for memory once per LATENCY_US. x comes from L2 for every tile; adding up
    the shares of a split K costs one more trip to memory, and a little per share.
    """
    programs = problem.N // config.block_n * config.split_k
    rounds = -(-programs // spec.sm_count)
    bits = 16 if config.form == "fp16" else problem.int4_bits_per_weight()
    program_bytes = problem.N * problem.K * bits / 8 / programs
    stream_us = rounds * program_bytes / (spec.dram_gb_s * 1e3 / spec.sm_count)
    resident = max(1, min(spec.max_warps_per_sm // 3 // config.num_warps, 16))  # about 128 registers a thread
    steps = -(-problem.K // config.block_k // config.split_k)
    serial_us = -(-rounds // resident) * steps * LATENCY_US
    x_us = programs * problem.M * problem.K / config.split_k * 2 / (L2_OVER_DRAM * spec.dram_gb_s * 1e3)
    tail_us = 0.0 if config.split_k == 1 else 2 * LATENCY_US + 0.05 * config.split_k
    return max(stream_us, serial_us) + x_us + tail_us
