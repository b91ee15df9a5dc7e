"""Find the launch configs of a GPU: measure candidates with a cold L2, write the static table that `select` reads."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from tinygemm import models
from tinygemm.hardware import GpuSpec, gpu_spec
from tinygemm.harness import compile, ours, registry, timing, verify
from tinygemm.harness.candidates import candidates_of, for_tokens, predicted_us, variants
from tinygemm.harness.progress import Progress, Task, terms
from tinygemm.harness.suites import REGIME_K, REGIME_N
from tinygemm.harness.weights import Weights
from tinygemm.kernel.configs import (
    DEQUANTISE,
    FORMS,
    PLAIN,
    TUNED_GROUP_SIZE,
    Format,
    LaunchConfig,
    apart,
    fitted,
    read_table,
    write_table,
)
from tinygemm.kernel.launches import fills_tiles
from tinygemm.problem import GemmProblem

# what a config is tuned for: every config of these M is timed; then, for those between, only the best of them
FULL_M = (1, 8, 16)
MANY_M = (24, 32, 48, 64, 96, 128, 192, 256)  # where the fused kernel may lose to dequantising first
SCREEN_REP, FINAL_REP, FINALISTS = 3, 11, 8
PROJECTION_M = (1, 8, 16)
NEIGHBOURS = 12  # tuned weights among whose configs there is nearly always one within 10 % of the best (NOTES.md)
PROMISING = 12  # configs of a kernel, by the rough model, that are timed on a shape that is not searched in full
OTHER_FORMATS = (Format(half=False), Format(symmetric=False), Format(64), Format(32))
FORMAT_M = (1, 8)
FAR = 0.5  # as `apart` counts: a weight of the regime map that is further from all that is tuned is tuned, too
OVERLAPPING, ALONE = "overlapping", "alone"  # see places
COMPILE_K = 4096  # every candidate's block_k divides it; one block of 128 more does not fill several warps

Todo = dict[Task, list[LaunchConfig]]


def projections(known: Iterable[tuple[int, int]]) -> tuple[GemmProblem, ...]:
    """Problems of the models' projections, uncut and cut by 2, 4 and 8 GPUs, whose weight (K, N) is not yet known."""
    known = set(known)
    shapes = [(K, N) for K, N, size in models.decode_shapes() if size == TUNED_GROUP_SIZE]
    return tuple(GemmProblem(M, N, K) for K, N in shapes if (K, N) not in known for M in PROJECTION_M)


def of_model(model: models.Model, tp: int) -> tuple[GemmProblem, ...]:
    """Problems of one model's projections, cut by `tp` GPUs, whose group size is the tuned one.

    raises: ValueError where tp does not divide the model, or no projection can be had in groups of the tuned size
    """
    layers = [layer for layer in models.projections(model, tp) if layer.group_size == TUNED_GROUP_SIZE]
    if not layers:
        raise ValueError(f"no projection of {model.key} at tp={tp} can be quantised in groups of {TUNED_GROUP_SIZE}")
    shapes = dict.fromkeys((layer.K, layer.N) for layer in layers)
    return tuple(GemmProblem(M, N, K) for K, N in shapes for M in PROJECTION_M)


def others(known: Iterable[tuple[int, int]]) -> tuple[GemmProblem, ...]:
    """Problems tuned beside the weights (K, N) searched in full: the models' projections, and far points."""
    in_models = projections(known := set(known))
    return (*in_models, *far_points(known | {(each.K, each.N) for each in in_models}))


