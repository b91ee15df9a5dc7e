"""The cost of a call besides its bytes: launched from Python, as a node of a graph, overlapping with its neighbours."""

from __future__ import annotations

import pandas as pd

from tinygemm.backends import PEER, of_family, with_serial
from tinygemm.problem import REPORT_SHAPES
from tinygemm.report.base.contrasts import compare, primary_cases, timed
from tinygemm.report.base.host import slow_groups, steady
from tinygemm.report.base.tables import (
    BASELINE,
    SHAPE,
    at_shapes,
    copy_bandwidth_gb_s,
    empty_node_us,
    problem_of,
    usual,
)
from tinygemm.report.base.words import shape_name, shape_names

SPEEDUP = ["speedup_vs_fp16", "speedup_vs_fp16_low", "speedup_vs_fp16_high"]
# the four matrix products of a layer of Llama-3-8B, joined as inference engines join them, as (K, N); config.json of
# meta-llama/Meta-Llama-3-8B: 32 layers
LAYERS = 32
STEP = {"qkv": (4096, 6144), "attention output": (4096, 4096), "gate and up": (4096, 28672), "down": (14336, 4096)}
OVERLAPS = {backend: serial for backend, serial in with_serial().items() if backend not in of_family(PEER)}
PROBLEM = ["problem", *SHAPE]


def gains(table: pd.DataFrame, M: int = 1, backend: str = "int4") -> pd.DataFrame:
    """The speedup over FP16 per shape, both launched from Python, and both as graphs: one row per K and N.

    table:   report_table(run)
    returns: M, K, N, gpu, run_id, and for each of graph and eager: <mode>, _low, _high (speedups) and <mode>_us; no
             row where the host was slow
    """
    rows = _cold(table)
    rows = rows[(rows["backend"] == backend) & (rows["M"] == M)].dropna(subset=[SPEEDUP[0]])
    sides = []
    for mode in ("graph", "eager"):
        names = dict(zip(SPEEDUP, (mode, f"{mode}_low", f"{mode}_high"), strict=True))
        names["latency_us_p50"] = f"{mode}_us"
        mine = rows.loc[rows["launch"] == mode, [*SHAPE, "group_size", *names]].rename(columns=names)
        sides.append(mine)
    both = sides[0].merge(sides[1], on=[*SHAPE, "group_size"], validate="one_to_one")
    origin = {name: table[name].iloc[0] for name in ("gpu", "run_id") if name in table and len(table)}
    return both.assign(**origin).sort_values(["K", "N"]).reset_index(drop=True)


