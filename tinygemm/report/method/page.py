"""Tables of the method: the backends and how they were launched."""

from __future__ import annotations

import pandas as pd

from tinygemm.problem import NARROW, STUDY_SHAPES
from tinygemm.report.base import host, style
from tinygemm.report.base.page import (
    _sources,
)
from tinygemm.report.base.tables import BASELINE

WHAT = {
    "fp16-cublas": "FP16 weights, the faster of two layouts of cuBLAS",
    "fp16-triton": "our kernel structure with FP16 weights",
    "dequant-fp16": "writes the weight back in FP16, then multiplies",
    "dequant-only": "only writes the weight back in FP16",
    "int4-static": "the simple fused kernel",
    "int4-splitk": "the tensor-core form whose weights wait in registers",
    "int4-ring": "the tensor-core form whose weights wait in shared memory, for up to 8 tokens",
    "int4": "the tuned kernel: the form that the library selects",
    "int4-serial": "the tuned kernel, started only when the kernel before it has finished",
    "int4-no-dequant": "the tuned kernel with its dequantisation left out: it multiplies with the raw bits",
    "int4-naive-dequant": "the tuned kernel that dequantises by shift, mask and convert",
    "int4-no-split": "the tuned kernel in which one warp walks all of K",
    "int4-more-split": "the tuned kernel with K split over twice the programs",
    "int4-fused": "the tuned kernel at any number of tokens, also where the library would dequantise first",
    "int4-searched": "the fastest of the selected config and those that a rough model ranks first for this shape",
    "int4-bf16": "the tuned kernel with bfloat16 activations",
    "int4-asymmetric": "the tuned kernel with a zero point for every group",
    "int4-one-row": "the tuned kernel on as many tokens that share one row of activations: the traffic of one",
    "int4-step-naive": "K split over warps and programs, words loaded as tensor-core operands, naive dequantisation",
    "int4-step-lop3": "the same, dequantised by lop3",
    "int4-step-early": "the same, weights requested before the kernel before it has finished",
    "int4-load-only": "reads the INT4 bytes, computes nothing",
    "int4-load-only-serial": "reads the INT4 bytes, computes nothing, started only when the kernel before has finished",
    "aten-int4mm": "PyTorch's own INT4 kernel",
    "gemlite": "GemLite, a Triton library",
    "marlin": "Marlin, a CUDA kernel",
    "bitsandbytes-nf4": "bitsandbytes, 4-bit NF4 instead of INT4",
    "copy": "device-to-device copy: the bandwidth to compare with",
    "empty-node": "a kernel that does nothing: the least a graph node costs",
}


def choices(table: pd.DataFrame, M: int = 1) -> dict:
    """One call of the tuned kernel at the narrow shape, timed in every way: graph_us, eager_us, cold_us, hot_us, shape.

    Where the host was slow there, it is the first projection of the study at which it was not.
    """
    slow = host.slow_groups(table)
    K, N = next((shape for shape in STUDY_SHAPES if (M, *shape) not in slow), NARROW)
    rows = table[(table["M"] == M) & (table["K"] == K) & (table["N"] == N) & (table["operands"] == "random")]
    # at the group size of the comparison with FP16, if a run has others too
    beside = rows["problem"].isin(rows.loc[rows["backend"] == BASELINE, "problem"])
    rows = rows[(rows["backend"] == "int4") & beside]
    latency = rows.set_index(["launch", "l2_state"])["latency_us_p50"]
    modes = {"graph_us": ("graph", "cold"), "eager_us": ("eager", "cold"), "cold_us": ("graph", "cold")}
    modes |= {"hot_us": ("graph", "hot")}
    return {name: latency.get(mode, float("nan")) for name, mode in modes.items()} | {"shape": f"{K}×{N}"}


def contenders(run) -> pd.DataFrame:
    """One row per backend of a run: backend, what, bits (at the group size of most cases), source (of its launch
    configs; of many kinds only the first word), timed, not_timed (cases)."""
    cases = run.cases.assign(timed=run.cases["status"] == "ok")
    rows = cases.groupby("backend", sort=False).agg(
        bits=("bits_per_weight", lambda bits: bits.mode().min()),
        source=("config_source", _sources),
        timed=("timed", "sum"),
        all_cases=("timed", "size"),
    )
    rows = rows.reindex(style.in_order(rows.index)).reset_index()
    return rows.assign(
        what=rows["backend"].map(WHAT).fillna("–"),
        bits=rows["bits"].where(rows["bits"] > 0),
        not_timed=rows["all_cases"] - rows["timed"],
        backend="`" + rows["backend"] + "`",
    )