def far_points(known: Iterable[tuple[int, int]]) -> tuple[GemmProblem, ...]:
    """Problems at points (K, N) of the regime map that no tuned weight is near: narrow and long ones above all."""
    known = list(known)
    chosen: list[tuple[int, int]] = []
    for K, N in itertools.product(REGIME_K, REGIME_N):
        point = GemmProblem(1, N, K)
        if min((apart(*weight, point) for weight in (*known, *chosen)), default=math.inf) > FAR:
            chosen.append((K, N))
    return tuple(GemmProblem(M, N, K) for K, N in chosen for M in PROJECTION_M)


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
    in_formats: Iterable[tuple[int, int]] = (),
):
    """Find the fastest config of every kernel on every problem, cold, and write the table.

    Every candidate is timed at FULL_M, at other M the finalists of those. The winners are raced again with other limits
    of registers, or less requested at once. Products and the FP16 reference are raced in the plain format, products
    also in OTHER_FORMATS at `in_formats` for FORMAT_M. Winners on `others` are not raced again.

    problems:   what to tune for, in the plain format: group size 128; may be none where a table is kept
    others:     more problems, at other weights, on which only what promises most is timed: the best of the rough model,
                and the finalists of the nearest of `problems`
    in_formats: weights (K, N) of `problems` that are raced in other formats
    gpu:        key of the GPU in this machine
    path:       the table to write
    about:      one line that says when and how, written into the table
    workers:    processes that compile; 0: one per core less one
    partial:    file that keeps what is measured until the table is written; a search that was stopped goes on from it,
                if it was for the same, on the same GPU, with the same code and software
    kept:       a measured table whose rows of other weights stay
    returns:    the rows written: M, K, N, latency_us, format, and the fastest LaunchConfig of each kernel
    raises:     ValueError for a kept table that was not measured
    """
    import torch

    old_rows, source, old_crossovers = read_table(kept) if kept else ([], "table", [])
    if kept and source != "table":
        raise ValueError(f"{kept.name} is {source}, its rows cannot stay beside measured ones: search every shape")
    device = torch.cuda.get_device_properties(0)
    problems, others = (sorted(some, key=lambda p: (p.K, p.N, p.M)) for some in (problems, others))
    forms, in_formats = list(forms), sorted(set(in_formats))
    computing = [form for form in forms if form != "load-only"]
    products = [form for form in forms if form in FORMS]
    asked: dict[str, list] = {"problems": [*map(str, problems)], "others": [*map(str, others)], "forms": forms}
    asked["in_formats"] = [list(shape) for shape in in_formats]
    progress = Progress.open(partial, {"gpu": gpu, **terms(), **asked})
    full, between = (tuple(p for p in problems if (p.M in FULL_M) == searched) for searched in (True, False))

    def in_full(task: Task) -> list[LaunchConfig]:
        return candidates_of(task.form, task.problem, device.multi_processor_count)

    def finalists(task: Task) -> list[LaunchConfig]:
        return for_tokens(task.problem.M, progress.finalists(task.form, (task.problem.K, task.problem.N)))

    def refined(task: Task) -> list[LaunchConfig]:
        return variants(finalists(task))

    def promising(task: Task) -> list[LaunchConfig]:
        return _promising(task, in_full(task), _neighbours(task, full, progress, old_rows), gpu_spec(gpu))

    phases = (
        (in_full, _tasks(full, forms, "full")),
        (finalists, _tasks(between, computing, "between")),
        (refined, _tasks_refined(problems, computing, products, in_formats)),
        (promising, _tasks(others, computing, "promising")),
    )
    todo: Todo = {}
    for choice, tasks in phases:
        chosen = {task: configs for task in tasks if (configs := choice(task))}
        left = {task: configs for task, configs in chosen.items() if task not in progress.ranked}
        _race_all(left, progress, device.L2_cache_size, workers)
        todo |= chosen
    best = {(t.form, t.problem, t.format): progress.ranked[t][0] for t in todo if t in progress.ranked}
    rows = [_row(problem, format, *found) for (_, problem, format), found in best.items()]
    # the row that `select` reads for more tokens, too, so what won in the end
    last = [("splitk", p, PLAIN) for p in problems if p.M == FULL_M[-1]]
    fused = {(key[1].K, key[1].N): best[key][1] for key in last if key in best}
    crossovers = _crossovers(fused, device.L2_cache_size)
    searched = {(p.K, p.N) for p in (*problems, *others)}
    rows = [row for row in old_rows if (row["K"], row["N"]) not in searched] + rows
    crossed = {(p.K, p.N) for p in problems}  # of the others none are searched
    crossovers = [row for row in old_crossovers if (row["K"], row["N"]) not in crossed] + crossovers
    write_table(path, rows, "table", about, crossovers)
    progress.close()
    return rows


def _tasks(problems, forms: Iterable[str], phase: str, formats: Iterable[Format] = (PLAIN,)) -> list[Task]:
    """Weight by weight, so that each is made once."""
    shapes = itertools.groupby(problems, key=lambda p: (p.K, p.N))
    return [
        Task(form, GemmProblem(p.M, p.N, p.K, format.group_size), format, phase)
        for of_shape in [list(group) for _, group in shapes]
        for format, p, form in itertools.product(formats, of_shape, forms)
    ]


def _tasks_refined(problems, forms: Iterable[str], products: Iterable[str], in_formats) -> list[Task]:
    """The plain format on every problem; others at the weights (K, N) of in_formats.

    forms:    whose configs won; the FP16 reference among them, for it must be tuned as the kernel it is compared with
    products: those of them that multiply by a packed weight, and so know other formats
    """
    chosen = [p for p in problems if (p.K, p.N) in in_formats and p.M in FORMAT_M]
    return _tasks(problems, forms, "refined") + _tasks(chosen, products, "refined", OTHER_FORMATS)


