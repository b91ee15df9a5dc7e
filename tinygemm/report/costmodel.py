"""A latency model of every backend: a few physical terms, fitted to a recorded run, that predict what was not timed.

One call takes

    T = start + token · M + (T_serial^p + T_mem^p + T_work^p)^(1/p)

    T_serial = serial · K walked by one program            a chain of loads and multiplications, however wide the GPU
    T_mem    = bytes / (efficiency · usable bandwidth)     DRAM traffic
    T_work   = (weight + tile · tiles of M) · K · N · tail / SMs      instructions: dequantisation, multiplication
    tail     = rounds of programs over the SMs / their mean, where all programs are cut alike; otherwise 1

With p = 1 the three add up, with a large p the longest hides the others; p is fitted like the rest. From Python a
call takes (host^8 + (T + gap)^8)^(1/8): the host or the device, whichever is slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from tinygemm.hardware import GPUS, GpuSpec
from tinygemm.report.tables import NO_PRODUCT, SHAPE, copy_bandwidth_gb_s

BACKENDS = (
    "fp16-cublas", "fp16-triton", "int4", "int4-static", "int4-load-only", "aten-int4mm", "dequant-fp16", "int4-serial",
    "gemlite", "marlin", "bitsandbytes-nf4",
)  # fmt: skip
MAX_M = 16  # beyond, products are prefill: arithmetic counts, which the terms do not describe
MIN_SHAPES = 4  # fewer cannot tell the terms apart
FOLDS = 10
COVERED = 0.9  # share of left-out cases that the band of a prediction covers
ECC_SHARE = 0.125  # of the bandwidth, where ECC bits lie in the DRAM itself
SHARPNESS = 8  # of the corner between host-bound and device-bound
ROBUST = 0.05  # log latency: residuals beyond 5 % count linearly
TRUST = 0.02  # weight of a prior, in log latency per standard deviation: it decides only what the run leaves open


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
    efficiency: float = term("1", "share of the usable DRAM bandwidth", 0.85, 0.2, 0.15, 0.95)
    weight_ps: float = term("ps", "of one SM per weight", 5, 2, 1e-2, 3e3)
    tile_ps: float = term("ps", "of one SM per weight and tile of M", 5, 2, 1e-2, 3e3)
    overlap: float = term("1", "exponent p: 1 adds the terms up, 8 lets the longest hide the rest", 2, 0.7, 1, 8)
    l2_share: float = term("1", "share of L2 that keeps a dequantised weight until it is read", 0.5, 0.7, 0.05, 4)
    host_us: float = term("µs", "of the host per call from Python", 15, 1, 1, 500)
    gap_us: float = term("µs", "between two calls from Python, beside the device time", 2, 1, 0.05, 30)


DEVICE = tuple(f.name for f in fields(Terms) if f.name not in ("host_us", "gap_us"))
HOST = ("host_us", "gap_us")
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


@dataclass(frozen=True)
class CostModel:
    """What `fit` returns.

    spec:         the GPU of the run            run_id: the run, or ""
    clock_mhz:    its SM clock while timing
    backends:     name -> Fitted
    observations: what was measured, one row per backend, M, K, N and launch: latency_us
    run:          the run or table itself, from which intervals of measured cases are taken
    """

    spec: GpuSpec
    run_id: str
    clock_mhz: float
    backends: dict[str, Fitted]
    observations: pd.DataFrame
    run: object = field(repr=False, default=None)


def fit(run, spec: GpuSpec | None = None, backends=BACKENDS) -> CostModel:
    """Fit the terms of every backend to a recorded run.

    run:     runs.Run, or a table of its cases with latency_us_p50
    spec:    the GPU that was measured; None: the run says so
    raises:  ValueError where no backend was timed at four shapes or more with a cold L2
    """
    spec = spec or spec_of(run)
    rows = observations(run)
    found = {name: _fit_backend(group, spec) for name, group in rows.groupby("backend") if name in backends}
    found = {name: found[name] for name in backends if found.get(name)}
    if not found:
        raise ValueError(f"no backend was timed at {MIN_SHAPES} shapes with a cold L2 and M of 1 to {MAX_M}: no model")
    fitted = {name: _with_spread(rows[rows["backend"] == name], fit_, spec) for name, fit_ in found.items()}
    clock = float(rows["sm_clock_mhz"].median()) if rows["sm_clock_mhz"].notna().any() else float(spec.boost_clock_mhz)
    return CostModel(spec, getattr(run, "run_id", ""), clock, fitted, rows, run)


def leave_one_out(run, spec: GpuSpec | None = None, backends=BACKENDS) -> pd.DataFrame:
    """Predict every case from a model that never saw its (K, N): the honest error of the model.

    returns: backend, launch, M, K, N, measured_us, predicted_us, error (predicted / measured - 1)
    """
    spec = spec or spec_of(run)
    rows = observations(run)
    parts = []
    for name in backends:
        group = rows[rows["backend"] == name]
        if whole := _fit_backend(group, spec):
            shapes = list(group.groupby(["K", "N"]).groups)
            parts.append(_left_out(group, whole, spec, [[shape] for shape in shapes]))
    columns = ["backend", "launch", *SHAPE, "measured_us", "predicted_us", "error"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def observations(run) -> pd.DataFrame:
    """The cases that the model is about: cold L2, random operands, groups of 128 or no groups, M of 1 to 16.

    returns: backend, M, K, N, launch, latency_us (median), bits_per_weight, block_m, block_n, split_k, sm_clock_mhz
    """
    cases = run if isinstance(run, pd.DataFrame) else run.cases
    if "latency_us_p50" not in cases:
        cases = cases.assign(latency_us_p50=cases["case_id"].map(run.samples.groupby("case_id")["latency_us"].median()))
    keep = (cases["status"] == "ok") & (cases["l2_state"] == "cold") & cases["launch"].isin(["graph", "eager"])
    keep &= cases["M"].between(1, MAX_M) & cases["group_size"].isin([0, 128]) & ~cases["backend"].isin(NO_PRODUCT)
    if "operands" in cases:
        keep &= cases["operands"] == "random"
    rows = cases[keep].dropna(subset=["latency_us_p50"]).rename(columns={"latency_us_p50": "latency_us"})
    values = ["latency_us", "bits_per_weight", "block_m", "block_n", "split_k", "sm_clock_mhz"]
    return rows.groupby(["backend", *SHAPE, "launch"], as_index=False, sort=False)[values].median()


def device_us(fitted: Fitted, M, K, N, bits, spec: GpuSpec) -> np.ndarray:
    """Predicted device time of one call, without the host; M, K, N, bits may be arrays."""
    parts = parts_us(fitted, M, K, N, bits, spec)
    return parts["start"] + parts["token"] + _together(fitted.terms.overlap, parts)


def parts_us(fitted: Fitted, M, K, N, bits, spec: GpuSpec) -> dict[str, np.ndarray]:
    """The terms of a call in us: start, token, serial, memory, work."""
    terms, (M, K, N, bits) = fitted.terms, (np.asarray(value, dtype=float) for value in (M, K, N, bits))
    moved = K * N * bits / 8 + 2 * M * (K + N)
    if fitted.backend == "dequant-fp16":  # the FP16 weight is written, and read again as far as L2 does not hold it
        fp16 = 2 * K * N
        moved = moved + fp16 + fp16 * fp16 / (fp16 + terms.l2_share * spec.l2_bytes)
    tiles = np.ceil(M / fitted.block_m) if fitted.block_m else M / 8
    tail, walked = 1.0, K
    if fitted.cut:
        block_n, split_k = fitted.cut
        programs, walked = np.ceil(N / block_n) * split_k, K / split_k
        tail = np.ceil(programs / spec.sm_count) * spec.sm_count / programs
    return {
        "start": terms.start_us + 0 * M,
        "token": terms.token_us * M,
        "serial": terms.serial_ns * 1e-3 * walked,
        "memory": moved / (terms.efficiency * usable_gb_s(spec) * 1e3),
        "work": (terms.weight_ps + terms.tile_ps * tiles) * 1e-6 * K * N * tail / spec.sm_count,
    }


def eager_us(terms: Terms, device) -> np.ndarray:
    """Time of one call launched from Python, from its device time."""
    return (terms.host_us**SHARPNESS + (np.asarray(device) + terms.gap_us) ** SHARPNESS) ** (1 / SHARPNESS)


def usable_gb_s(spec: GpuSpec) -> float:
    """Published DRAM bandwidth less what ECC takes of it."""
    return spec.dram_gb_s * (1 - ECC_SHARE * spec.inline_ecc)


def spec_of(run) -> GpuSpec:
    """The published figures of a run's GPU; where it has none, what the run itself recorded of it."""
    gpu = getattr(run, "gpu", None)
    if gpu is None:
        raise ValueError("a table does not say which GPU it is of: pass its GpuSpec")
    if gpu["key"] in GPUS:
        return GPUS[gpu["key"]]
    copies = run.cases[run.cases["backend"] == "copy"]
    seconds = copies["case_id"].map(run.samples.groupby("case_id")["latency_us"].median()) * 1e-6
    bandwidth = copy_bandwidth_gb_s(copies.assign(achieved_gb_s=copies["bytes_min"] / seconds / 1e9))
    if not np.isfinite(bandwidth):
        raise ValueError(f"{gpu['name']} has no published figures here, and the run timed no copy to go by")
    major, minor = (int(part) for part in gpu["compute_capability"].split("."))
    clock = gpu["max_sm_clock_mhz"] or 1500
    return GpuSpec(gpu["key"], gpu["name"], (major, minor), gpu["sm_count"], bandwidth, float("nan"), gpu["l2_bytes"],
                   100 * 1024, 48, clock, False, "recorded by the run; bandwidth: its copy")  # fmt: skip


