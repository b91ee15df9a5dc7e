"""Our speedups beside published ones: measured on the run's GPU, projected to the GPUs of the literature."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.hardware import gpu_spec
from tinygemm.problem import GemmProblem
from tinygemm.published import launch_of
from tinygemm.report.base.host import steady
from tinygemm.report.base.tables import BASELINE, SHAPE, primary, usual
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.predict.against_published import project
from tinygemm.report.predict.model import PREDICTED, CostModel, bits_at

PUBLISHED, MEASURED, PROJECTED = "published", "measured", "projected"
OURS = "int4"
INCOMPLETE = ("tiny-gemm",)  # does not compute the whole product, so its speed is no bar: see the chapter on the kernel
READING = 0.05  # how far a speedup that was read off a figure may be off
COLUMNS = ["gpu", "gpu_name", *SHAPE, "backend", "kind", "value", "low", "high", "source_key", "digitised", "method"]


def beside(table: pd.DataFrame, model: CostModel | None, published: pd.DataFrame) -> pd.DataFrame:
    """Every published speedup over FP16, and ours at the same M, K and N: what was measured, what is projected.

    table:     tables.report_table(run)
    model:     costmodel.fit(run), or None where the run is too small for one: then nothing is projected
    published: published.load()
    returns:   gpu, gpu_name, M, K, N, backend, kind (published, measured, projected), value, low, high (95 % interval
               of what was measured, band of what is projected, reading error of what is quoted), source_key, digitised,
               method; and run_gpu, run_id, from which the last two kinds come
    """
    quoted = published[published["quantity"] == "speedup"]
    names = {key: _name(key) for key in quoted["gpu"].unique()}
    reading = READING * quoted["digitised"]
    quoted = quoted.assign(
        gpu_name=quoted["gpu"].map(names), kind=PUBLISHED, low=quoted["value"] - reading, high=quoted["value"] + reading
    )
    shapes = quoted[SHAPE].drop_duplicates()
    measured, here = _measured(table, shapes), table["gpu"].iloc[0]
    measured["gpu"] = measured["gpu_name"].map({name: key for key, name in names.items() if name})
    parts = [quoted, measured]
    for gpu, rows in quoted.groupby("gpu") if model is not None else ():
        shapes = rows[SHAPE].drop_duplicates()
        if names[gpu] == here:  # what the run measured needs no projection
            shapes = shapes[~_keys(shapes).isin(_keys(measured[measured["backend"] == OURS]))]
        parts.append(_projected(model, gpu, shapes))
    rows = pd.concat([part.reindex(columns=COLUMNS) for part in parts if len(part)], ignore_index=True)
    return rows.assign(run_gpu=here, run_id=table["run_id"].iloc[0])


def against(rows: pd.DataFrame) -> pd.DataFrame:
    """Each published speedup of a complete kernel beside ours on the same GPU at the same shape.

    rows:    beside()
    returns: the published rows, with ours, ours_low, ours_high; none where nothing of ours stands beside them
    """
    keys = ["gpu", *SHAPE]
    ours = of_ours(rows)[[*keys, "value", "low", "high"]]
    ours = ours.rename(columns={"value": "ours", "low": "ours_low", "high": "ours_high"})
    theirs = rows[(rows["kind"] == PUBLISHED) & ~rows["backend"].isin(INCOMPLETE)]
    return theirs.merge(ours, on=keys, validate="many_to_one")


def one_call_alone(table: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Published speedups on the run's own GPU beside ours where do_bench timed it: no call overlaps another there.

    table:    tables.report_table(run)
    compared: against(rows)
    returns:  the rows of `compared` that were timed so, with the column `alone`
    """
    rows = usual(table)
    rows = rows[(rows["backend"] == OURS) & (rows["launch"] == "do_bench") & (rows["l2_state"] == "cold")]
    rows = rows[[*SHAPE, "speedup_vs_fp16"]].rename(columns={"speedup_vs_fp16": "alone"}).dropna()
    return compared[compared["gpu_name"] == table["gpu"].iloc[0]].merge(rows, on=SHAPE)


