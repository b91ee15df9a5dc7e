"""Find the launch configs of a GPU: measure candidates with a cold L2, write the static table that `select` reads."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from tinygemm import models
from tinygemm.hardware import GpuSpec, gpu_spec
from tinygemm.harness import backends, compile, own, timing, verify
from tinygemm.harness.progress import Progress, terms
from tinygemm.harness.weights import Weights
from tinygemm.kernel.configs import DEQUANTISE, TUNED_GROUP_SIZE, LaunchConfig, fitted, read_table, write_table
from tinygemm.kernel.forms import SHARED_BYTES, fills_tiles
from tinygemm.problem import GemmProblem

# what a config is tuned for: every config of these M is timed; then, for those between, only the best of them
FULL_M = (1, 8, 16)
MANY_M = (24, 32, 48, 64, 96, 128, 192, 256)  # where the fused kernel may lose to dequantising first
SCREEN_REP, FINAL_REP, FINALISTS = 3, 15, 6
PROJECTION_M = (1, 8)
PROMISING = 10  # of a form, by the rough model: what is timed of a shape that is not searched in full
LATENCY_US = 0.8  # one trip to DRAM and back under load, about the same on every GPU of these years
L2_OVER_DRAM = 3.0  # L2 bandwidth over DRAM bandwidth, of the order of both Ampere and Hopper
COMPILE_K = 4096  # every candidate's block_k divides it; one block of 128 more does not fill several warps
SPLITS = (1, 2, 3, 4, 6, 8, 10, 16)
WORDS = {"splitk": (8, 16, 32), "load-only": (32, 64), "fp16": (32, 64)}
WARPS_PER_SM = (0.9, 40)  # programs that leave most of the GPU idle, or queue many deep, are not worth timing


def projections(known: Iterable[tuple[int, int]]) -> tuple[GemmProblem, ...]:
    """Problems of the models' projections, uncut and cut by eight GPUs, whose weight (K, N) is not yet known."""
    known = set(known)
    shapes = [(K, N) for K, N, size in models.decode_shapes((1, 8)) if size == TUNED_GROUP_SIZE]
    return tuple(GemmProblem(M, N, K) for K, N in shapes if (K, N) not in known for M in PROJECTION_M)


def candidates(form: str, M: int) -> list[LaunchConfig]:
    """Every launch config of a form worth trying for M tokens, before the shape is looked at."""
    if form == "ring":
        return _rings(M)
    block_m = _rows_of_x(form, M)
    found = []
    splits = SPLITS if form != "load-only" else SPLITS[:2] + SPLITS[3:6:2]
    for block_n, warps, split_k, steps in itertools.product((16, 32, 64), (1, 2, 4, 8), splits, (1, 2, 4)):
        words = block_n * steps // 2 * (4 if form == "fp16" else 1)  # registers of a thread that wait for weights
        if words not in WORDS[form] or not 4 <= warps * split_k <= 64:
            continue
        # the compiler's own limit would make it request part of x late where 32 registers wait for weights
        for limit in (128, 168) if form == "splitk" and words == 32 else (0,):
            found.append(LaunchConfig(form, block_m, block_n, 128 * warps * steps, split_k, warps, 1, limit))
    return found


def _rings(M: int) -> list[LaunchConfig]:
    """Rings that fit into shared memory, as long as they can be and somewhat shorter."""
    block_m = _rows_of_x("ring", M)
    found = []
    for block_n, warps, split_k in itertools.product((16, 32, 64), (2, 4, 8), (1, 2, 3, 4, 6, 8)) if block_m else ():
        longest = SHARED_BYTES // (warps * (66 * block_n + 256 * block_m))
        for stages in {longest, min(longest, 5), min(longest, 3)} - {0, 1}:
            if 4 <= warps * split_k <= 32:
                found.append(LaunchConfig("ring", block_m, block_n, 128 * warps, split_k, warps, stages))
    return found


