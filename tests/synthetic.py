"""A synthetic recorded run with known answers: times follow from a few planted numbers, files are those of a real run.

The defaults resemble an H200, so that figures made from them look like the real ones; they are not measurements.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tinygemm.digest import kernel_digest
from tinygemm.problem import LAYER_OF_SHAPE, REPORT_SHAPES, STUDY_SHAPES, GemmProblem
from tinygemm.runs import SCHEMA_VERSION, Case, Counter, Run, RunWriter, Sample, case_id, load_run

COMMIT = "5e6f0c1" + "0" * 33
PRODUCTS = (
    "fp16-cublas", "fp16-triton", "dequant-fp16", "dequant-only", "int4-static", "int4-ring", "int4-splitk", "int4",
    "int4-serial", "int4-no-dequant", "int4-load-only", "aten-int4mm",
)  # fmt: skip
GUESTS = ("gemlite", "bitsandbytes-nf4", "marlin", "humming", "humming-serial")
# the experiments beside the decode cases: (shapes, m_list, backends, modes), as write_run takes them
CAUSES = (
    (*((4096, N) for N in (512, 1024, 2048, 4096, 14336)), *((K, 4096) for K in (1024, 2048, 8192, 14336))), (1,),
    ("int4-static", "int4", "int4-no-dequant", "int4-naive-dequant", "int4-no-split", "int4-more-split",
     "int4-load-only"), (("graph", "cold"), ("eager", "cold")),
)  # fmt: skip
REGIMES = (
    tuple((K, N) for K in (1024, 4096, 14336, 28672) for N in (256, 1024, 4096, 14336, 57344)), (1, 8),
    ("fp16-cublas", "fp16-triton", "int4", "int4-static", "int4-no-dequant"), (("graph", "cold"),),
)  # fmt: skip
CROSSOVER = (
    STUDY_SHAPES, (1, 2, 4, 8, 16, 32, 64, 128, 256), ("fp16-cublas", "dequant-fp16", "int4-fused", "int4"),
    (("graph", "cold"),),
)  # fmt: skip
LADDER = (
    STUDY_SHAPES, (1, 8),
    ("fp16-cublas", "int4-static", "int4-step-naive", "int4-step-lop3", "int4-step-early", "int4-splitk", "int4",
     "int4-load-only", "int4-load-only-serial"), (("graph", "cold"),),
)  # fmt: skip
GPUS = {
    "h200": {
        "key": "h200", "name": "NVIDIA H200", "compute_capability": "9.0", "sm_count": 132, "l2_bytes": 62914560,
        "memory_bytes": 150110011392, "power_limit_w": 700.0, "ecc": True, "mig": False, "max_sm_clock_mhz": 1980,
        "max_mem_clock_mhz": 3201, "clocks_locked": False, "driver": "580.159",
    },
    "a10g": {
        "key": "a10g", "name": "NVIDIA A10G", "compute_capability": "8.6", "sm_count": 80, "l2_bytes": 6291456,
        "memory_bytes": 23609475072, "power_limit_w": 300.0, "ecc": True, "mig": False, "max_sm_clock_mhz": 1710,
        "max_mem_clock_mhz": 6251, "clocks_locked": False, "driver": "580.159",
    },
}  # fmt: skip
SOFTWARE = {
    "python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0", "numpy": "2.3.5", "pandas": "3.1.1", "gemlite": None,
    "bitsandbytes": None, "cuda": "13.0", "ncu": "2025.3.1.0",
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """The planted answers.

    copy_gb_s:   copy bandwidth, 1e9 bytes/s                      empty_us:  one empty graph node
    primed_us:   less of every node after a dependent launch
    host_us:     time Python needs to launch one call             noise:     relative spread of one sample
    drift:       relative spread of a whole round, shared by all contenders of a group
    zeros:       multiplies the time where every operand is zero
    factors:     multiplies the graph-cold latency of a backend, or of (backend, K, N); the second wins
    dram, sm:    backend -> fraction of peak in the counters
    """

    copy_gb_s: float = 4280.0
    empty_us: float = 0.98
    primed_us: float = 0.3
    host_us: float = 14.0
    noise: float = 0.006
    drift: float = 0.02
    zeros: float = 0.9
    factors: dict = field(default_factory=dict)
    dram: dict = field(default_factory=lambda: {"fp16-cublas": 0.84, "int4-static": 0.29, "int4": 0.55})
    sm: dict = field(default_factory=lambda: {"fp16-cublas": 0.27, "int4-static": 0.34, "int4": 0.44})

    def latency_us(
        self, backend: str, problem: GemmProblem, launch: str = "graph", l2_state: str = "cold",
        operands: str = "random",
    ) -> float:  # fmt: skip
        """Device time of one call: the number that the median of its samples estimates."""
        fp16, int4 = (problem.bytes_min(bits) / (self.copy_gb_s * 1e3) for bits in (16, problem.int4_bits_per_weight()))
        load_only = 2.2 + int4
        formulas: dict[str, Callable[[], float]] = {
            "fp16-cublas": lambda: 4.8 + 0.95 * fp16,
            "fp16-triton": lambda: 2.4 + fp16,
            "fp16-triton-serial": lambda: 3.7 + fp16,
            "dequant-only": lambda: 2.5 + 1.1 * (fp16 + int4),
            "dequant-fp16": lambda: 7.3 + 2.05 * fp16 + 1.1 * int4,
            "int4-static": lambda: 8.2 * problem.K / 4096 + 1.5 * int4,
            "int4-ring": lambda: 1.30 * load_only,
            "int4-splitk": lambda: 1.38 * load_only,
            "int4": lambda: min(formulas["int4-fused"](), formulas["dequant-fp16"]()),
            "int4-serial": lambda: 0.6 + (1.30 if problem.M == 1 else 1.38) * load_only,
            "int4-no-dequant": lambda: 1.15 * load_only,
            "int4-load-only": lambda: load_only,
            "aten-int4mm": lambda: (3.4 + 2.0 * int4) * (0.9 + 0.1 * problem.M),
            "gemlite": lambda: 4.1 + 2.1 * int4,
            "bitsandbytes-nf4": lambda: 5.0 + 2.6 * int4,
            "int4-load-only-serial": lambda: 0.9 + load_only,
            "int4-naive-dequant": lambda: 1.55 * load_only,
            "int4-no-split": lambda: 1.30 * load_only + 4.0 * problem.K / 4096,
            "int4-more-split": lambda: 0.4 + 1.30 * load_only,
            "int4-fused": lambda: (1.30 if problem.M == 1 else 1.38) * load_only * max(1, problem.M / 16),
            "int4-bf16": lambda: 1.33 * load_only,
            "int4-asymmetric": lambda: 1.38 * load_only,
            "int4-one-row": lambda: 1.32 * load_only,
            "int4-searched": lambda: 1.27 * load_only,
            "int4-step-naive": lambda: 0.9 + 1.63 * load_only,
            "int4-step-lop3": lambda: 0.9 + 1.45 * load_only,
            "int4-step-early": lambda: 0.4 + 1.38 * load_only,
        }
        factor = self.factors.get((backend, problem.K, problem.N), self.factors.get(backend, 1.0))
        device = formulas[backend]() * factor
        device = 1.5 + {"cold": 1.0, "warm": 0.8, "hot": 0.55}[l2_state] * (device - 1.5)
        if operands == "zeros":
            device *= self.zeros
        if launch == "eager":
            device = max(device + 1.2, self.host_us * (2 if backend == "dequant-fp16" else 1))
        if launch == "do_bench":
            device += self.host_us / 4
        if launch == "primed":
            device -= self.primed_us
        return device


def write_run(
    root: Path,
    *,
    gpu: str = "h200",
    truth: Truth | None = None,
    m_list: tuple[int, ...] = (1, 2, 4, 8, 16),
    shapes: tuple[tuple[int, ...], ...] = REPORT_SHAPES,
    backends: tuple[str, ...] = PRODUCTS,
    modes: tuple[tuple[str, ...], ...] = (("graph", "cold"), ("graph", "hot"), ("eager", "cold"), ("eager", "hot")),
    n_samples: int = 30,
    counters: bool = True,
    suites: tuple[tuple, ...] = (),
    dirty: bool = False,
    minute: str = "2026-11-23T1412Z",
    seed: int = 0,
) -> Path:
    """Write a sealed run into `root/<gpu>/<run_id>/` and return that folder.

    modes:  (launch, l2_state), or (launch, l2_state, operands)
    shapes: (K, N), or (K, N, group_size); the counters are of the wide and the narrow study shape where they are
            among them
    suites: more of (shapes, m_list, backends, modes); a case that several want is timed once
    """
    truth, rng = truth or Truth(), np.random.default_rng(seed)
    run_id = f"{minute}-{COMMIT[:7]}" + ("-dirty" if dirty else "")
    parameters = {
        "m_list": list(m_list),
        "shapes": [list(shape) for shape in shapes],
        "rep": n_samples,
        "group_size": 128,
    }
    path = Path(root) / gpu / f"{run_id}.partial"
    path.mkdir(parents=True)
    header = {
        "schema_version": SCHEMA_VERSION, "run_id": run_id, "command": "tinygemm record", "parameters": parameters,
        "commit": COMMIT, "dirty": dirty, "kernel_sha256": kernel_digest(gpu), "kernel_code_sha256": kernel_digest(),
        "gpu": GPUS[gpu], "software": SOFTWARE, "started": "2026-11-23T14:12:05Z",
    }  # fmt: skip
    (path / "header.json").write_text("{}", encoding="utf-8")
    writer = RunWriter(path, header)
    _write_ideals(writer, truth, n_samples, rng)
    problems = [GemmProblem(M, N, K, *group) for K, N, *group in shapes for M in m_list]
    groups: dict[tuple, dict] = {}
    for suite_shapes, suite_m, suite_backends, suite_modes in ((shapes, m_list, backends, modes), *suites):
        wanted = [GemmProblem(M, N, K, *group) for K, N, *group in suite_shapes for M in suite_m]
        for group in ((problem, *mode) for problem in wanted for mode in suite_modes):
            groups.setdefault(group, {}).update(dict.fromkeys(suite_backends))
    for group, contenders in groups.items():
        _write_group(writer, truth, *group, backends=tuple(contenders), n_samples=n_samples, rng=rng)
    if counters:
        writer.write_counters(*_counters(truth, problems, backends))
    return writer.finish()


def write_plan(root: Path, plan, truth: Truth | None = None, absent: tuple[str, ...] = GUESTS, seed: int = 0) -> Path:
    """Write the run of a SweepPlan on an H200: every group of its suites, its counters, its own number of samples.

    absent: backends that are not installed
    """
    from tinygemm.harness.plan import groups

    truth, rng = truth or Truth(), np.random.default_rng(seed)
    run_id = f"2026-11-24T0900Z-{COMMIT[:7]}"
    path = Path(root) / "h200" / f"{run_id}.partial"
    path.mkdir(parents=True)
    header = {
        "schema_version": SCHEMA_VERSION, "run_id": run_id, "command": "tinygemm record",
        "parameters": json.loads(json.dumps(plan.parameters())), "commit": COMMIT, "dirty": False, "gpu": GPUS["h200"],
        "software": SOFTWARE, "started": "2026-11-24T09:00:05Z",
    }  # fmt: skip
    writer = RunWriter(path, header)
    for launch in dict.fromkeys(group.launch for group in groups(plan) if not group.problem):
        _write_ideals(writer, truth, 25, rng, launch)
    for group in groups(plan):
        if group.problem:
            mode, present = (
                (group.launch, group.l2_state, group.operands),
                [b for b in group.backends if b not in absent],
            )
            _write_group(writer, truth, group.problem, *mode, backends=present, n_samples=group.rep, rng=rng)
            cases = [
                _unsupported(case_id(backend, group.problem, *mode), backend, group.problem, *mode[:2])
                for backend in group.backends
                if backend in absent
            ]
            writer.append(cases, [])
    if plan.counters:
        writer.write_counters(*_counters(truth, list(plan.counter_problems), plan.counter_backends))
    return writer.finish()


def load(root: Path, **kwargs) -> Run:
    """`write_run`, then `runs.load_run`."""
    return load_run(write_run(root, **kwargs), allow_dirty=kwargs.get("dirty", False))


def _write_group(writer, truth, problem, launch, l2_state, operands="random", *, backends, n_samples, rng) -> None:
    rounds = 1 + truth.drift * rng.standard_normal(n_samples)
    cases, samples = [], []
    for backend in backends:
        identity = case_id(backend, problem, launch, l2_state, operands)
        if backend == "int4-ring" and problem.M > 8:
            cases.append(_unsupported(identity, backend, problem, launch, l2_state))
            continue
        latency = truth.latency_us(backend, problem, launch, l2_state, operands)
        times = latency * rounds * (1 + truth.noise * rng.standard_normal(n_samples))
        samples += [Sample(identity, i, round(float(t), 4)) for i, t in enumerate(times)]
        cases.append(replace(_case(identity, backend, problem, launch, l2_state, n_samples), operands=operands))
    writer.append(cases, samples)


def _unsupported(identity, backend, problem, launch, l2_state) -> Case:
    return Case(
        identity, backend, "", "", problem.M, problem.N, problem.K, problem.group_size, "float16",
        problem.int4_bits_per_weight(), l2_state, launch, "unsupported", "the ring serves up to 8 tokens",
    )  # fmt: skip


def _case(identity, backend, problem, launch, l2_state, n_samples) -> Case:
    layer = LAYER_OF_SHAPE.get((problem.K, problem.N))
    quantised = not backend.startswith("fp16")
    bits = problem.int4_bits_per_weight() if quantised else 16.0
    measured = {"sm_clock_mhz": 1980.0, "mem_clock_mhz": 3201.0, "power_w": 412.0, "temp_c": 46.0}
    if backend == "dequant-only":  # INT4 read, FP16 written, no activations
        measured |= {"bytes_min": round(problem.N * problem.K * (bits + 16) / 8)}
    else:
        rms = {"aten-int4mm": 2.6e-3, "fp16-cublas": 2.6e-4, "fp16-triton": 2.6e-4}.get(backend, 4.0e-4)
        errors = (rms * (4 + np.log2(problem.N) / 8), rms)
        measured |= {"bytes_min": problem.bytes_min(bits), "flops": problem.flops}
        if backend != "int4-load-only":  # computes no product to compare
            measured |= dict(zip(("max_err", "rms_err"), errors, strict=True))
    config = {}
    if backend.startswith("int4"):
        form = {"int4-static": "static", "int4-splitk": "splitk"}.get(backend, "ring")
        config = {"form": form, "block_m": 16, "block_n": 128, "block_k": 128, "num_warps": 2, "num_stages": 3}
        split_k = {"int4-static": 1, "int4-no-split": 1, "int4-more-split": 8}.get(backend, 4)
        config |= {"split_k": split_k, "config_source": "table"}
    return Case(
        identity, backend, layer.model if layer else "", layer.layer if layer else "",
        problem.M, problem.N, problem.K, problem.group_size if quantised else 0,
        "bfloat16" if backend == "aten-int4mm" else "float16", bits, l2_state, launch, "ok",
        n_calls=64, n_copies=24 if l2_state == "cold" else 1, n_samples=n_samples, **config, **measured,
    )  # fmt: skip


def _write_ideals(writer, truth, n_samples, rng, launch="graph") -> None:
    """The copy bandwidth and the empty graph node: cases of their own, with no product."""
    n_bytes = 2 * 2**30
    saved = truth.primed_us if launch == "primed" else 0.0
    copied_us, empty_us = (time - saved for time in (n_bytes / (truth.copy_gb_s * 1e3), truth.empty_us))
    planted = {"copy": ("1GiB", n_bytes, copied_us), "empty-node": ("empty", 0, empty_us)}
    for backend, (word, bytes_min, latency) in planted.items():
        identity = case_id(backend, word, launch, "cold")
        case = Case(
            identity, backend, "", "", 0, 0, 0, 0, "float16", 0.0, "cold", launch, "ok",
            n_calls=64, n_copies=1, n_samples=n_samples, bytes_min=bytes_min,
        )  # fmt: skip
        times = latency * (1 + 0.002 * rng.standard_normal(n_samples))
        writer.append([case], [Sample(identity, i, round(float(t), 5)) for i, t in enumerate(times)])


def _counters(truth, problems, backends, calls: int = 2) -> tuple[list[Counter], dict[str, str]]:
    """Counters at the wide and the narrow shape; FP16 at the narrow one is two kernels per call, as cuBLAS does it."""
    rows = []
    for problem in problems:
        if (problem.K, problem.N) not in (STUDY_SHAPES[0], STUDY_SHAPES[2]):
            continue
        for backend in (b for b in backends if b in truth.dram):
            identity = case_id(backend, problem, "graph", "cold")
            bits = 16 if backend.startswith("fp16") else problem.int4_bits_per_weight()
            two = backend == "fp16-cublas" and STUDY_SHAPES[0] == (problem.K, problem.N)
            kernels = {"gemm": 0.8, "splitKreduce": 0.2} if two else {f"{backend}_kernel": 1.0}
            latency = truth.latency_us(backend, problem)
            launches = [(call, name, share) for call in range(calls) for name, share in kernels.items()]
            for launch, (call, name, share) in enumerate(launches):
                values = {
                    "gpu__time_duration.sum": (1000 * share * latency, "nsecond"),
                    "dram__bytes_read.sum": (share * problem.bytes_min(bits), "byte"),
                    "dram__throughput.avg.pct_of_peak_sustained_elapsed": (100 * truth.dram[backend], "%"),
                    "sm__throughput.avg.pct_of_peak_sustained_elapsed": (100 * truth.sm[backend], "%"),
                    "sm__issue_active.avg.pct_of_peak_sustained_elapsed": (90 * truth.sm[backend], "%"),
                    "sm__warps_active.avg.pct_of_peak_sustained_active": (35.0, "%"),
                }
                rows += [Counter(identity, launch, call, name, metric, *v) for metric, v in values.items()]
    return rows, {"synthetic.csv": "no profiler wrote this\n"}
