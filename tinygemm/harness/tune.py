"""Find the launch configs of a GPU: measure candidates with a cold L2, write the static table that `select` reads."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from tinygemm.hardware import GpuSpec
from tinygemm.harness import backends, own, timing, verify
from tinygemm.harness.weights import Weights
from tinygemm.kernel.configs import LaunchConfig, write_table
from tinygemm.problem import GemmProblem

# what a config is tuned for: every config of these M is timed; between them only the best of the neighbours
FULL_M = (1, 8, 16)
SCREEN_REP, FINAL_REP, FINALISTS = 3, 15, 6
LATENCY_US = 0.8  # one trip to DRAM and back under load, about the same on every GPU of these years
L2_OVER_DRAM = 3.0  # L2 bandwidth over DRAM bandwidth, of the order of both Ampere and Hopper
COMPILE_K = 4096  # every candidate's block_k divides it, and K and K / 128 are divisible by 16 as in real shapes
WARPS_PER_SM = (3, 40)  # programs that leave most of the GPU idle, or queue many deep, are not worth timing


def candidates(form: str, M: int) -> list[LaunchConfig]:
    """Every launch config of a form worth trying for M tokens, before the shape is looked at."""
    block_m = 1 if form == "gemv" else 8 if M <= 8 else 16
    found = []
    if form == "gemv":
        for block_n, blocks, split_k, warps, stages in itertools.product((16, 32), (4, 8), (1, 2, 4), (2, 8), (2,)):
            found.append(LaunchConfig(form, block_m, block_n, 128 * blocks, split_k, warps, stages))
        return found
    splits = (1, 2, 3, 4, 6, 7, 8, 10, 12, 16) if form == "splitk" else (1, 2, 4, 6, 8, 12, 16)
    for block_n, warps, split_k, steps in itertools.product((16, 32, 64), (1, 2, 4, 8, 16), splits, (1, 2, 4)):
        words = block_n * steps // 2 * (4 if form == "fp16" else 1)  # registers of a thread that wait for weights
        if block_n * warps <= 512 and words <= (128 if warps <= 2 else 64) and 4 <= warps * split_k <= 64:
            found.append(LaunchConfig(form, block_m, block_n, 128 * warps * steps, split_k, warps, 1))
    return found


def fits(config: LaunchConfig, problem: GemmProblem, sm_count: int) -> bool:
    """Whether a config is worth timing: whole tiles, no empty share of K, neither too few nor too many warps."""
    if problem.N % config.block_n or problem.K % config.block_k or config.split_k > problem.K // config.block_k:
        return False
    warps = problem.N // config.block_n * config.split_k * config.num_warps
    return WARPS_PER_SM[0] <= warps / sm_count <= WARPS_PER_SM[1]


def tune(problems: Iterable[GemmProblem], forms: Iterable[str], gpu: str, path: Path, about: str, workers: int = 0):
    """Measure every candidate of every form on every problem, cold, and write the table.

    problems: what to tune for; group size 128
    gpu:      key of the GPU in this machine
    path:     the table to write
    about:    one line that says when and how, written into the table
    workers:  processes that compile; 0: one per core less one
    returns:  the rows written: M, K, N, latency_us and the fastest LaunchConfig of each form
    """
    import torch

    sm_count = torch.cuda.get_device_properties(0).multi_processor_count
    problems = sorted(problems, key=lambda p: (p.K, p.N, FULL_M.index(p.M) if p.M in FULL_M else 99, p.M))
    todo = {(form, p): candidates_of(form, p, sm_count) for p in problems for form in forms}
    broken = _compile({config for configs in todo.values() for config in configs}, workers)
    rows = []
    best: dict[tuple, list[LaunchConfig]] = {}  # finalists of a form and shape, for the M that are not searched in full
    clock = timing.CudaClock()
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    shapes = itertools.groupby(problems, key=lambda p: (p.K, p.N))
    for (K, N), of_shape in tqdm(shapes, desc="tune", total=len({(p.K, p.N) for p in problems})):
        weights = None
        for problem in of_shape:
            weights = weights or Weights(backends.operands(problem, True, "cuda", seed=0), l2_bytes)
            x = backends.activations(problem, "cuda", seed=1)
            for form in forms:
                if not todo[form, problem]:
                    continue
                configs = todo[form, problem] if problem.M in FULL_M else best[form, K, N]
                configs = [config for config in configs if config not in broken]
                ranked = _race(form, configs, x, weights, problem, clock)
                best.setdefault((form, K, N), []).extend(config for _, config in ranked)
                latency_us, config = ranked[0]
                rows.append({"M": problem.M, "K": K, "N": N, "latency_us": round(latency_us, 3), "config": config})
        del weights
        torch.cuda.empty_cache()
    write_table(path, rows, "table", about)
    return rows


def predict_table(problems: Iterable[GemmProblem], forms: Iterable[str], spec: GpuSpec, path: Path, about: str):
    """Write the table of a GPU that is not here: of each form's candidates the one that `predicted_us` likes best."""
    rows = []
    for problem, form in itertools.product(sorted(problems, key=lambda p: (p.K, p.N, p.M)), forms):
        if configs := candidates_of(form, problem, spec.sm_count):
            _, _, config = min((predicted_us(c, problem, spec), c.split_k * c.num_warps, c) for c in configs)
            rows.append({"M": problem.M, "K": problem.K, "N": problem.N, "latency_us": 0.0, "config": config})
    write_table(path, rows, "predicted", about)
    return rows


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


