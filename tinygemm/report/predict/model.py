"""The latency model: fitted to a recorded run, checked at shapes left out, and asked about what was not timed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from tinygemm.hardware import GPUS, GpuSpec
from tinygemm.report.base.cache import remembered
from tinygemm.report.base.host import steady
from tinygemm.report.base.tables import LATENCY, NO_PRODUCT, SHAPE, copy_bandwidth_gb_s, summarize
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.predict.terms import DEVICE, HOST, META, Fitted, Terms, device_us, eager_us, usable_gb_s

BACKENDS = (
    "fp16-cublas", "fp16-triton", "int4", "int4-static", "int4-load-only", "aten-int4mm", "dequant-fp16", "int4-serial",
    "gemlite", "marlin", "humming", "humming-serial", "bitsandbytes-nf4",
)  # fmt: skip
MAX_M = 16  # beyond, products are prefill: arithmetic counts, which the terms do not describe
MIN_SHAPES = 4  # fewer cannot tell the terms apart
FOLDS = 10
COVERED = 0.9  # share of left-out cases that the band of a prediction covers
LAUNCHES = ("graph", "eager")
COLUMNS = [*SHAPE, "backend", "launch", "latency_us", "low_us", "high_us", "kind"]
MEASURED, PREDICTED = "measured", "predicted"
ROBUST = 0.05  # log latency: residuals beyond 5 % count linearly
TRUST = 0.05  # one standard deviation of a prior weighs as much as one case that is off by 5 %


@dataclass(frozen=True)
class CostModel:
    """The result of `fit`.

    spec:         the GPU of the run            run_id: the run, or ""
    clock_mhz:    its SM clock while timing
    overlap_us:   what a kernel gains by starting before the one ahead of it has ended; 0 where that was not timed
    backends:     name -> Fitted
    observations: what was measured, one row per backend, M, K, N and launch: latency_us
    run:          the run or table itself, from which intervals of measured cases are taken
    """

    spec: GpuSpec
    run_id: str
    clock_mhz: float
    overlap_us: float
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
    fitted = _fit_backends(rows[rows["backend"].isin(backends)], spec, _reach(run, rows, spec))
    if not fitted:
        raise ValueError(f"no backend was timed at {MIN_SHAPES} shapes with a cold L2 and M of 1 to {MAX_M}: no model")
    fitted = {name: fitted[name] for name in backends if name in fitted}
    clock = float(rows["sm_clock_mhz"].median()) if rows["sm_clock_mhz"].notna().any() else float(spec.boost_clock_mhz)
    return CostModel(spec, getattr(run, "run_id", ""), clock, _overlap_us(rows), fitted, rows, run)


def predict(model: CostModel, problems, spec: GpuSpec | None = None, backends=None, launches=LAUNCHES) -> pd.DataFrame:
    """The latency of problems: measured where the run has the very case, else predicted with its band.

    problems: GemmProblems, M of 1 to 16
    spec:     the GPU; None: the one of the run. Another GPU's band is widened by every assumption of `extrapolate`
    backends: names; None: all of the model
    returns:  M, K, N, backend, launch, latency_us, low_us, high_us, kind; low and high are the 95 % interval of a
              measured median, and of a prediction what covers 90 % of the shapes left out of the fit; no row for a
              launch mode in which the run did not time a backend
    raises:   ValueError naming the backend that the model lacks, or the problem that it does not describe
    """
    problems, spec = list(problems), spec or model.spec
    chosen = tuple(model.backends) if backends is None else tuple(backends)
    if unknown := [name for name in chosen if name not in model.backends]:
        raise ValueError(f"the model has no {', '.join(unknown)}; it has {', '.join(model.backends)}")
    check_problems(problems)
    shapes = {name: np.array([getattr(problem, name) for problem in problems]) for name in SHAPE}
    parts = []
    for name in chosen:
        fitted = model.backends[name]
        bits = np.array([bits_at(fitted.bits, problem) for problem in problems])
        for launch in (launch for launch in launches if launch in fitted.spread):
            middle, down, up = extrapolate.band(model, fitted, shapes, bits, launch, spec)
            columns = shapes | {"backend": name, "launch": launch, "latency_us": middle}
            part = pd.DataFrame(columns | {"low_us": middle * np.exp(-down), "high_us": middle * np.exp(up)})
            parts.append(part.assign(kind=PREDICTED, group_size=[problem.group_size for problem in problems]))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, "group_size"])
    return (_with_measured(model, table) if spec.key == model.spec.key else table)[COLUMNS]


def check_problems(problems) -> None:
    """Raise ValueError naming the first problem that the model does not describe."""
    for problem in problems:
        if problem.M > MAX_M:
            raise ValueError(f"{problem}: the model describes decode, M of 1 to {MAX_M}")


def bits_at(bits: float, problem) -> float:
    """Stored bits per weight of a backend at a problem's group size, from those at groups of 128."""
    return bits if bits >= 16 else 4 + (bits - 4) * 128 / problem.group_length