def fits(config: LaunchConfig, problem: GemmProblem, sm_count: int) -> bool:
    """Whether a config is worth timing: whole tiles of N, no warp or share without K, not too few or many warps."""
    if problem.N % config.block_n or fitted(config, problem) != config:
        return False
    if config.form == "ring" and problem.K % 128:
        return False
    if config.form == "load-only" and (problem.K % config.block_k or config.split_k > problem.K // config.block_k):
        return False  # it has no masks
    warps = problem.N // config.block_n * config.split_k * config.num_warps
    return WARPS_PER_SM[0] <= warps / sm_count <= WARPS_PER_SM[1]


def tune(
    problems: Iterable[GemmProblem],
    forms: Iterable[str],
    gpu: str,
    path: Path,
    about: str,
    workers: int = 0,
    partial: Path | None = None,
    kept: Path | None = None,
    others: Iterable[GemmProblem] = (),
):
    """Measure every candidate of every form on every problem, cold, and write the table.

    problems: what to tune for; group size 128
    others:   more problems, at other weights, on which only what promises most is timed: the best of the rough model,
              and the finalists of the nearest of `problems`
    gpu:      key of the GPU in this machine
    path:     the table to write
    about:    one line that says when and how, written into the table
    workers:  processes that compile; 0: one per core less one
    partial:  file that keeps what is measured until the table is written; a search that was stopped goes on from it,
              if it was of the same GPU, code and software
    kept:     a measured table whose rows of other weights stay
    returns:  the rows written: M, K, N, latency_us and the fastest LaunchConfig of each form
    raises:   ValueError for a kept table that was not measured
    """
    import torch

    old_rows, source, old_crossovers = read_table(kept) if kept else ([], "table", [])
    if source != "table":
        raise ValueError(f"{kept.name} is {source}, its rows cannot stay beside measured ones: search every shape")
    device = torch.cuda.get_device_properties(0)
    problems, forms = sorted(problems, key=lambda p: (p.K, p.N, p.M)), tuple(forms)
    progress = Progress.open(partial, {"gpu": gpu, **terms()})
    todo: dict[tuple, list[LaunchConfig]] = {}
    others = sorted(others, key=lambda p: (p.K, p.N, p.M))
    full, between = (tuple(p for p in problems if (p.M in FULL_M) == searched) for searched in (True, False))

    def choice(form: str, problem: GemmProblem) -> list[LaunchConfig]:
        configs = candidates_of(form, problem, device.multi_processor_count)
        if problem in full or not configs:
            return configs
        if problem in between:
            return _for_tokens(problem.M, progress.finalists(form, (problem.K, problem.N)))
        return _promising(form, problem, configs, full, progress, gpu_spec(gpu))

    for phase, raced in ((full, forms), (between, forms), (others, [form for form in forms if form != "load-only"])):
        pairs = {(form, problem): choice(form, problem) for form, problem in itertools.product(raced, phase)}
        left = {pair: configs for pair, configs in pairs.items() if configs and pair not in progress.ranked}
        _race_all(left, phase, forms, progress, device.L2_cache_size, workers)
        todo |= pairs
    best = [
        (problem, *progress.ranked[form, problem][0]) for form, problem in todo if (form, problem) in progress.ranked
    ]
    rows = [{"M": p.M, "K": p.K, "N": p.N, "latency_us": round(us, 3), "config": config} for p, us, config in best]
    fused = {
        (p.K, p.N): progress.ranked["splitk", p][0][1] for p in problems if p.M == FULL_M[-1] and "splitk" in forms
    }
    crossovers = _crossovers(fused, device.L2_cache_size)
    searched = {(p.K, p.N) for p in (*problems, *others)}
    rows = [row for row in old_rows if (row["K"], row["N"]) not in searched] + rows
    crossed = {(p.K, p.N) for p in problems}  # of the others none are searched
    crossovers = [row for row in old_crossovers if (row["K"], row["N"]) not in crossed] + crossovers
    write_table(path, rows, "table", about, crossovers)
    progress.close()
    return rows


def _race_all(left: dict, problems, forms, progress: Progress, l2_bytes: int, workers: int) -> None:
    """Compile and race what is left, weight by weight."""
    import torch

    wanted = {(c, fills_tiles(p.N, p.K, c)) for (_, p), configs in left.items() for c in configs}
    broken = _compile(wanted, workers)
    clock = timing.CudaClock()
    shapes = itertools.groupby(problems, key=lambda p: (p.K, p.N))
    for _, of_shape in tqdm(shapes, desc="tune", total=len({(p.K, p.N) for p in problems})):
        weights = None
        for problem, form in itertools.product(of_shape, forms):
            configs = [config for config in left.get((form, problem), ()) if config not in broken]
            if not configs:
                continue
            weights = weights or Weights(backends.operands(problem, True, "cuda", seed=0), l2_bytes)
            x = backends.activations(problem, "cuda", seed=1)
            progress.add(form, problem, _race(form, configs, x, weights, problem, clock))
        del weights
        torch.cuda.empty_cache()


def _crossovers(fused: dict[tuple[int, int], LaunchConfig], l2_bytes: int) -> list[dict]:
    """From how many tokens on it is faster to dequantise first: one row per weight (K, N), with its fused config."""
    clock, rows = timing.CudaClock(), []
    for (K, N), config in fused.items():
        weights = Weights(backends.operands(GemmProblem(1, N, K), True, "cuda", seed=0), l2_bytes)
        copies = weights.copies("packed", own.packed_form, "cold")
        crossover = MANY_M[-1] + 1
        for M in reversed(MANY_M):
            x = backends.activations(GemmProblem(M, N, K), "cuda", seed=1)
            backends.forget_graphs()
            contenders = {"fused": config, "dequantise": DEQUANTISE}
            replays = {
                name: timing.prepare([_bind(c, x, w) for w in copies], "graph", clock) for name, c in contenders.items()
            }
            samples, _ = timing.interleave(replays, "graph", SCREEN_REP + 2, 1, clock)
            if statistics.median(samples["dequantise"]) > statistics.median(samples["fused"]):
                break
            crossover = M
        rows.append({"K": K, "N": N, "M": crossover})
    return rows


def _promising(form, problem: GemmProblem, configs, full, progress: Progress, spec: GpuSpec) -> list[LaunchConfig]:
    """Those of a problem's candidates that the rough model ranks first, and what won at the nearest weight."""
    ranked = sorted(configs, key=lambda config: predicted_us(config, problem, spec))[:PROMISING]
    nearest = min(full, key=lambda p: abs(math.log(p.K / problem.K)) + abs(math.log(p.N / problem.N)))
    won = [fitted(config, problem) for config in progress.finalists(form, (nearest.K, nearest.N))]
    # not by `fits`: what won nearby may leave some SMs idle here, and is tried all the same
    won = [config for config in _for_tokens(problem.M, won) if problem.N % config.block_n == 0]
    return list(dict.fromkeys([*ranked, *won]))


def _for_tokens(M: int, configs: list[LaunchConfig]) -> list[LaunchConfig]:
    """Those of the configs that serve M tokens: a ring in a tile of fewer or more rows, other forms in their own."""
    fitting = []
    for config in configs:
        rows = _rows_of_x(config.form, M)
        if config.form == "ring" and rows:
            fitting.append(replace(config, block_m=rows))
        elif config.form != "ring" and config.block_m == rows:
            fitting.append(config)
    return list(dict.fromkeys(fitting))


def _rows_of_x(form: str, M: int) -> int | None:
    """Rows of x in a tile for M tokens: a ring holds hardly more than it needs, and none for more than 8."""
    if form == "ring":
        return next((rows for rows in (1, 2, 4, 8) if rows >= M), None)
    return 8 if M <= 8 else 16


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
    """A yardstick that reads no x is tuned once."""
    if form == "load-only" and problem.M != 1:
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
    from tinygemm.kernel import gemm, twins

    if config.form == "fp16":
        return lambda: twins.fp16_gemm(x, weight, config)
    if config.form == "load-only":
        return lambda: twins.load_only(weight, config)
    return lambda: gemm.gemm(x, weight, config)


def _compile(wanted: set[tuple[LaunchConfig, bool]], workers: int) -> set[LaunchConfig]:
    """Compile in many processes, each config for weights that fill its tiles, or do not.

    returns: what is not to be used, because it does not compile, or spills
    """
    ordered = sorted(wanted, key=lambda pair: (pair[0].form, pair[0].block_n, pair[0].num_warps, pair[0].split_k))
    results = compile.in_processes(_compile_one, ordered, workers) if ordered else ()
    broken = {config: reason for (config, _), reason in zip(ordered, results, strict=False) if reason}
    for config, reason in broken.items():
        tqdm.write(f"dropped {config}: {reason}")
    return set(broken)


def _compile_one(wanted: tuple[LaunchConfig, bool]) -> str | None:
    """Compile by a launch on small operands with the divisibilities of real ones; returns why it is not to be used."""
    import torch

    from tinygemm.kernel import quant

    config, fills = wanted
    K = COMPILE_K if fills else COMPILE_K + 128
    try:
        packed = quant.random_packed(128, K, 128, device="cuda")
        x = torch.randn(config.block_m, K, dtype=torch.float16, device="cuda")
        weight = own.fp16_nk(packed) if config.form == "fp16" else packed
        spills = compile.spills_of(_bind(config, x, weight))
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler says about one candidate, the others go on
        return compile.one_line(error)
    return f"it spills {spills} registers" if spills else None