def candidates_of(form: str, problem: GemmProblem, sm_count: int) -> list[LaunchConfig]:
    """A yardstick that reads no x is tuned once; the GEMV serves one token."""
    if form in ("load-only", "gemv") and problem.M != 1:
        return []
    return [config for config in candidates(form, problem.M) if fits(config, problem, sm_count)]


def _race(form, configs, x, weights: Weights, problem: GemmProblem, clock) -> list[tuple[float, LaunchConfig]]:
    """The finalists of a problem, fastest first: all timed alone, the best few interleaved; wrong ones never start."""
    import torch

    from tinygemm.kernel import quant

    reference = quant.reference_gemm(x, weights.packed)
    copies = weights.copies(*_stored(form), "cold")

    def replay(config):
        backends.forget_graphs()
        return timing.prepare([_bind(config, x, w) for w in copies], "graph", clock)

    def median(samples):
        return sorted(samples)[len(samples) // 2]

    screened = []
    for config in dict.fromkeys(configs):
        if form != "load-only":
            try:
                with verify.poisoned_memory():
                    out = _bind(config, x, copies[0])()
                verify.compare(out, reference, verify.FP16_TOLERANCE)
            except verify.MismatchError as error:
                tqdm.write(f"dropped {config} on {problem}: {error}")
                continue
        ready = replay(config)
        _, *durations = clock.time_round([ready.run] * (1 + SCREEN_REP), queued=True)
        screened.append((median(durations) / ready.n_calls, config))
    screened.sort(key=lambda pair: pair[0])
    finalists = {str(i): config for i, (_, config) in enumerate(screened[:FINALISTS])}
    if not finalists:
        raise RuntimeError(f"no config of form {form} computes {problem}")
    backends.forget_graphs()
    replays = {name: timing.prepare([_bind(c, x, w) for w in copies], "graph", clock) for name, c in finalists.items()}
    samples, _ = timing.interleave(replays, "graph", FINAL_REP, 2, clock)
    del replays
    torch.cuda.synchronize()
    return sorted(((median(samples[name]), config) for name, config in finalists.items()), key=lambda pair: pair[0])


def _stored(form: str):
    return ("fp16-nk", own.fp16_nk) if form == "fp16" else ("packed", own.packed_form)


def _bind(config: LaunchConfig, x, weight):
    from tinygemm.kernel import gemm

    if config.form == "fp16":
        return lambda: gemm.fp16_gemm(x, weight, config)
    if config.form == "load-only":
        return lambda: gemm.load_only(weight, config)
    return lambda: gemm.gemm(x, weight, config)


def _compile(configs: set[LaunchConfig], workers: int) -> set[LaunchConfig]:
    """Compile in many processes, which share Triton's cache on disk with this one; returns what does not compile."""
    ordered = sorted(configs, key=lambda c: (c.form, c.block_n, c.num_warps, c.split_k))
    broken = set()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or max(1, (os.cpu_count() or 2) - 1), mp_context=spawn) as pool:
        results = pool.map(_compile_one, ordered, chunksize=4)
        for config, problem_found in zip(ordered, tqdm(results, desc="compile", total=len(ordered)), strict=True):
            if problem_found:
                tqdm.write(f"dropped {config}: {problem_found}")
                broken.add(config)
    return broken


def _compile_one(config: LaunchConfig) -> str | None:
    """Compile by a launch on small operands with the divisibilities of real ones."""
    import torch

    from tinygemm.harness.own import fp16_nk
    from tinygemm.kernel import quant

    try:
        packed = quant.random_packed(128, COMPILE_K, 128, device="cuda")
        x = torch.randn(config.block_m, COMPILE_K, dtype=torch.float16, device="cuda")
        _bind(config, x, fp16_nk(packed) if config.form == "fp16" else packed)()
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler says about one candidate, the others go on
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return None