def leave_one_out(run, spec: GpuSpec | None = None, backends=BACKENDS) -> pd.DataFrame:
    """Predict every case from a model that never saw its (K, N): the honest error of the model.

    A backend that was timed at MIN_SHAPES shapes only is left out: less one, they would not make a fit.

    returns: backend, launch, M, K, N, measured_us, predicted_us, error (predicted / measured - 1), gpu, run_id
    """
    spec = spec or spec_of(run)
    rows = observations(run)
    reach = _reach(run, rows, spec)
    parts = [_each_left_out(rows[rows["backend"] == name], spec, reach) for name in backends]
    columns = ["backend", "launch", *SHAPE, "measured_us", "predicted_us", "error"]
    parts = [part[columns] for part in parts if len(part)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return table.assign(gpu=spec.name, run_id=getattr(run, "run_id", ""))


def observations(run) -> pd.DataFrame:
    """The cases that the model is about: cold L2, random operands, groups of 128 or no groups, M of 1 to 16; no
    times from Python of a slow host.

    returns: backend, M, K, N, launch, latency_us (median), bits_per_weight, block_m, block_n, split_k, sm_clock_mhz,
             case_id, graph_us (latency of the same product as a CUDA graph; NaN where that was not timed)
    """
    cases = run if isinstance(run, pd.DataFrame) else run.cases
    if "latency_us_p50" not in cases:
        cases = cases.assign(latency_us_p50=cases["case_id"].map(run.samples.groupby("case_id")["latency_us"].median()))
    cases = steady(cases)
    keep = (cases["status"] == "ok") & (cases["l2_state"] == "cold") & cases["launch"].isin(["graph", "eager"])
    keep &= cases["M"].between(1, MAX_M) & cases["group_size"].isin([0, 128]) & ~cases["backend"].isin(NO_PRODUCT)
    if "operands" in cases:
        keep &= cases["operands"] == "random"
    rows = cases[keep].dropna(subset=["latency_us_p50"]).rename(columns={"latency_us_p50": "latency_us"})
    values = ["latency_us", "bits_per_weight", "block_m", "block_n", "split_k", "sm_clock_mhz"]
    medians = dict.fromkeys(values, "median") | {"case_id": "first"}
    rows = rows.groupby(["backend", *SHAPE, "launch"], as_index=False, sort=False).agg(medians)
    product = ["backend", *SHAPE]
    graph = rows.loc[rows["launch"] == "graph", [*product, "latency_us"]].rename(columns={"latency_us": "graph_us"})
    return rows.merge(graph, on=product, how="left", validate="many_to_one")


def spec_of(run) -> GpuSpec:
    """The published figures of a run's GPU; where it has none, what the run itself recorded of it."""
    gpu = getattr(run, "gpu", None)
    if gpu is None:
        raise ValueError("a table does not say which GPU it is of: pass its GpuSpec")
    if gpu["key"] in GPUS:
        return GPUS[gpu["key"]]
    if not np.isfinite(bandwidth := copy_gb_s(run)):
        raise ValueError(f"{gpu['name']} has no published figures here, and the run timed no copy to go by")
    major, minor = (int(part) for part in gpu["compute_capability"].split("."))
    clock = gpu["max_sm_clock_mhz"] or 1500
    return GpuSpec(gpu["key"], gpu["name"], (major, minor), gpu["sm_count"], gpu["memory_bytes"] / 1e9, bandwidth,
                   float("nan"), gpu["l2_bytes"], 100 * 1024, 48, clock, False,
                   "recorded by the run; bandwidth: its copy")  # fmt: skip


def terms_table(model: CostModel) -> pd.DataFrame:
    """Every fitted number: backend, term, value, unit, meaning; terms that a backend does not have are left out."""
    rows = []
    for name, fitted in model.backends.items():
        absent = {"l2_share"} if name != "dequant-fp16" else set()
        absent |= {"longest_k"} if fitted.cut else set()
        absent |= set(HOST) if "eager" not in fitted.spread else set()
        for term, about in META.items():
            if term not in absent:
                rows.append((name, term, getattr(fitted.terms, term), about["unit"], about["meaning"]))
    return pd.DataFrame(rows, columns=["backend", "term", "value", "unit", "meaning"])


def _with_measured(model: CostModel, table: pd.DataFrame) -> pd.DataFrame:
    """Put measured latencies in the place of predicted ones; a weight in groups of another size was not measured."""
    seen = model.observations[["backend", *SHAPE, "launch", "case_id"]]
    table = table.merge(seen, on=["backend", *SHAPE, "launch"], how="left", validate="many_to_one")
    measured = table["case_id"].notna() & ((table["group_size"] == 128) | table["backend"].str.startswith("fp16"))
    ids = set(table.loc[measured, "case_id"])
    if isinstance(model.run, pd.DataFrame):
        timed = model.run[model.run["case_id"].isin(ids)]
    else:
        cases, samples = (rows[rows["case_id"].isin(ids)] for rows in (model.run.cases, model.run.samples))
        timed = summarize(cases, samples)
    timed = timed.set_index("case_id")
    for ours, theirs in zip(["latency_us", "low_us", "high_us"], LATENCY, strict=True):
        table[ours] = table[ours].where(~measured, table["case_id"].map(timed[theirs]))
    return table.assign(kind=table["kind"].where(~measured, MEASURED))


def _overlap_us(rows: pd.DataFrame) -> float:
    """The time that the tuned kernel loses when it waits for the one ahead of it, in us: a median over problems."""
    graph = rows[rows["launch"] == "graph"]
    sides = (graph[graph["backend"] == name].set_index(SHAPE)["latency_us"] for name in ("int4-serial", "int4"))
    gains = next(sides).sub(next(sides)).dropna()
    return max(float(gains.median()), 0.0) if len(gains) else 0.0


def _reach(run, rows: pd.DataFrame, spec: GpuSpec) -> float:
    """Share of the usable DRAM bandwidth that the fastest product or copy of the run reached."""
    graph = rows[(rows["launch"] == "graph") & (rows["M"] == rows["M"].min())]  # not all backends read all of x
    moved = graph["K"] * graph["N"] * graph["bits_per_weight"] / 8 + 2 * graph["M"] * (graph["K"] + graph["N"])
    best = float((moved / graph["latency_us"]).max()) / 1e3
    return min(np.nanmax([best, copy_gb_s(run)]) / usable_gb_s(spec), 1.0)


def copy_gb_s(run) -> float:
    """Bandwidth of the copy of a run or table in 1e9 bytes/s; NaN where it has none."""
    cases = run if isinstance(run, pd.DataFrame) else run.cases
    copies = cases[(cases["backend"] == "copy") & (cases["launch"] == "graph") & (cases["status"] == "ok")]
    if "achieved_gb_s" not in copies:
        timed = run.samples[run.samples["case_id"].isin(copies["case_id"])]
        medians = copies["case_id"].map(timed.groupby("case_id")["latency_us"].median())
        copies = copies.assign(achieved_gb_s=copies["bytes_min"] / medians / 1e3)
    return copy_bandwidth_gb_s(copies)


@remembered
def _each_left_out(rows: pd.DataFrame, spec: GpuSpec, reach: float) -> pd.DataFrame:
    """Every shape of one backend predicted by a fit without it; no rows where too few shapes are left for a fit."""
    whole = _fit_backend(rows, spec, reach)
    if not whole or whole.n_shapes <= MIN_SHAPES:
        return rows[:0]
    return _left_out(rows, whole, spec, [[shape] for shape in rows.groupby(["K", "N"]).groups])


@remembered
def _fit_backends(rows: pd.DataFrame, spec: GpuSpec, reach: float) -> dict[str, Fitted]:
    """The fit of each backend of a table that has enough shapes, with what it is off by at others."""
    found = {name: (group, _fit_backend(group, spec, reach)) for name, group in rows.groupby("backend")}
    return {name: _with_spread(group, fitted, spec) for name, (group, fitted) in found.items() if fitted}


def _fit_backend(rows: pd.DataFrame, spec: GpuSpec, reach: float) -> Fitted | None:
    """The terms of one backend's rows, from several starting points; None where there are too few shapes."""
    graph = rows[rows["launch"] == "graph"]
    n_shapes = len(graph[["K", "N"]].drop_duplicates())
    if n_shapes < MIN_SHAPES:
        return None
    block_m, cut = graph["block_m"].min(), graph[["block_n", "split_k"]].drop_duplicates()
    cut = tuple(int(value) for value in cut.iloc[0]) if len(cut) == 1 and cut.notna().all(axis=None) else None
    block_m = int(block_m) if np.isfinite(block_m) else 0
    bits, terms = float(graph["bits_per_weight"].median()), Terms(efficiency=reach)
    empty = Fitted(rows["backend"].iloc[0], terms, bits, block_m, cut, n_shapes, {})
    starts = [
        replace(empty, cut=either, terms=replace(terms, serial_ns=serial, weight_ps=work))
        for either in dict.fromkeys([cut, None])  # all alike may also be a coincidence
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
    modelled = device_us(fitted, *(eager[name] for name in (*SHAPE, "bits_per_weight")), spec)
    timed = eager["graph_us"].to_numpy(float)
    device = np.where(np.isnan(timed), modelled, timed)
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
    from scipy.optimize import least_squares  # half a second, not needed where the fit is remembered

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
