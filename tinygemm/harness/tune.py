"""Find the launch configs of a GPU: measure candidates with a cold L2, write the static table that `select` reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from tinygemm.hardware import GpuSpec
from tinygemm.harness import backends, compile, own, timing, verify
from tinygemm.harness.progress import Progress, terms
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


def tune(
    problems: Iterable[GemmProblem],
    forms: Iterable[str],
    gpu: str,
    path: Path,
    about: str,
    workers: int = 0,
    partial: Path | None = None,
):
    """Measure every candidate of every form on every problem, cold, and write the table.

    problems: what to tune for; group size 128
    gpu:      key of the GPU in this machine
    path:     the table to write
    about:    one line that says when and how, written into the table
    workers:  processes that compile; 0: one per core less one
    partial:  file that keeps what is measured until the table is written; a search that was stopped goes on from it,
              if it was of the same GPU, code and software
    returns:  the rows written: M, K, N, latency_us and the fastest LaunchConfig of each form
    """
    import torch

    device = torch.cuda.get_device_properties(0)
    problems = sorted(problems, key=lambda p: (p.K, p.N, FULL_M.index(p.M) if p.M in FULL_M else 99, p.M))
    todo = {(form, p): candidates_of(form, p, device.multi_processor_count) for p in problems for form in forms}
    progress = Progress.open(partial, {"gpu": gpu, **terms()})
    left = {pair: configs for pair, configs in todo.items() if configs and pair not in progress.ranked}
    broken = _compile({config for configs in left.values() for config in configs}, workers)
    clock = timing.CudaClock()
    shapes = itertools.groupby(problems, key=lambda p: (p.K, p.N))
    for shape, of_shape in tqdm(shapes, desc="tune", total=len({(p.K, p.N) for p in problems})):
        weights = None
        for problem, form in itertools.product(of_shape, forms):
            if (form, problem) not in left:
                continue
            weights = weights or Weights(backends.operands(problem, True, "cuda", seed=0), device.L2_cache_size)
            x = backends.activations(problem, "cuda", seed=1)
            # between the token counts that are searched in full, only the best of these
            configs = left[form, problem] if problem.M in FULL_M else progress.finalists(form, shape)
            configs = [config for config in configs if config not in broken]
            progress.add(form, problem, _race(form, configs, x, weights, problem, clock))
        del weights
        torch.cuda.empty_cache()
    best = [(problem, *progress.ranked[form, problem][0]) for form, problem in todo if todo[form, problem]]
    rows = [{"M": p.M, "K": p.K, "N": p.N, "latency_us": round(us, 3), "config": config} for p, us, config in best]
    write_table(path, rows, "table", about)
    progress.close()
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
    """Compile in many processes; returns what does not compile, or spills."""
    ordered = sorted(configs, key=lambda c: (c.form, c.block_n, c.num_warps, c.split_k))
    results = compile.in_processes(_compile_one, ordered, workers) if ordered else ()
    broken = {config: reason for config, reason in zip(ordered, results, strict=False) if reason}
    for config, reason in broken.items():
        tqdm.write(f"dropped {config}: {reason}")
    return set(broken)


def _compile_one(config: LaunchConfig) -> str | None:
    """Compile by a launch on small operands with the divisibilities of real ones; returns why it is not to be used."""
    import torch

    from tinygemm.kernel import quant

    try:
        packed = quant.random_packed(128, COMPILE_K, 128, device="cuda")
        x = torch.randn(config.block_m, COMPILE_K, dtype=torch.float16, device="cuda")
        weight = own.fp16_nk(packed) if config.form == "fp16" else packed
        spills = compile.spills_of(_bind(config, x, weight))
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler says about one candidate, the others go on
        return compile.one_line(error)
    return f"it spills {spills} registers" if spills else None