def terms_table(model: CostModel) -> pd.DataFrame:
    """Every fitted number: backend, term, value, unit, meaning; terms that a backend does not have are left out."""
    rows = []
    for name, fitted in model.backends.items():
        for term_ in fields(Terms):
            if term_.name == "l2_share" and name != "dequant-fp16" or term_.name in HOST and "eager" not in fitted.spread:
                continue
            value = getattr(fitted.terms, term_.name)
            rows.append((name, term_.name, value, META[term_.name]["unit"], META[term_.name]["meaning"]))
    return pd.DataFrame(rows, columns=["backend", "term", "value", "unit", "meaning"])


def _together(overlap, parts) -> np.ndarray:
    """The p-norm of the three terms that may overlap, scaled by the longest, so that no power overflows."""
    three = np.stack(np.broadcast_arrays(parts["serial"], parts["memory"], parts["work"]))
    longest = three.max(axis=0)
    return longest * ((three / longest) ** overlap).sum(axis=0) ** (1 / overlap)


def _fit_backend(rows: pd.DataFrame, spec: GpuSpec) -> Fitted | None:
    """The terms of one backend's rows, from several starting points; None where there are too few shapes."""
    graph = rows[rows["launch"] == "graph"]
    n_shapes = len(graph[["K", "N"]].drop_duplicates())
    if n_shapes < MIN_SHAPES:
        return None
    block_m, cut = graph["block_m"].min(), graph[["block_n", "split_k"]].drop_duplicates()
    cut = tuple(int(value) for value in cut.iloc[0]) if len(cut) == 1 and cut.notna().all(axis=None) else None
    block_m = int(block_m) if np.isfinite(block_m) else 0
    empty = Fitted(rows["backend"].iloc[0], Terms(), float(graph["bits_per_weight"].median()), block_m, cut, n_shapes, {})
    starts = [
        replace(empty, terms=replace(empty.terms, serial_ns=serial, weight_ps=work))
        for serial in (0.3, 5.0)
        for work in (3.0, 60.0)
    ]
    best = min((_fit_device(graph, start, spec) for start in starts), key=lambda pair: pair[1])[0]
    return _fit_host(rows, best, spec)


