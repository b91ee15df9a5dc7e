"""Projections beside what others published: which values lie within the band, and which miss it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from tinygemm.hardware import GpuSpec, find_gpu
from tinygemm.problem import GemmProblem
from tinygemm.published import launch_of
from tinygemm.report.base.tables import BASELINE, SHAPE
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.predict.model import MAX_M, CostModel, bits_at

# A kernel that the run did not time is held against ours: then a miss tells of the kernels as much as of the model.
STAND_IN = {"marlin": "int4", "gemlite": "int4", "tileops": "int4", "exllamav2": "int4"}
READING = {"speedup": 0.05}  # how far a value read off a figure may be off
BASE_CLOCK_MHZ = {"a10": 885}  # NVIDIA A10 product brief; a source may have locked it
HIT, MISS = "hit", "miss"


def compare(model: CostModel, published: pd.DataFrame) -> pd.DataFrame:
    """Every published latency and speedup of another GPU that the model can say something about.

    published: published.load()
    returns:   source_key, gpu, M, K, N, backend, quantity, value, digitised, method, note; launch that was predicted;
               stand_in (the backend that was predicted in its place, or ""), predicted, low, high, off (predicted /
               value - 1), result (hit: the band covers the value, its reading error allowed for; miss), and where the
               projection starts: base (name of the GPU of the run), run_id
    """
    rows = []
    for row in published.to_dict("records"):
        spec, backend = find_gpu(row["gpu"]), _modelled(model, row["backend"])
        quantity = row["quantity"] == "latency_us" or (row["quantity"] == "speedup" and BASELINE in model.backends)
        elsewhere = spec and spec.key != model.spec.key  # of the GPU that the model is of, nothing is projected
        if elsewhere and backend and quantity and row["M"] <= MAX_M:
            rows.append(row | _beside(model, row, backend, spec))
    columns = [*published.columns, "launch", "stand_in", "predicted", "low", "high", "off", "result"]
    return pd.DataFrame(rows, columns=columns).assign(base=model.spec.name, run_id=model.run_id)


def scores(
    compared: pd.DataFrame, keys: tuple[str, ...] = ("source_key", "gpu", "backend", "stand_in")
) -> pd.DataFrame:
    """Hits and cases per source, GPU and backend, and whether the backend itself was modelled or a stand-in.

    keys:    columns of `compared` to count by
    returns: keys, cases, hits, median_off, worst_off, band (high / low, its median)
    """
    band = compared["high"] / compared["low"]
    compared = compared.assign(size=compared["off"].abs(), hit=compared["result"] == HIT, band=band)
    columns = {"cases": ("hit", "size"), "hits": ("hit", "sum"), "median_off": ("size", "median")}
    columns |= {"worst_off": ("size", "max"), "band": ("band", "median")}
    return compared.groupby(list(keys), sort=False).agg(**columns).reset_index()


def project(model: CostModel, row: dict, backend: str, spec: GpuSpec) -> tuple[str, float, float, float]:
    """The model's value for a published latency or speedup, launched as its source launched it.

    row:     of published.load()
    spec:    the GPU of the source
    returns: launch ("graph" where the run did not time the backend from Python), the value in the middle, low, high
    """
    problem = GemmProblem(row["M"], row["N"], row["K"])
    shapes = {name: np.array([row[name]]) for name in SHAPE}
    fitted, wanted, spec = model.backends[backend], launch_of(row["method"]), _as_measured(spec, row["method"])
    launch = wanted if wanted in fitted.spread else "graph"
    bits = np.array([bits_at(fitted.bits, problem)])
    if row["quantity"] == "speedup":
        fp16 = model.backends[BASELINE]
        middle, low, high = extrapolate.ratio_band(model, fp16, fitted, shapes, (fp16.bits, bits), launch, spec)
    else:
        middle, down, up = extrapolate.band(model, fitted, shapes, bits, launch, spec)
        low, high = middle * np.exp(-down), middle * np.exp(up)
    return launch, float(middle[0]), float(low[0]), float(high[0])


def _modelled(model: CostModel, backend: str) -> str | None:
    return next((name for name in (backend, STAND_IN.get(backend)) if name in model.backends), None)


def _as_measured(spec: GpuSpec, method: str) -> GpuSpec:
    """The GPU as the source had it set."""
    if "ECC off" in method:
        spec = replace(spec, inline_ecc=False)
    if "base clock" in method and spec.key in BASE_CLOCK_MHZ:
        spec = replace(spec, boost_clock_mhz=BASE_CLOCK_MHZ[spec.key])
    return spec


def _beside(model: CostModel, row: dict, backend: str, spec: GpuSpec) -> dict:
    launch, middle, low, high = project(model, row, backend, spec)
    reading = READING.get(row["quantity"], 0.0) if row["digitised"] else 0.0
    hit = low - reading <= row["value"] <= high + reading
    return {
        "launch": launch, "stand_in": "" if backend == row["backend"] else backend, "predicted": middle, "low": low,
        "high": high, "off": middle / row["value"] - 1, "result": HIT if hit else MISS,
    }  # fmt: skip
