"""Advice for one model on one GPU: what each projection takes in FP16 and INT4, what limits it, whether to quantise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tinygemm.hardware import GpuSpec
from tinygemm.models import Model, projections
from tinygemm.problem import GemmProblem
from tinygemm.report.base.tables import BASELINE, speedups
from tinygemm.report.base.words import interval
from tinygemm.report.limits.tables import limited_by_bytes
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.predict import terms as costterms
from tinygemm.runs import case_id

INT4 = "int4"
YES, NO, TIE, CANNOT, KEPT = "yes", "no", "tie", "cannot", "kept in FP16"
# the terms of the cost model, in words; what a call from Python waits for is judged before them
LIMITERS = {
    "start": "launch", "token": "launch", "serial": "serial walk", "memory": "memory", "unpack": "dequantisation",
    "multiply": "tensor cores",
}  # fmt: skip
MEMORY, NOT_MEMORY = "memory", "not memory"
HOST = "Python's launch"
LM_HEAD = "lm_head"


@dataclass(frozen=True)
class Advice:
    """The result of `advise`.

    rows:   one per projection, then lm_head, which stays in FP16 as checkpoints have it: layer, K, N, group_size (NaN:
            not quantised), calls (per step), tokens (rows of x of each call), fp16_us, int4_us, speedup, speedup_low,
            speedup_high, limiter (of INT4), quantise (yes, no, tie, cannot, kept in FP16), kind (measured, predicted)
    totals: of all calls of a step, in us, lm_head included: fp16, int4 (all that can be), advised (only where the
            answer is yes); and speedup, speedup_low, speedup_high of the advised over FP16
    """

    model: Model
    gpu: str
    M: int
    tp: int
    launch: str
    run_id: str
    run_gpu: str
    rows: pd.DataFrame
    totals: dict[str, float]


def advise(
    fitted: costmodel.CostModel, model: Model, spec: GpuSpec | None = None, M: int = 1, tp: int = 1,
    group_size: int = 128, launch: str = "graph",
) -> Advice:  # fmt: skip
    """Advise on every projection of a model, from the run that a cost model was fitted to.

    A projection is measured where the run timed that very case on that GPU, and predicted otherwise. FP16 is cuBLAS,
    what a model runs today. INT4 pays where the whole interval of the speedup lies above 1: of a measured case the
    paired 95 % interval, of a predicted one the band of the prediction.

    fitted:     costmodel.fit(run)
    spec:       the GPU; None: the one of the run
    tp:         tensor-parallel degree; group_size: largest wanted, see models.projections
    launch:     "graph" or "eager"
    raises:     ValueError where the degree does not divide the model, the kernels do not run on the GPU, or the run
                did not time what is asked for
    """
    spec = spec or fitted.spec
    if spec.obstacle:
        raise ValueError(spec.obstacle)
    for name in (BASELINE, INT4):
        if launch not in getattr(fitted.backends.get(name), "spread", {}):
            raise ValueError(f"run {fitted.run_id} did not time {name} with launch {launch} at enough shapes to advise")
    layers = zip(model.weights, projections(model, tp, group_size), strict=True)
    head = (LM_HEAD, model.hidden, -(-model.vocab // tp), None, 1, M)
    parts = [(w.layer, each.K, each.N, each.group_size, w.calls(M), w.tokens(M)) for w, each in layers]
    table = pd.DataFrame([*parts, head], columns=["layer", "K", "N", "group_size", "calls", "tokens"])
    problems = [GemmProblem(tokens, N, K, size or -1) for _, K, N, size, _, tokens in [*parts, head]]
    quantised = table["group_size"].notna()
    table = pd.concat([table, compared(fitted, problems, spec, launch)], axis=1)
    table["limiter"] = _limiters(fitted, problems, spec, launch)
    if spec.key == fitted.spec.key and launch == "graph":
        table["limiter"] = _by_the_clock(fitted, table, problems)
    numbers = ["int4_us", "speedup", "speedup_low", "speedup_high"]
    table[numbers] = table[numbers].where(quantised)
    table["limiter"] = table["limiter"].where(quantised, "–")
    clear = [table["speedup_low"] > 1, table["speedup_high"] < 1, quantised]
    table["quantise"] = np.select(clear, [YES, NO, TIE], CANNOT)
    table.loc[table["layer"] == LM_HEAD, "quantise"] = KEPT
    return Advice(model, spec.name, M, tp, launch, fitted.run_id, fitted.spec.name, table, _totals(table))


def compared(fitted: costmodel.CostModel, problems, spec: GpuSpec, launch: str = "graph") -> pd.DataFrame:
    """FP16 and INT4 of problems: fp16_us, int4_us, speedup, speedup_low, speedup_high, kind; one row per problem."""
    table = bands(fitted, problems, spec, launch).assign(kind=costmodel.PREDICTED)
    table["fp16_us"], table["int4_us"] = (
        costmodel.predict(fitted, problems, spec, (name,), (launch,))["latency_us"] for name in (BASELINE, INT4)
    )
    if spec.key == fitted.spec.key:
        measured = _measured(fitted.run, problems, launch)
        table.loc[measured.index, measured.columns] = measured
    return table


def heading(found: Advice) -> list[str]:
    """The question, and the run that the answer comes from."""
    gpus = "1 GPU" if found.tp == 1 else f"{found.tp} GPUs"
    how = {"graph": "CUDA graph", "eager": "launched from Python"}[found.launch]
    where = f"{found.model.key} on {gpus}, {found.gpu}, M = {found.M}, {how}, cold L2"
    source = "from" if found.gpu == found.run_gpu else f"projected from the {found.run_gpu} of"
    return [where, f"{source} run {found.run_id}"]


def sentences(found: Advice) -> list[str]:
    """The totals of a token and what they leave out."""
    totals, rows = found.totals, found.rows
    head = rows.loc[rows["layer"] == LM_HEAD].iloc[0]
    predicted = (rows["kind"] == costmodel.PREDICTED).sum()
    yes = rows.loc[rows["quantise"] == YES, "layer"]
    advised = f"{', '.join(yes)} in INT4" if len(yes) else "nothing in INT4"
    band = interval(totals["speedup_low"], totals["speedup_high"])
    left_out = "without the error of lm_head" if head["kind"] == costmodel.PREDICTED else ""
    told = ", ".join(filter(None, [band, left_out]))
    return [
        f"Per token and GPU: {totals['fp16'] / 1e3:.2f} ms in FP16, {totals['advised'] / 1e3:.2f} ms with {advised}: "
        f"{totals['speedup']:.2f}×{f' ({told})' if told else ''}.",
        f"Included: {found.model.layers} layers, and lm_head in FP16, {head['fp16_us'] / 1e3:.2f} ms ({head['kind']}). "
        "Not included: attention, norms, sampling, and what GPUs exchange.",
        f"Measured on this GPU: {len(rows) - predicted} of {len(rows)} rows; predicted: {predicted}.",
    ]


def _measured(run, problems, launch: str) -> pd.DataFrame:
    """fp16_us, int4_us, the paired speedup and its interval, of the problems whose two sides the run timed together."""
    ids = {name: [case_id(name, problem, launch, "cold") for problem in problems] for name in (BASELINE, INT4)}
    timed = run.cases[run.cases["case_id"].isin([*ids[BASELINE], *ids[INT4]]) & (run.cases["status"] == "ok")]
    samples = run.samples[run.samples["case_id"].isin(timed["case_id"])]
    latency = samples.groupby("case_id")["latency_us"].median()
    table = pd.DataFrame({"fp16_us": ids[BASELINE], "int4_us": ids[INT4]})
    table = table.merge(speedups(timed, samples), left_on="int4_us", right_on="case_id", how="left")
    table = table.drop(columns="case_id")[table["speedup"].notna()]
    return table.assign(
        fp16_us=table["fp16_us"].map(latency), int4_us=table["int4_us"].map(latency), kind=costmodel.MEASURED
    )


def _limiters(fitted, problems, spec: GpuSpec, launch: str) -> list[str]:
    """The longest term of each INT4 call."""
    backend = extrapolate.scaled(fitted, fitted.backends[INT4], spec)
    shapes, bits = _arrays(problems, backend)
    parts = pd.DataFrame(costterms.parts_us(backend, **shapes, bits=bits, spec=spec))
    longest = parts.rename(columns=LIMITERS).T.groupby(level=0).sum().T.idxmax(axis=1)
    if launch == "eager":
        waits = costterms.device_us(backend, **shapes, bits=bits, spec=spec) < backend.terms.host_us
        longest = longest.where(~waits, HOST)
    return longest.tolist()


def _by_the_clock(fitted, table: pd.DataFrame, problems) -> list[str]:
    """The limits, where measured by the rule of `limiters.limited_by_bytes`: a clock tells memory from the rest, and
    nothing more."""
    copy_gb_s, bits = costmodel.copy_gb_s(fitted.run), fitted.backends[INT4].bits
    found = []
    for problem, row in zip(problems, table.itertuples(), strict=True):
        rate = problem.bytes_min(costmodel.bits_at(bits, problem)) / (row.int4_us * 1e3) / copy_gb_s
        known = row.kind == costmodel.MEASURED and not np.isnan(rate)
        by_rate = MEMORY if limited_by_bytes(rate) else NOT_MEMORY
        found.append(by_rate if known else row.limiter)
    return found


def bands(fitted, problems, spec: GpuSpec, launch: str) -> pd.DataFrame:
    """speedup, speedup_low, speedup_high of INT4 over FP16 as predicted."""
    left, right = (fitted.backends[name] for name in (BASELINE, INT4))
    shapes, bits = _arrays(problems, right)
    ratio = extrapolate.ratio_band(fitted, left, right, shapes, (np.full(len(bits), left.bits), bits), launch, spec)
    return pd.DataFrame(dict(zip(("speedup", "speedup_low", "speedup_high"), ratio, strict=True)))


def _arrays(problems, backend) -> tuple[dict[str, np.ndarray], np.ndarray]:
    shapes = {name: np.array([getattr(problem, name) for problem in problems]) for name in ("M", "K", "N")}
    return shapes, np.array([costmodel.bits_at(backend.bits, problem) for problem in problems])


def _totals(table: pd.DataFrame) -> dict[str, float]:
    """Sums over the calls of a token; the ends of the speedup take every projection at the same end of its band."""
    fp16 = table["fp16_us"] * table["calls"]
    int4 = (table["int4_us"] * table["calls"]).fillna(fp16)
    yes = table["quantise"] == YES
    totals = {"fp16": fp16.sum(), "int4": int4.sum(), "advised": int4.where(yes, fp16).sum()}
    for end in ("speedup_low", "speedup_high"):
        totals[end] = fp16.sum() / (fp16 / table[end]).where(yes, fp16).sum()
    totals["speedup"] = totals["fp16"] / totals["advised"]
    return {name: float(value) for name, value in totals.items()}
