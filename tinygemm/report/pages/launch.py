"""What the chapter on launching puts on its page beside its figures."""

from __future__ import annotations

import math

import pandas as pd
from IPython.display import Markdown

from tinygemm.report import launch, style

STEP = {
    "projection": ("Projection", ""),
    "shape": ("K×N", ""),
    "fp16-cublas_eager": ("FP16, from Python, µs", ",.1f"),
    "int4_eager": ("INT4, from Python, µs", ",.1f"),
    "fp16-cublas_graph": ("FP16, graph, µs", ",.1f"),
    "int4_graph": ("INT4, graph, µs", ",.1f"),
}
HOST = {
    "name": ("Backend", ""),
    "host_us": ("from Python, µs", ".1f"),
    "interval": ("95 % interval", ""),
    "device_us": ("in a graph, µs", ".1f"),
}
OVERLAPS = {
    "name": ("Backend", ""),
    "shape": ("K×N", ""),
    "left_us": ("one after the other, µs", ".2f"),
    "right_us": ("overlapping, µs", ".2f"),
    "value": ("ratio", ".2f"),
    "interval": ("95 % interval", ""),
}
CHAIN = {
    "shape": ("K×N", ""),
    "fp16-cublas_bytes_us": ("FP16 bytes, µs", ".2f"),
    "fp16-cublas_beside_us": ("beside, µs", ".2f"),
    "int4_bytes_us": ("INT4 bytes, µs", ".2f"),
    "int4_beside_us": ("beside, µs", ".2f"),
    "int4-serial_beside_us": ("beside, no overlap, µs", ".2f"),
}


def narrowest(table: pd.DataFrame) -> dict:
    """One call of the tuned kernel at the narrow shape: shape, eager_us and graph_us; NaN where it was not timed so."""
    rows = launch.gains(table)
    if rows.empty:
        return {"shape": "–", "eager_us": float("nan"), "graph_us": float("nan")}
    K, N = launch.ends(rows)[0]
    row = rows[(rows["K"] == K) & (rows["N"] == N)].iloc[0]
    return {"shape": style.shape_name((K, N)), "eager_us": row["eager_us"], "graph_us": row["graph_us"]}


def host_bound(table: pd.DataFrame, K: int = 4096) -> Markdown:
    """Up to which N the host sets the time of an eager call, for FP16 and for the tuned kernel."""
    sentences = []
    for backend in ("fp16-cublas", "int4"):
        found = launch.host_bound(table, backend, K=K)
        if not found:
            continue
        name, host, last = style.name(backend), found["host_us"], found["last_bound_N"]
        if math.isnan(last):
            where = "the device needs longer at every N measured"
        elif math.isnan(found["first_free_N"]):
            where = f"the device needs less at every N measured, up to {found['widest_N']:.0f}"
        else:
            where = f"the device needs less up to N = {last:.0f}, and longer from N = {found['first_free_N']:.0f}"
        sentences.append(f"{name} takes {host:.1f} µs at the narrowest N; {where}.")
    return Markdown(" ".join(sentences) or f"*This run did not time K = {K} from Python and as a graph.*")


def host(table: pd.DataFrame) -> pd.DataFrame:
    """launch.host_costs with names, cheapest first."""
    rows = launch.host_costs(table).sort_values("host_us")
    interval = [f"{low:.1f} to {high:.1f}" for low, high in zip(rows["host_us_low"], rows["host_us_high"], strict=True)]
    return rows.assign(name=rows["backend"].map(style.name), interval=interval)


def overlaps(run) -> pd.DataFrame:
    """launch.overlaps with names and shapes."""
    rows = launch.overlaps(run)
    shape = rows["K"].astype(str) + "×" + rows["N"].astype(str)
    interval = [f"{low:.2f} to {high:.2f}" for low, high in zip(rows["low"], rows["high"], strict=True)]
    return rows.assign(name=rows["backend"].map(style.name), shape=shape, interval=interval)


def step_facts(step: pd.DataFrame) -> dict[str, float]:
    """A token's matrix products in ms: fp16_graph_ms, int4_graph_ms, fp16_eager_ms, int4_eager_ms; or NaN."""
    last = step.iloc[-1] if len(step) else {}
    return {
        f"{short}_{mode}_ms": float(last.get(f"{backend}_{mode}", float("nan"))) / 1e3
        for short, backend in (("fp16", "fp16-cublas"), ("int4", "int4"))
        for mode in ("graph", "eager")
    }