def _row(problem: GemmProblem, format: Format, latency_us: float, config: LaunchConfig) -> dict:
    row = {"M": problem.M, "K": problem.K, "N": problem.N, "latency_us": round(latency_us, 3)}
    return row | {"format": format, "config": config}


def _race_all(left: Todo, progress: Progress, l2_bytes: int, workers: int) -> None:
    """Compile and race what is left, weight by weight."""
    import torch

    wanted = {(c, fills_tiles(t.problem.N, t.problem.K, c), t.format) for t, configs in left.items() for c in configs}
    broken = _compile(wanted, workers)
    clock = timing.CudaClock()
    weight_of = lambda task: (task.problem.K, task.problem.N, task.format)  # noqa: E731
    count = len({weight_of(task) for task in left})
    for _, of_weight in tqdm(itertools.groupby(left, key=weight_of), desc="tune", total=count):
        weights = None
        for task in of_weight:
            configs = [config for config in left[task] if (config, task.format) not in broken]
            if not configs:
                continue
            weights = weights or Weights(_weight(task.problem, task.format), l2_bytes)
            progress.add(task, _race(task, configs, _x(task.problem, task.format), weights, clock))
        del weights
        torch.cuda.empty_cache()


def _weight(problem: GemmProblem, format: Format):
    packed = registry.operands(problem, True, "cuda", seed=0)
    return packed if format.symmetric else ours.asymmetric_weight(packed)


def _x(problem: GemmProblem, format: Format):
    x = registry.activations(problem, "cuda", seed=1)
    return x if format.half else x.bfloat16()


def _crossovers(fused: dict[tuple[int, int], LaunchConfig], l2_bytes: int) -> list[dict]:
    """From how many tokens on it is faster to dequantise first: one row per weight (K, N), with its fused config."""
    clock, rows = timing.CudaClock(), []
    for (K, N), config in fused.items():
        weights = Weights(registry.operands(GemmProblem(1, N, K), True, "cuda", seed=0), l2_bytes)
        copies = weights.copies("packed", ours.packed_weight, "cold")
        crossover = MANY_M[-1] + 1
        for M in reversed(MANY_M):
            x = registry.activations(GemmProblem(M, N, K), "cuda", seed=1)
            registry.forget_graphs()
            configs = {"fused": config, "dequantise": DEQUANTISE}
            replays = {
                name: timing.prepare([_bind(c, x, w) for w in copies], "graph", clock) for name, c in configs.items()
            }
            samples, _ = timing.interleave(replays, "graph", SCREEN_REP + 2, 1, clock)
            if statistics.median(samples["dequantise"]) > statistics.median(samples["fused"]):
                break
            crossover = M
        rows.append({"K": K, "N": N, "M": crossover})
    return rows


def _neighbours(task: Task, full, progress: Progress, old_rows: list[dict]) -> list[LaunchConfig]:
    """The configs that won nearby: the finalists of the nearest weight of this search; without one, those of the table.

    full:     problems that are searched in full
    old_rows: of the table that stays
    """
    problem = task.problem
    if full:
        nearest = min(full, key=lambda p: apart(p.K, p.N, problem))
        return progress.finalists(task.form, (nearest.K, nearest.N))
    rows = [row for row in old_rows if row["config"].form == task.form and row["format"] == PLAIN]
    near = sorted({(row["K"], row["N"]) for row in rows}, key=lambda weight: apart(*weight, problem))[:NEIGHBOURS]
    return [row["config"] for row in rows if (row["K"], row["N"]) in near]


def _promising(task: Task, configs, neighbours: list[LaunchConfig], spec: GpuSpec) -> list[LaunchConfig]:
    """Those of a problem's candidates that the rough model ranks first, and what won nearby."""
    problem = task.problem
    ranked = sorted(configs, key=lambda config: predicted_us(config, problem, spec))[:PROMISING]
    won = [fitted(config, problem) for config in neighbours]
    # not by `fits`: what won nearby may leave some SMs idle here, and is tried all the same
    won = [config for config in for_tokens(problem.M, won) if problem.N % config.block_n == 0]
    return list(dict.fromkeys([*ranked, *won]))