def of_ours(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of our tuned kernel on GPUs of the literature, measured or projected: at most one per GPU and shape."""
    return rows[(rows["kind"] != PUBLISHED) & (rows["backend"] == OURS) & rows["gpu"].notna()]


def latencies(table: pd.DataFrame, model: CostModel | None, published: pd.DataFrame) -> pd.DataFrame:
    """Published latencies beside ours at the same shape and GPU, one row per published value.

    returns: gpu_name, M, K, N, backend, published_us, ours (the backend that stands beside it: the same where the run
             has it, else the tuned kernel), launch (that of the source where the run knows it), ours_us, low_us,
             high_us, kind (measured; predicted on the run's own GPU; projected to another), source_key; no row where
             the GPU is unknown or the run says nothing
    """
    rows = []
    timed = usual(steady(table))
    timed = timed[timed["l2_state"] == "cold"].set_index(["backend", *SHAPE, "launch"])
    here = table["gpu"].iloc[0]
    for row in published[published["quantity"] == "latency_us"].to_dict("records"):
        name = _name(row["gpu"])
        ours = row["backend"] if model is not None and row["backend"] in model.backends else OURS
        key = (ours, row["M"], row["K"], row["N"], launch_of(row["method"]))
        if name == here and key in timed.index:
            found = timed.loc[key]
            times = (key[-1], found["latency_us_p50"], found["latency_us_low"], found["latency_us_high"], MEASURED)
        elif name and model is not None and ours in model.backends and row["backend"] != "dequant-only":
            times = (*project(model, row, ours, gpu_spec(row["gpu"])), PREDICTED if name == here else PROJECTED)
        else:
            continue
        rows.append((name, *key[1:-1], row["backend"], row["value"], ours, *times, row["source_key"]))
    return pd.DataFrame(rows, columns=["gpu_name", *SHAPE, "backend", "published_us", "ours", "launch", "ours_us",
                                       "low_us", "high_us", "kind", "source_key"])  # fmt: skip


def by_method(table: pd.DataFrame, backend: str = OURS, M: int = 1, K: int = 4096, N: int = 4096) -> pd.DataFrame:
    """The effect of the method alone on one speedup of this run: launch, l2_state, speedup, low, high; not what a
    slow host made of it."""
    table = steady(table)
    rows = table[(table["backend"] == backend) & (table[SHAPE] == [M, K, N]).all(axis=1) & (table["status"] == "ok")]
    rows = rows[rows.get("operands", pd.Series("random", index=rows.index)) == "random"]
    rows = rows[rows["group_size"].isin(rows["group_size"].mode().head(1))].dropna(subset=["speedup_vs_fp16"])
    names = {"speedup_vs_fp16": "speedup"} | {f"speedup_vs_fp16_{end}": end for end in ("low", "high")}
    return rows.rename(columns=names)[["launch", "l2_state", "speedup", "low", "high"]].sort_values("speedup")


def _keys(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[SHAPE])


def _measured(table: pd.DataFrame, shapes: pd.DataFrame) -> pd.DataFrame:
    """The run's own speedups at published shapes; kernels that nobody published a number of are left out."""
    rows = primary(table).merge(shapes, on=SHAPE)
    rows = rows[rows["backend"].isin([OURS, "aten-int4mm", "marlin", "gemlite"])].dropna(subset=["speedup_vs_fp16"])
    names = {"gpu": "gpu_name", "speedup_vs_fp16": "value"} | {f"speedup_vs_fp16_{end}": end for end in ("low", "high")}
    return rows.rename(columns=names).assign(kind=MEASURED, source_key="", method="CUDA graph, cold L2")


def _projected(model: CostModel, gpu: str, shapes: pd.DataFrame) -> pd.DataFrame:
    """Our kernel, and PyTorch's where the run timed it, on one GPU of the literature."""
    if not _name(gpu) or shapes.empty or BASELINE not in model.backends:
        return pd.DataFrame(columns=COLUMNS)
    spec, parts = gpu_spec(gpu), []
    fp16 = model.backends[BASELINE]
    for name in (name for name in (OURS, "aten-int4mm") if name in model.backends):
        fitted = model.backends[name]
        problems = [GemmProblem(M, N, K) for M, K, N in shapes.itertuples(index=False)]
        bits = np.array([bits_at(fitted.bits, problem) for problem in problems])
        arrays = {column: shapes[column].to_numpy() for column in SHAPE}
        sides = (np.full(len(bits), fp16.bits), bits)
        value, low, high = extrapolate.ratio_band(model, fp16, fitted, arrays, sides, "graph", spec)
        parts.append(shapes.assign(backend=name, value=value, low=low, high=high))
    rows = pd.concat(parts) if parts else pd.DataFrame(columns=COLUMNS)
    return rows.assign(gpu=gpu, gpu_name=spec.name, kind=PROJECTED, source_key="", method="cost model")


def _name(gpu: str) -> str:
    """The full name of a GPU; empty for one whose figures are not known here."""
    try:
        return gpu_spec(gpu).name
    except ValueError:
        return ""