def _fit_device(graph: pd.DataFrame, start: Fitted, spec: GpuSpec) -> tuple[Fitted, float]:
    names = [name for name in DEVICE if name != "l2_share" or start.backend == "dequant-fp16"]
    columns = [graph[name].to_numpy(float) for name in (*SHAPE, "bits_per_weight")]
    measured = np.log(graph["latency_us"].to_numpy(float))

    def residuals(values):
        here = replace(start, terms=_with(start.terms, names, values))
        return np.log(device_us(here, *columns, spec)) - measured

    return _least_squares(residuals, start, names)


def _fit_host(rows: pd.DataFrame, fitted: Fitted, spec: GpuSpec) -> Fitted:
    """Add host and gap, from the measured device time of the same product where there is one, else from the model's."""
    eager = rows[rows["launch"] == "eager"]
    if eager.empty:
        return fitted
    timed = rows.loc[rows["launch"] == "graph", [*SHAPE, "latency_us"]]
    beside = eager.merge(timed, on=SHAPE, how="left", suffixes=("", "_graph"), validate="one_to_one")
    modelled = device_us(fitted, *(beside[name] for name in (*SHAPE, "bits_per_weight")), spec)
    device = beside["latency_us_graph"].fillna(pd.Series(modelled)).to_numpy(float)
    measured = np.log(eager["latency_us"].to_numpy(float))

    def residuals(values):
        return np.log(eager_us(_with(fitted.terms, HOST, values), device)) - measured

    start = replace(fitted, terms=replace(fitted.terms, host_us=float(np.exp(measured.min()))))
    return _least_squares(residuals, start, HOST)[0]