def _race(task: Task, configs, x, weights: Weights, clock) -> list[tuple[float, LaunchConfig]]:
    """The finalists of a task, the best first: all screened, the best few interleaved in all `places`.

    Wrong ones never start. The latency beside each is that of overlapping calls.
    """
    import torch

    from tinygemm.kernel import quant

    reference = quant.reference_gemm(x, weights.packed)
    copies = weights.copies(*_stored(task.form), "cold")
    tolerance = verify.FP16_TOLERANCE if task.format.half else verify.BF16_TOLERANCE

    def replay(config):
        registry.forget_graphs()
        return timing.prepare([_bind(config, x, w) for w in copies], "graph", clock)

    def median(samples):
        return sorted(samples)[len(samples) // 2]

    screened = []
    for config in dict.fromkeys(configs):
        if task.form != "load-only":
            try:
                with verify.poisoned_memory():
                    out = _bind(config, x, copies[0])()
                verify.compare(out, reference, tolerance)
            except verify.MismatchError as error:
                tqdm.write(f"dropped {config} on {task.problem}: {error}")
                continue
        ready = replay(config)
        _, *durations = clock.time_round([ready.run] * (1 + SCREEN_REP), queued=True)
        screened.append((median(durations) / ready.n_calls, config))
    screened.sort(key=lambda pair: pair[0])
    finalists = [config for _, config in screened[:FINALISTS]]
    if not finalists:
        raise RuntimeError(f"no config of kernel {task.form} computes {task.problem}")
    registry.forget_graphs()
    in_place = places(clock)
    replays = {
        (config, place): timing.prepare([wrapped(_bind(config, x, w)) for w in copies], "graph", clock)
        for config in finalists
        for place, wrapped in in_place.items()
    }
    samples, _ = timing.interleave(replays, "graph", FINAL_REP, 2, clock)
    del replays
    torch.cuda.synchronize()
    total = {config: sum(median(samples[config, place]) for place in in_place) for config in finalists}
    return [(median(samples[config, OVERLAPPING]), config) for config in sorted(finalists, key=total.__getitem__)]


def places(clock) -> dict[str, Callable]:
    """The places where a config is judged, each a function from a call to what is captured there.

    OVERLAPPING: calls one after another, each requesting its weights while the one before runs; in a model the kernels
    around a product allow that if they were compiled so. ALONE: a kernel that knows no dependent launch lies between.
    A decode step is between the two, so the sum of both times counts. Without dependent launch they are one place.
    """
    from tinygemm.kernel import reference

    def alone(call):
        def both():
            reference.empty_kernel()
            call()

        return both

    return {OVERLAPPING: lambda call: call} | ({ALONE: alone} if clock.can_prime() else {})


def _stored(form: str) -> tuple[str, Callable]:
    return ("fp16-nk", ours.fp16_nk) if form == "fp16" else ("packed", ours.packed_weight)


def _bind(config: LaunchConfig, x, weight):
    from tinygemm.kernel import gemm, reference

    if config.form == "fp16":
        return lambda: reference.fp16_gemm(x, weight, config)
    if config.form == "load-only":
        return lambda: reference.load_only(weight, config)
    return lambda: gemm.gemm(x, weight, config)


def _compile(wanted: set[tuple[LaunchConfig, bool, Format]], workers: int) -> set[tuple[LaunchConfig, Format]]:
    """Compile in many processes: each config for weights that fill its tiles, or do not, in a format.

    returns: what is not to be used, because it does not compile, or spills
    """
    ordered = sorted(wanted, key=lambda job: (job[0].form, job[0].block_n, job[0].num_warps, job[0].split_k))
    results = compile.in_processes(_compile_one, ordered, workers) if ordered else ()
    broken = {(config, format): reason for (config, _, format), reason in zip(ordered, results, strict=False) if reason}
    for (config, format), reason in broken.items():
        tqdm.write(f"dropped {config} {'' if format == PLAIN else format}: {reason}")
    return set(broken)


def _compile_one(wanted: tuple[LaunchConfig, bool, Format]) -> str | None:
    """Compile by a launch on small operands with the divisibilities of real ones; returns why it is not to be used."""
    import torch

    from tinygemm.kernel import quant

    config, fills, format = wanted
    K = COMPILE_K if fills else COMPILE_K + 128
    try:
        packed = quant.random_packed(128, K, format.group_size, symmetric=format.symmetric, device="cuda")
        x = torch.randn(config.block_m, K, dtype=torch.float16 if format.half else torch.bfloat16, device="cuda")
        weight = ours.fp16_nk(packed) if config.form == "fp16" else packed
        spills = compile.spills_of(_bind(config, x, weight))
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler says about one candidate, the others go on
        return compile.one_line(error)
    return f"it spills {spills} registers" if spills else None