def host_costs(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The cost of a call on the host: its eager time where the device has the least to do.

    returns: one row per backend that was timed both ways at the smallest weight of a steady host: backend, K, N,
             host_us (eager), _low, _high, device_us (graph); the host sets the eager time where it exceeds the device's
    """
    rows = _cold(table)
    rows = rows[(rows["M"] == M) & (rows["flops"] > 0)]
    size = rows["K"] * rows["N"]
    rows = rows[size == size[rows["launch"] == "eager"].min()]
    names = {"latency_us_p50": "host_us", "latency_us_low": "host_us_low", "latency_us_high": "host_us_high"}
    eager = rows.loc[rows["launch"] == "eager", ["backend", "K", "N", *names]].rename(columns=names)
    graph = rows.loc[rows["launch"] == "graph", ["backend", "K", "N", "latency_us_p50"]]
    both = eager.merge(graph.rename(columns={"latency_us_p50": "device_us"}), on=["backend", "K", "N"])
    return both.drop_duplicates("backend").reset_index(drop=True)


def host_bound(table: pd.DataFrame, backend: str = "int4", M: int = 1, K: int = 4096) -> dict[str, float]:
    """Up to which N the host bounds an eager call: there, the device would be done before the host can launch again.

    returns: host_us (eager time at the narrowest N), last_bound_N and first_free_N (the device clearly needs less, or
             more, by the 95 % intervals; NaN where there is none), widest_N; empty where the run did not time it
    """
    rows = _cold(table)
    rows = rows[(rows["backend"] == backend) & (rows["M"] == M) & (rows["K"] == K)]
    rows = rows[rows["launch"].isin(["graph", "eager"])].drop_duplicates(["launch", "N"])
    ends = ["latency_us_low", "latency_us_p50", "latency_us_high"]
    wide = rows.pivot(index="N", columns="launch", values=ends).dropna()
    if not {"graph", "eager"} <= set(rows["launch"]) or wide.empty:
        return {}
    low, host, high = (float(wide[end, "eager"].iloc[0]) for end in ends)
    bound = wide.index[wide["latency_us_high", "graph"] < low]
    free = wide.index[wide["latency_us_low", "graph"] > high]
    return {
        "host_us": host,
        "last_bound_N": float(bound.max()) if len(bound) else float("nan"),
        "first_free_N": float(free.min()) if len(free) else float("nan"),
        "widest_N": float(wide.index.max()),
    }


def decode_step(table: pd.DataFrame, M: int = 1, backends=(BASELINE, "int4")) -> pd.DataFrame:
    """The time of the matrix products of one layer of Llama-3-8B, and of all its layers; in us.

    returns: projection, shape, then <backend>_graph and <backend>_eager, NaN where the host was slow, and so in the
             sums, too; the last two rows are the sum of a layer and that of all layers; empty where a projection was
             not timed
    """
    rows = _cold(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin(backends)].drop_duplicates(["backend", "launch", "K", "N"])
    latency = rows.set_index(["backend", "launch", "K", "N"])["latency_us_p50"]
    columns = {f"{backend}_{mode}": (backend, mode) for backend in backends for mode in ("graph", "eager")}
    found = [
        {"projection": name, "shape": shape_name((K, N))}
        | {column: latency.get((*key, K, N), float("nan")) for column, key in columns.items()}
        for name, (K, N) in STEP.items()
    ]
    step = pd.DataFrame(found)
    slow = [(M, *shape) in slow_groups(table) for shape in STEP.values()]
    unknown = step[list(columns)].isna()
    if unknown[~pd.Series(slow)].any(axis=None) or unknown.filter(like="_graph").any(axis=None):
        return step.iloc[:0]
    total = step[list(columns)].sum(skipna=False)
    sums = [{"projection": "one layer", "shape": "–"} | total.to_dict()]
    sums.append({"projection": f"{LAYERS} layers", "shape": "–"} | (LAYERS * total).to_dict())
    return pd.concat([step, pd.DataFrame(sums)], ignore_index=True)


def overlaps(run, M: int = 1) -> pd.DataFrame:
    """The gain of calls that overlap: backend, problem, M, K, N, left_us (one after the
    other), right_us (overlapping), value = left / right, low, high."""
    cases = primary_cases(run.cases)
    cases = cases[cases["M"] == M].assign(problem=problem_of(cases))
    parts = []
    for backend, serial in OVERLAPS.items():
        left, right = (cases[cases["backend"] == name] for name in (serial, backend))
        parts.append(compare(run, left, right, PROBLEM).assign(backend=backend))
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return rows.sort_values(["backend", "K", "N"], kind="stable").reset_index(drop=True)


def host_comparison(run, backend: str = "int4", other: str = "aten-int4mm", M: int = 1) -> pd.DataFrame:
    """Eager time of one backend over another's at the smallest weight of the run that was timed on a steady host: M, K,
    N, left_us, right_us, value, low, high; at most one row."""
    cases = timed(run, M)
    cases = cases[cases["launch"] == "eager"]
    sides = [cases[cases["backend"] == name] for name in (backend, other)]
    shared = sides[0].merge(sides[1], on=PROBLEM)
    if shared.empty:
        return compare(run, sides[0].iloc[:0], sides[1].iloc[:0], PROBLEM)
    smallest = shared.loc[(shared["K"] * shared["N"]).idxmin(), "problem"]
    return compare(run, *(side[side["problem"] == smallest] for side in sides), PROBLEM)


def chain(table: pd.DataFrame, M: int = 1, backends=(BASELINE, "int4-serial", "int4")) -> pd.DataFrame:
    """The cost of a call in a row of calls besides its bytes, on the device: K, N, shape, then <backend>_bytes_us (its
    bytes at copy bandwidth), <backend>_beside_us (the rest of its time), and empty_us, an empty node of a graph."""
    rows = _cold(table)
    rows = rows[(rows["launch"] == "graph") & (rows["M"] == M) & rows["backend"].isin(backends)]
    rows = rows[at_shapes(rows, REPORT_SHAPES)]
    rows = rows.drop_duplicates(["backend", "K", "N"])
    moved = rows["bytes_min"] / (copy_bandwidth_gb_s(table) * 1e3)
    rows = rows.assign(bytes_us=moved, beside_us=rows["latency_us_p50"] - moved)
    wide = rows.pivot(index=["K", "N"], columns="backend", values=["bytes_us", "beside_us"])
    wide.columns = [f"{backend}_{value}" for value, backend in wide.columns]
    names = [f"{backend}_{value}" for backend in backends for value in ("bytes_us", "beside_us")]
    wide = wide.reindex(columns=names).reset_index()
    shape = shape_names(wide)
    return wide.assign(shape=shape, empty_us=empty_node_us(table))


def _cold(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a cold L2, without the times from Python of groups in which the host was slow."""
    rows = usual(steady(table))
    return rows[rows["l2_state"] == "cold"]