def _least_squares(residuals, start: Fitted, names) -> tuple[Fitted, float]:
    """Fit logarithms of the named terms: robust, bounded, and drawn to their priors where the data are silent."""
    prior, low, high = (np.log([META[name][key] for name in names]) for key in ("prior", "low", "high"))
    sigma = np.array([META[name]["sigma"] for name in names])
    first = np.clip(np.log([getattr(start.terms, name) for name in names]), low + 1e-3, high - 1e-3)
    solution = least_squares(
        lambda values: np.concatenate([residuals(values), TRUST * (values - prior) / sigma]),
        first, bounds=(low, high), loss="soft_l1", f_scale=ROBUST, x_scale=0.3, xtol=1e-5, ftol=1e-6, max_nfev=200,
    )  # fmt: skip
    return replace(start, terms=_with(start.terms, names, solution.x)), float(solution.cost)


def _with(terms: Terms, names, logarithms) -> Terms:
    return replace(terms, **dict(zip(names, np.exp(logarithms).tolist(), strict=True)))


def _with_spread(rows: pd.DataFrame, fitted: Fitted, spec: GpuSpec) -> Fitted:
    """Add what the model is off by at shapes it was not fitted to; with many shapes, a tenth is left out at a time."""
    shapes = sorted(rows.groupby(["K", "N"]).groups)
    left = _left_out(rows, fitted, spec, [shapes[i::FOLDS] for i in range(min(FOLDS, len(shapes)))])
    ends = [(1 - COVERED) / 2, (1 + COVERED) / 2]
    ratio = (left["measured_us"] / left["predicted_us"]).groupby(left["launch"])
    spread = {launch: tuple(np.quantile(values, ends).tolist()) for launch, values in ratio}
    return replace(fitted, spread={launch: (min(low, 1.0), max(high, 1.0)) for launch, (low, high) in spread.items()})


def _left_out(rows: pd.DataFrame, whole: Fitted, spec: GpuSpec, folds) -> pd.DataFrame:
    """Predictions for the shapes of each fold by a fit without them, started at the fit with them."""
    key = pd.MultiIndex.from_frame(rows[["K", "N"]])
    parts = []
    for shapes in folds:
        out = key.isin(shapes)
        kept, tested = rows[~out], rows[out]
        fitted = _fit_device(kept[kept["launch"] == "graph"], whole, spec)[0]
        fitted = _fit_host(kept, fitted, spec)
        predicted = device_us(fitted, *(tested[name] for name in (*SHAPE, "bits_per_weight")), spec)
        predicted = np.where(tested["launch"] == "eager", eager_us(fitted.terms, predicted), predicted)
        parts.append(tested.assign(predicted_us=predicted))
    table = pd.concat(parts, ignore_index=True).rename(columns={"latency_us": "measured_us"})
    return table.assign(error=table["predicted_us"] / table["measured_us"] - 1)
