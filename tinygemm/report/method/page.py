"""Tables of the method: the backends and how they were launched."""

from __future__ import annotations

import pandas as pd

from tinygemm.backends import BACKENDS
from tinygemm.problem import NARROW, STUDY_SHAPES
from tinygemm.report.base import host, style
from tinygemm.report.base.page import _sources
from tinygemm.report.base.tables import BASELINE
from tinygemm.report.base.words import shape_name


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
    return {name: latency.get(mode, float("nan")) for name, mode in modes.items()} | {"shape": shape_name((K, N))}


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
        what=[BACKENDS[name].what if name in BACKENDS else "–" for name in rows["backend"]],
        bits=rows["bits"].where(rows["bits"] > 0),
        not_timed=rows["all_cases"] - rows["timed"],
        backend="`" + rows["backend"] + "`",
    )
