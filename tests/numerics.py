"""Random products on a GPU for a given time, each against float64 with a bound on its error that is derived here.

A seed stands for one problem: shapes, format, layout and values of x, scales. Every product is repeated, alone and
beside work on a second stream, and must give the same bits. What one token gets alone and among eight is counted.

    python3 tests/numerics.py --seconds 120 --processes 12 --out numerics.json
    python3 tests/numerics.py --problem 4711

The bound. S = sum over k of |x_k w_k|, u = 2^-11 for float16 and 2^-8 for bfloat16 (half the spacing of their numbers
near 1), e = 2^-24 for float32, t = half the smallest positive number of the output's type. With y* the exact product,

    |y - y*| <= a S + u (|y*| + a S) + h t

The last two terms round the result, and h - 1 partial sums, where the output's numbers are subnormal and their spacing
no longer shrinks. `a` is what happens before that, and depends on the route:

* A tensor core multiplies exactly. It adds 16 products and what it has so far after cutting all 17 to the bits of the
  largest, each by less than 2 e of it (Fasi et al. 2021, doi:10.7717/peerj-cs.330): 34 e for 16 inputs.
* splitk and ring: code - zero is exact in either type. Four such steps make a chain of a block of 128, then float32
  multiplies by the scale and adds: one rounding each. A warp adds at most twice for each of its blocks, then warps are
  added, then shares of K. a = 4 * 34 e + (2 blocks of a warp + warps + shares + 4) e
* static: the weight is rounded to float16, and again to bfloat16 where x is of that type, then one chain walks all of
  K. a = 2^-11 (+ 2^-8 for bfloat16) + K / 16 * 34 e
* dequantise: the weight is computed exactly and rounded to x's type, then a library multiplies in an order of its own,
  K steps at the most. It may round shares of K to the output's type before it adds them (torch allows that): at most
  32, each once. a = 2 u + K / 16 * 34 e + 32 e, h = 33

A float16 weight that is subnormal is exact, for scale and weight are both multiples of 2^-24. Terms of second order are
a thousand times smaller; 1 % covers them. Infinities and NaN must come out as they do in float64; a result may be
infinite where the bound reaches what its type cannot hold, and on the last route where S does, for a share may.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tinygemm.digest import kernel_digest  # noqa: E402
from tinygemm.hardware import cuda_unavailable_reason, live_gpu_key  # noqa: E402
from tinygemm.kernel import launches  # noqa: E402
from tinygemm.kernel.configs import FORMS, ROUTE, STATIC, LaunchConfig, fitted, select, serves, table  # noqa: E402
from tinygemm.kernel.gemm import fused_gemm, gemm  # noqa: E402
from tinygemm.kernel.quant import PackedInt4, pack  # noqa: E402
from tinygemm.problem import GROUP_SIZES, GemmProblem  # noqa: E402
from tinygemm.provenance import software_versions  # noqa: E402

E32 = 2.0**-24
MMA = 34 * E32  # of the sum of magnitudes, for 16 inputs in a tensor core
LIBRARY_SHARES = 32
SECOND_ORDER = 1.01
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
KEPT_VIOLATIONS = 100  # in the summary; all are counted


@dataclass(frozen=True)
class Limits:
    """The largest problem that is drawn; weights: N * K."""

    M: int
    N: int
    K: int
    weights: int


REAL = Limits(M=300, N=16384, K=16384, weights=2**26)
TINY = Limits(M=20, N=48, K=512, weights=2**14)  # for the emulator


# --- a problem ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """The meaning of a seed.

    how:       selected by the library, or forced: fused, static, or any row of the GPU's table, with a split of K
              that it may never have had
    x:         what its numbers are: normal, uneven (every magnitude at once), one-hot rows, zeros, with NaN, with Inf
    magnitude: of x, 1e-6 to 5000
    layout:    of x: dense, strided (rows lie apart), offset (by one element), parts (rows at unequal distances)
    scales:    normal, signed, or subnormal (and signed)
    """

    seed: int
    M: int
    N: int
    K: int
    group_size: int
    symmetric: bool
    dtype: str
    how: str
    x: str
    magnitude: float
    layout: str
    scales: str

    @property
    def gemm(self) -> GemmProblem:
        return GemmProblem(self.M, self.N, self.K, self.group_size)


def draw(seed: int, limits: Limits = REAL) -> Problem:
    """The problem of a seed."""
    rng = random.Random(seed)

    def log_uniform(most: int) -> int:
        return int(math.exp(rng.uniform(0, math.log(most + 1))))

    M = 0 if rng.random() < 0.02 else rng.randint(1, rng.choice((min(8, limits.M), min(17, limits.M), limits.M)))
    K = 32 * log_uniform(limits.K // 32)
    if K >= 128 and rng.random() < 0.6:
        K -= K % 128  # what the ring takes
    N = log_uniform(min(limits.N, limits.weights // K))
    if N >= 32 and rng.random() < 0.6:
        N -= N % 32
    how = rng.choices(("selected", "fused", "static", "table"), (45, 10, 10, 35 if limits == REAL else 0))[0]
    if how == "table" and rng.random() < 0.6:  # what every form takes, the ring and a split of K among them
        M, K, N = rng.randint(1, 8), max(1024, K - K % 128), max(128, N - N % 128)
    x = rng.choices(("normal", "uneven", "one-hot", "zeros", "nan", "inf"), (50, 12, 12, 4, 11, 11))[0]
    # beside a planted Inf nothing else may overflow, for that could turn it into NaN
    magnitude = 10 ** rng.uniform(-6, 0 if x in ("nan", "inf") else math.log10(5000))
    return Problem(
        seed, M, N, K,
        group_size=rng.choice([size for size in GROUP_SIZES if size == -1 or K % size == 0]),
        symmetric=rng.random() < 0.5,
        dtype=rng.choice(tuple(DTYPES)),
        how=how,
        x=x, magnitude=magnitude,
        layout=rng.choices(("dense", "strided", "offset", "parts"), (50, 20, 15, 15))[0],
        scales=rng.choices(("normal", "signed", "subnormal"), (60, 20, 20))[0],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operands:
    """x [..., K] as the problem lays it out, the packed weight, and the exact weight [N, K] float64."""

    x: torch.Tensor
    w: PackedInt4
    weight: torch.Tensor


def make(problem: Problem, device: str = "cuda") -> Operands:
    """The operands of a problem; the exact weight comes from codes that nobody has packed."""
    generator = torch.Generator(device).manual_seed(problem.seed)
    N, K = problem.N, problem.K
    length = K if problem.group_size == -1 else problem.group_size
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8, device=device, generator=generator)
    shape = (K // length, N)
    zeros = torch.randint(0, 16, shape, dtype=torch.uint8, device=device, generator=generator)
    scales = _scales(problem, shape, generator)
    exact = codes.double() - (8 if problem.symmetric else zeros.double().repeat_interleave(length, 0).t())
    w = pack(codes, scales, None if problem.symmetric else zeros, problem.group_size)
    values = _values(problem, generator).to(DTYPES[problem.dtype])
    return Operands(_laid_out(values, problem), w, exact * scales.double().repeat_interleave(length, 0).t())


def _scales(problem: Problem, shape: tuple[int, int], generator) -> torch.Tensor:
    scales = 0.5 + torch.rand(shape, device=generator.device, generator=generator)
    if problem.scales == "subnormal":
        scales = torch.randint(1, 1024, shape, device=generator.device, generator=generator) * 2.0**-24
    else:
        scales = scales * problem.K**-0.5 / 4
    if problem.scales != "normal":
        scales = scales * _signs(shape, generator)
    return scales.half()


def _values(problem: Problem, generator) -> torch.Tensor:
    """The numbers of x, [M, K] float32."""
    shape, device = (problem.M, problem.K), generator.device
    normal = torch.randn(shape, device=device, generator=generator)
    if problem.x == "zeros":
        return torch.zeros(shape, device=device)
    if problem.x == "one-hot":
        at = torch.randint(problem.K, (problem.M, 1), device=device, generator=generator)
        return torch.zeros(shape, device=device).scatter_(1, at, problem.magnitude * _signs((problem.M, 1), generator))
    if problem.x == "uneven":
        exponents = -6 + (6 + math.log10(5000)) * torch.rand(shape, device=device, generator=generator)
        return normal * 10**exponents
    values = normal * problem.magnitude
    if problem.x in ("nan", "inf") and values.numel():
        places = torch.randperm(values.numel(), device=device, generator=generator)[: 1 + problem.M // 2]
        planted = math.inf * _signs(places.shape, generator) if problem.x == "inf" else math.nan
        values.view(-1)[places] = planted
    return values


def _signs(shape, generator) -> torch.Tensor:
    return torch.randint(0, 2, shape, device=generator.device, generator=generator) * 2.0 - 1.0


def _laid_out(values: torch.Tensor, problem: Problem) -> torch.Tensor:
    """The same numbers with NaN around them, where the layout leaves gaps."""
    M, K = values.shape
    if problem.layout == "strided":
        pad = (1, 8, 40)[problem.seed % 3]
        x = values.new_full((M, K + pad), torch.nan)[:, :K]
    elif problem.layout == "offset":
        x = values.new_full((M * K + 2,), torch.nan)[1 : M * K + 1].view(M, K)
    elif problem.layout == "parts" and M % 2 == 0 and M > 2:
        x = values.new_full((2, M // 2 + 1, K), torch.nan)[:, : M // 2]
    else:
        return values
    return x.copy_(values.view(x.shape))


def config_of(problem: Problem) -> LaunchConfig:
    """The launch config by which the problem is multiplied."""
    if problem.how == "static":
        return STATIC
    gpu, form = live_gpu_key() or "h200", None if problem.how == "selected" else "fused"
    if problem.how == "table":
        rows = [fitted(row["config"], problem.gemm) for row in table(gpu)[0] if row["config"].form in FORMS]
        # a limit of registers is tuned with a format, and this is another one
        served = [replace(config, max_registers=0) for config in rows if serves(config, problem.gemm)]
        rng = random.Random(problem.seed)
        return fitted(replace(rng.choice(served), split_k=rng.choice((1, 2, 3, 8))), problem.gemm)
    return select(problem.gemm, gpu, form, problem.symmetric, problem.dtype == "float16")[0]


def multiply(problem: Problem, x: torch.Tensor, w: PackedInt4) -> torch.Tensor:
    if problem.how == "fused":
        return fused_gemm(x, w)
    return gemm(x, w, None if problem.how == "selected" or problem.M == 0 else config_of(problem))


# --- the bound --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """|y - y*| <= a S + u (|y*| + a S) + tiny: see the module."""

    a: float
    u: float
    tiny: float

    def at(self, exact: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
        return SECOND_ORDER * self.a * magnitudes * (1 + self.u) + self.u * exact.abs() + self.tiny


def bound_of(config: LaunchConfig, K: int, dtype: str) -> Bound:
    """The error that a launch config may have; K inputs, x and the output of `dtype`."""
    info = torch.finfo(DTYPES[dtype])
    u, tiny = info.eps / 2, info.smallest_normal * info.eps / 2
    if config.form in ("splitk", "ring"):
        blocks = -(-K // 128) // (config.num_warps * config.split_k) + 2
        return Bound(4 * MMA + (2 * blocks + config.num_warps + config.split_k + 4) * E32, u, tiny)
    chain = math.ceil(K / 16) * MMA
    if config.form == "static":
        return Bound(2.0**-11 + (u if dtype == "bfloat16" else 0) + chain, u, tiny)
    return Bound(2 * u + chain + LIBRARY_SHARES * E32, u, (1 + LIBRARY_SHARES) * tiny)


@dataclass(frozen=True)
class Verdict:
    """Of one product: worst error over bound, how many outputs are wrong, how many may have overflowed on the way."""

    ratio: float
    wrong: int
    overflowed: int


def judge(y: torch.Tensor, exact: torch.Tensor, magnitudes: torch.Tensor, bound: Bound, any_order: bool) -> Verdict:
    """Compare y [M, N] with the exact product.

    magnitudes: S, [M, N] float64
    any_order:  shares of the sum may be rounded to the type of y, and overflow there
    """
    most = torch.finfo(y.dtype).max * (1 + bound.u)  # from here on a number rounds to infinity
    allowed = bound.at(exact, magnitudes)
    finite = exact.isfinite()
    overflow = finite & y.isinf() & (y.sign() == exact.sign()) & (exact.abs() + allowed >= most)
    on_the_way = finite & ~y.isfinite() & ~overflow & any_order & (magnitudes >= most)
    ratio = torch.where(finite & ~overflow & ~on_the_way, (y.double() - exact).abs() / allowed, 0.0)
    same = (exact.isnan() & y.isnan()) | (exact == y)
    wrong = torch.where(finite, ~(ratio <= 1), ~same)
    worst = ratio.nan_to_num(math.inf).max().item() if ratio.numel() else 0.0
    return Verdict(worst, int(wrong.sum()), int(on_the_way.sum()))


# --- what is checked of each problem ----------------------------------------------------------------------------------


def check(problem: Problem, operands: Operands, product=multiply, load=None) -> dict:
    """Everything that is checked of one problem, as a record.

    product: (problem, x, w) -> y
    load:    starts work beside what follows; None: nothing to run beside
    """
    x, w, weight = operands.x, operands.w, operands.weight
    record = {"seed": problem.seed, "faults": []}
    y = product(problem, x, w)
    expected = (*x.shape[:-1], problem.N)
    if y.shape != expected or y.dtype != x.dtype:
        return record | {"faults": [f"a {y.dtype} of {tuple(y.shape)}, expected {x.dtype} of {expected}"]}
    if problem.M == 0:
        return record | {"route": "no rows"}
    config = config_of(problem)
    rows = x.reshape(-1, problem.K).double()
    exact, magnitudes = rows @ weight.t(), rows.abs() @ weight.abs().t()
    verdict = judge(
        y.view(-1, problem.N), exact, magnitudes, bound_of(config, problem.K, problem.dtype), config.form == ROUTE
    )
    record |= {
        "route": config.form, "outputs": y.numel(), "ratio": verdict.ratio, "overflowed": verdict.overflowed,
        "split": config.split_k > 1,
    }  # fmt: skip
    if verdict.wrong:
        record["faults"].append(f"{verdict.wrong} outputs outside the bound, at worst {verdict.ratio:.3g} times it")
    record["differ"] = sum(not same_bits(product(problem, x, w), y) for _ in range(2))
    if record["differ"]:
        record["faults"].append("a repeat gives other bits")
    if load:
        load()
        record["differ_loaded"] = sum([not same_bits(product(problem, x, w), y) for _ in range(4)])
        # the library promises the same bits only while one stream is active
        if record["differ_loaded"] and config.form != ROUTE:
            record["faults"].append("a repeat beside other work gives other bits")
    if problem.M >= 8 and problem.layout == "dense" and problem.how == "selected":
        one, eight = (product(replace(problem, M=M), x[:M], w) for M in (1, 8))
        record["first_row_equal"] = same_bits(one[0], eight[0])
    return record


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


def checked(seed: int, limits: Limits, device: str, load=None) -> dict:
    """The record of a seed; what raises is a fault like any other."""
    problem = draw(seed, limits)
    try:
        record = check(problem, make(problem, device), load=load)
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        record = {"seed": seed, "faults": [f"{type(error).__name__}: {error}".splitlines()[0]]}
    if record["faults"]:
        record["problem"] = asdict(problem)
    return record


# --- a worker, and all of them ----------------------------------------------------------------------------------------


def work(first: int, step: int, seconds: float) -> list[dict]:
    """Check seeds first, first + step, ... until the time is up; the records."""
    if launches.INTERPRETED:
        from ptx import emulated

        limits, device, load = TINY, "cpu", None
        with emulated():
            return _until(time.monotonic() + seconds, first, step, limits, device, load)
    from operands import poison_allocations

    poison_allocations(SimpleNamespace(setattr=setattr))  # what a kernel does not write stays NaN
    return _until(time.monotonic() + seconds, first, step, REAL, "cuda", _load())


def _until(end, first, step, limits, device, load) -> list[dict]:
    records, seed = [], first
    while time.monotonic() < end or not records:
        records.append(checked(seed, limits, device, load))
        if any("CUDA error" in fault for fault in records[-1]["faults"]):
            break  # nothing that this process launches from here on can run
        seed += step
    return records


def _load():
    """A function that puts about a millisecond of matmuls on a second stream."""
    stream, side = torch.cuda.Stream(), torch.zeros(2048, 2048, device="cuda", dtype=torch.float16)
    out = torch.empty_like(side)

    def load() -> None:
        with torch.cuda.stream(stream):
            for _ in range(30):
                torch.mm(side, side, out=out)

    return load


def summarise(records: list[dict]) -> dict:
    """Counts and worst ratios, by route; every fault with its seed."""
    routes = {}
    for record in records:
        route = routes.setdefault(record.get("route", "failed"), {
            "problems": 0, "with_split_k": 0, "outputs": 0, "worst_ratio": 0.0, "worst_seed": None, "overflowed": 0,
            "repeats_that_differ": 0, "repeats_beside_work_that_differ": 0,
        })  # fmt: skip
        route["problems"] += 1
        route["with_split_k"] += record.get("split", False)
        route["outputs"] += record.get("outputs", 0)
        route["overflowed"] += record.get("overflowed", 0)
        route["repeats_that_differ"] += record.get("differ", 0)
        route["repeats_beside_work_that_differ"] += record.get("differ_loaded", 0)
        if record.get("ratio", 0.0) > route["worst_ratio"]:
            route["worst_ratio"], route["worst_seed"] = record["ratio"], record["seed"]
    rows = [record["first_row_equal"] for record in records if "first_row_equal" in record]
    faulty = [record for record in records if record["faults"]]
    return {
        "problems": len(records),
        "violations": len(faulty),
        "repeats_beside_work": any("differ_loaded" in record for record in records),
        "first_row_alone_and_among_eight": {"compared": len(rows), "equal": sum(rows)},
        "routes": dict(sorted(routes.items())),
        "violating": [
            {"seed": record["seed"], "faults": record["faults"], "problem": record["problem"]}
            for record in faulty[:KEPT_VIOLATIONS]
        ],
    }


def _records(job, first: int) -> list[dict]:
    """The findings of a worker; one that died is a fault of its own."""
    try:
        return job.result()
    except Exception as error:
        return [{"seed": first, "faults": [f"the process that began with this seed died: {error}"], "problem": None}]


def conditions() -> dict:
    """The day, the GPU, and what decided the results."""

    def said(*command: str) -> str | None:
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.strip()
        except (FileNotFoundError, subprocess.CalledProcessError):
            return None

    driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    versions, changes = software_versions(), said("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: Triton's interpreter",
        "driver": driver.split()[0] if driver else None,
        "software": {name: versions[name] for name in ("python", "torch", "triton", "cuda")},
        "kernels": kernel_digest()[:12],
        "commit": said("git", "rev-parse", "--short=7", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def main(arguments: list[str] | None = None) -> int:
    """Check until the time is up; returns 0 where no problem violates anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="how long problems are drawn")
    parser.add_argument("--processes", type=int, default=min(12, os.cpu_count() or 1), help="that draw and compile")
    parser.add_argument("--seed", type=int, default=0, help="the first problem; process i starts i behind it")
    parser.add_argument("--problem", type=int, help="check the problem of this seed only, and print its record")
    parser.add_argument("--out", type=Path, help="also write the summary to this JSON file")
    options = parser.parse_args(arguments)
    if not launches.INTERPRETED and (reason := cuda_unavailable_reason()):
        parser.error(f"needs a CUDA GPU ({reason}), or TRITON_INTERPRET=1 for tiny problems in the emulator")
    if options.processes < 1 or options.seconds < 0:
        parser.error("--processes must be at least 1 and --seconds at least 0")
    if options.problem is not None:
        record = work(options.problem, 1, 0)[0]
        print(json.dumps({"problem": asdict(draw(options.problem, TINY if launches.INTERPRETED else REAL))} | record))
        return 1 if record["faults"] else 0
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        jobs = [
            pool.submit(work, options.seed + index, options.processes, options.seconds)
            for index in range(options.processes)
        ]
        records = [record for index, job in enumerate(jobs) for record in _records(job, options.seed + index)]
    summary = conditions() | {
        "seconds": options.seconds, "processes": options.processes, "first_seed": options.seed,
    } | summarise(records)  # fmt: skip
    text = json.dumps(summary, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
